"""What a module is besides its forward: state, representation, copies, pickles, modes."""

import copy
import io
import pickle

import pytest
import torch

import d2lfast
from d2lfast.testing.cases import DEVICE

F32 = torch.float32
MODULES = (
    ("Conv2d", (3, 6, 3), {}, (2, 3, 9, 9)),
    (
        "Conv2d",
        (4, 6, (3, 5)),
        {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2, "bias": False},
        (2, 4, 15, 15),
    ),
    ("Conv2d", (3, 6, 3), {"padding": "same"}, (2, 3, 9, 9)),
    ("Conv2d", (3, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 3, 9, 9)),
    ("Conv2d", (3, 6, 3), {"padding": (2, 1), "padding_mode": "circular"}, (2, 3, 9, 9)),
    ("Conv2d", (3, 6, 4), {"padding": "same", "padding_mode": "replicate"}, (2, 3, 9, 9)),
    ("Conv2d", (3, 6, 3), {"padding": "valid", "padding_mode": "reflect"}, (2, 3, 9, 9)),
    ("LazyConv2d", (6, 3), {"padding": 1}, (2, 3, 9, 9)),
    ("LazyConv2d", (6, 3), {"padding": 1, "padding_mode": "circular"}, (2, 3, 9, 9)),
    ("MaxPool2d", (2,), {}, (2, 3, 9, 9)),
    ("MaxPool2d", ((3, 2),), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 9, 9)),
    ("MaxPool2d", (2,), {"dilation": 2, "return_indices": True}, (2, 3, 9, 9)),
    ("AvgPool2d", (2,), {}, (2, 3, 9, 9)),
    ("AvgPool2d", (3, 2), {"padding": 1, "count_include_pad": False, "divisor_override": 5}, (2, 3, 9, 9)),
    ("AdaptiveAvgPool2d", ((None, 4),), {}, (2, 3, 9, 9)),
    ("AdaptiveAvgPool2d", (1,), {}, (3, 9, 9)),
    ("AdaptiveMaxPool2d", (3,), {"return_indices": True}, (2, 3, 9, 9)),
    ("BatchNorm1d", (5,), {}, (7, 5)),
    ("BatchNorm1d", (5,), {"momentum": None}, (4, 5, 6)),
    ("BatchNorm2d", (5,), {}, (3, 5, 4, 4)),
    ("BatchNorm2d", (5,), {"affine": False, "eps": 1e-3}, (3, 5, 4, 4)),
    ("BatchNorm2d", (5,), {"track_running_stats": False}, (3, 5, 4, 4)),
    ("BatchNorm2d", (5,), {"momentum": None}, (3, 5, 4, 4)),
    ("LazyBatchNorm1d", (), {}, (7, 5)),
    ("LazyBatchNorm2d", (), {"momentum": 0.3}, (3, 5, 4, 4)),
    ("RNNCell", (5, 6), {"nonlinearity": "relu"}, (3, 5)),
    ("RNNCell", (5, 6), {"bias": False}, (5,)),
    ("GRUCell", (5, 6), {}, (3, 5)),
    ("GRUCell", (5, 6), {}, (5,)),
    ("LSTMCell", (5, 6), {}, (3, 5)),
    ("LSTMCell", (5, 6), {"bias": False}, (5,)),
    ("RNN", (5, 6), {"num_layers": 2}, (4, 3, 5)),
    ("RNN", (5, 6), {"nonlinearity": "relu", "batch_first": True, "bidirectional": True}, (4, 3, 5)),
    ("GRU", (5, 6), {"num_layers": 2, "bidirectional": True}, (4, 3, 5)),
    ("GRU", (5, 6), {"bias": False}, (4, 5)),
    ("LSTM", (5, 6), {"num_layers": 2, "batch_first": True}, (4, 3, 5)),
    ("LSTM", (5, 6), {"proj_size": 4, "bidirectional": True}, (4, 3, 5)),
)
each_module = pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"), MODULES, ids=[f"{m[0]}-{i}" for i, m in enumerate(MODULES)]
)


def build(name, args, kwargs, shape):
    """Ours and torch's with the same parameters, and an input."""
    modules = []
    for nn in (d2lfast.nn, torch.nn):
        torch.manual_seed(3)
        modules.append(getattr(nn, name)(*args, **kwargs))
    x = torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(4))
    if name.startswith("Lazy"):
        for module in modules:
            torch.manual_seed(3)
            module.eval()
            module(x)
            module.train()
    return *modules, x


def outputs(module, x):
    """Output and gradients of the parameters and the input, flat."""
    x = x.clone().requires_grad_()
    leaves = torch.utils._pytree.tree_leaves(module(x))
    grads = [torch.ones_like(y) for y in leaves if y.requires_grad]
    wanted = [x, *module.parameters()]
    gradients = torch.autograd.grad([y for y in leaves if y.requires_grad], wanted, grads, allow_unused=True)
    return [y.detach() for y in leaves] + [g for g in gradients if g is not None]


def assert_alike(a, b, exactly=False):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        torch.testing.assert_close(
            x, y, **({"rtol": 0, "atol": 0} if exactly else {"rtol": 2e-5, "atol": 2e-5})
        )


@each_module
def test_construction_draws_the_same_parameters(name, args, kwargs, shape):
    ours, native, _ = build(name, args, kwargs, shape)
    for (key, a), (other, b) in zip(ours.state_dict().items(), native.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(a, b)


@each_module
def test_representation(name, args, kwargs, shape):
    ours, native, _ = build(name, args, kwargs, shape)
    assert repr(ours) == repr(native)
    assert repr(getattr(d2lfast.nn, name)(*args, **kwargs)) == repr(getattr(torch.nn, name)(*args, **kwargs))


@each_module
def test_lazy_module_becomes_ours(name, args, kwargs, shape):
    ours, native, _ = build(name, args, kwargs, shape)
    assert type(ours) is getattr(d2lfast.nn, type(native).__name__)


@each_module
def test_train_and_eval(name, args, kwargs, shape):
    """Two steps of training move the buffers alike; eval then uses them."""
    ours, native, x = build(name, args, kwargs, shape)
    for factor in (1.0, 3.0):
        assert_alike(outputs(ours, x * factor + factor), outputs(native, x * factor + factor))
    assert_alike(list(ours.buffers()), list(native.buffers()))
    ours.eval()
    native.eval()
    assert not ours.training
    assert_alike(outputs(ours, x), outputs(native, x))


@each_module
def test_state_dict_both_ways(name, args, kwargs, shape):
    ours, native, x = build(name, args, kwargs, shape)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p))
    assert native.load_state_dict(ours.state_dict(), strict=True).missing_keys == []
    assert_alike(outputs(ours, x), outputs(native, x))
    fresh = build(name, args, kwargs, shape)[0]
    fresh.load_state_dict(native.state_dict(), strict=True)
    native.eval()
    fresh.eval()
    assert_alike(outputs(fresh, x), outputs(native, x))


@each_module
def test_copies(name, args, kwargs, shape):
    ours, _, x = build(name, args, kwargs, shape)
    ours.eval()
    expected = outputs(ours, x)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = (
        copy.deepcopy(ours),
        copy.copy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(buffer, weights_only=False),
    )
    for other in copies:
        assert type(other) is type(ours)
        assert not other.training
        assert_alike(outputs(other, x), expected, exactly=True)
    for p, q in zip(ours.parameters(), copies[0].parameters(), strict=True):
        assert p.data_ptr() != q.data_ptr()


@each_module
def test_dtypes_and_memory_format(name, args, kwargs, shape):
    ours, native, x = build(name, args, kwargs, shape)
    ours.eval()
    native.eval()
    assert_alike(outputs(ours.double(), x.double()), outputs(native.double(), x.double()))
    for module in (ours, native):
        module.float().to(memory_format=torch.channels_last)
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    a, b = outputs(ours, x), outputs(native, x)
    assert_alike(a, b)
    if x.dim() == 4:
        assert a[0].is_contiguous(memory_format=torch.channels_last)


def test_padding_modes_of_conv2d():
    for mode in ("zeros", "reflect", "replicate", "circular"):
        for padding in (1, (2, 1), "same"):
            ours, native, x = build(
                "Conv2d", (3, 4, 3), {"padding": padding, "padding_mode": mode}, (2, 3, 7, 8)
            )
            assert_alike(outputs(ours, x), outputs(native, x))
            assert_alike(outputs(ours, x[0]), outputs(native, x[0]))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
class TestSequences:
    def both(self, name, *args, **kwargs):
        return build(name, args, kwargs, (7, 3, args[0]))

    def state(self, name, *shape):
        h = torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(5))
        return (h, torch.tanh(h.flip(0))) if name == "LSTM" else h

    def test_given_state(self, name):
        ours, native, x = self.both(name, 5, 6, num_layers=2, bidirectional=True)
        state = self.state(name, 4, 3, 6)
        results = [torch.utils._pytree.tree_leaves(m(x, state)) for m in (ours, native)]
        assert_alike(*results)

    def test_packed_sequence(self, name):
        ours, native, x = self.both(name, 5, 6, num_layers=2, bidirectional=True)
        for lengths, ordered in (([7, 4, 1], True), ([2, 7, 5], False)):
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=ordered)
            (a, ha), (b, hb) = ours(packed), native(packed)
            assert_alike(
                [a.data, *torch.utils._pytree.tree_leaves(ha)], [b.data, *torch.utils._pytree.tree_leaves(hb)]
            )
            assert torch.equal(a.batch_sizes, b.batch_sizes)

    def test_dropout(self, name):
        """In eval none; in training of all layers but the last, and about the right share."""
        ours, native, x = self.both(name, 5, 6, num_layers=2, dropout=0.5)
        train = [m(x)[0] for m in (ours, ours)]
        assert not torch.equal(*train)
        ours.eval()
        native.eval()
        assert_alike(outputs(ours, x), outputs(native, x))

    def test_errors(self, name):
        ours, native, x = self.both(name, 5, 6)
        bad = (
            (x[..., :4],),
            (x[0, 0],),
            (x.unsqueeze(0),),
            (x, self.state(name, 2, 3, 6)),
            (x, self.state(name, 1, 3, 5)),
            (x, self.state(name, 1, 6)),
            (x.double(),),
        )
        for arguments in bad:
            with pytest.raises(Exception) as expected:
                native(*arguments)
            with pytest.raises(expected.type):
                ours(*arguments)

    def test_second_derivative(self, name):
        ours, native, x = self.both(name, 3, 2, num_layers=2)
        results = []
        for m in (ours.double(), native.double()):
            y = x[:3].double().requires_grad_()
            g = torch.autograd.grad(m(y)[0].square().sum(), y, create_graph=True)[0]
            results.append(torch.autograd.grad(g.square().sum(), [y, *m.parameters()]))
        assert_alike(*results)


@each_module
@pytest.mark.parametrize("what", ["None", "number", "list"])
def test_what_is_no_tensor(what, name, args, kwargs, shape):
    ours, native, x = build(name, args, kwargs, shape)
    bad = {"None": None, "number": 3, "list": [x]}[what]
    with pytest.raises((TypeError, AttributeError)) as wanted:
        native(bad)
    with pytest.raises(wanted.type):
        ours(bad)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("kind", ["Conv2d", "MaxPool2d", "AvgPool2d"])
def test_sizes_are_read_as_torch_reads_them(kind, name):
    sizes = ("2", 1.5, True, None, (1,), (1, 1.0), (1, 2, 3), (None, 1), [], [1, 1])
    for size in (*sizes, *map(torch.tensor, (1, 1.0, [1, 1])), (torch.tensor(1), 1)):
        outcomes = []
        for nn in (torch.nn, d2lfast.nn):
            layer = getattr(nn, kind)(*((2, 2, 2) if kind == "Conv2d" else (2,)))
            setattr(layer, name, size)
            try:
                outcomes.append(layer(torch.ones(2, 2, 6, 6)).shape)
            except (TypeError, RuntimeError, ValueError) as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1], size


def test_the_state_of_an_lstm_cell_is_a_pair():
    with pytest.raises(TypeError):
        d2lfast.nn.LSTMCell(3, 4)(torch.ones(2, 3), torch.ones(2, 4))
