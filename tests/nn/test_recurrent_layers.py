"""What the whole-sequence layers do beyond the samples of test_modules.py and test_module_info.py."""

import copy
import itertools
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import d2lfast
from d2lfast.nn import recurrent_layers
from d2lfast.testing.cases import DEVICE

NAMES = ("RNN", "GRU", "LSTM")


def twins(name, *args, **kwargs):
    torch.manual_seed(0)
    native = getattr(torch.nn, name)(*args, **kwargs)
    ours = getattr(d2lfast.nn, name)(*args, **kwargs)
    ours.load_state_dict(native.state_dict())
    return ours, native


def state(name, *shape, dtype=torch.float32):
    h = torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(5)).to(dtype)
    return (h, torch.tanh(h.flip(0))) if name == "LSTM" else h


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def assert_alike(a, b, **tolerance):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize("name", NAMES)
class TestGeneration:
    """One step at a time with gradients off has an entry of its own."""

    def taken(self, monkeypatch, call):
        """The result of `call`, and whether the short entry gave it."""
        results = []
        original = recurrent_layers._generate

        def spy(*args):
            results.append(original(*args))
            return results[-1]

        monkeypatch.setattr(recurrent_layers, "_generate", spy)
        value = call()
        monkeypatch.setattr(recurrent_layers, "_generate", original)
        return value, any(result is not None for result in results)

    @pytest.mark.parametrize("layers", [1, 3])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_steps_are_those_of_torch(self, name, layers, bias, dtype, monkeypatch):
        for batch, hidden in ((1, 5), (3, 32), (1, 300)):
            ours, native = twins(name, 7, hidden, layers, bias=bias, dtype=dtype)
            a = b = state(name, layers, batch, hidden, dtype=dtype)
            with torch.no_grad():
                for x in torch.randn(4, 1, batch, 7, dtype=dtype):
                    (y, a), taken = self.taken(monkeypatch, lambda m=ours, x=x, a=a: m(x, a))
                    z, b = native(x, b)
                    assert taken
                    assert_alike((y, a), (z, b), rtol=1e-5, atol=1e-5)
            with torch.inference_mode():
                x = torch.randn(1, batch, 7, dtype=dtype)
                assert self.taken(monkeypatch, lambda m=ours, x=x, b=b: m(x, b))[1]

    def test_left_to_the_operator(self, name, monkeypatch):
        """Gradients, autocast, modes, longer input, other layouts, other layers: the same results as ever."""
        ours, native = twins(name, 7, 5, 2, dropout=0.5)
        x, h = torch.randn(1, 2, 7), state(name, 2, 2, 5)
        result, taken = self.taken(monkeypatch, lambda: ours.eval()(x, h))
        assert not taken
        assert leaves(result)[0].requires_grad
        ours.train()
        with torch.no_grad():
            assert not self.taken(monkeypatch, lambda: ours(x, h))[1]  # dropout
            ours.eval()
            native.eval()
            assert self.taken(monkeypatch, lambda: ours(x, h))[1]
            for input, initial in (
                (torch.randn(3, 2, 7), h),
                (torch.randn(1, 7), state(name, 2, 5)),
                (torch.randn(1, 7, 2).transpose(1, 2), h),
                (torch.randn(1, 9, 7), state(name, 2, 9, 5)),
            ):
                result, taken = self.taken(monkeypatch, lambda i=input, s=initial: ours(i, s))
                assert not taken
                assert_alike(result, native(input, initial))
            with torch.autocast(DEVICE, torch.bfloat16):
                result, taken = self.taken(monkeypatch, lambda: ours(x, h))
                assert not taken
                assert leaves(result)[0].dtype == native(x, h)[0].dtype

    def test_current_parameters_are_used(self, name):
        ours, native = twins(name, 7, 5)
        x, h = torch.randn(1, 2, 7), state(name, 1, 2, 5)
        other = {key: value * 2 for key, value in native.state_dict().items()}
        with torch.no_grad():
            mine = torch.func.functional_call(ours, other, (x, h))
            assert_alike(mine, torch.func.functional_call(native, other, (x, h)))
            for module in (ours, native):
                torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
            assert_alike(ours(x, h), native(x, h))

    def test_bad_states_raise(self, name):
        ours, native = twins(name, 7, 5)
        x = torch.randn(1, 2, 7)
        with torch.no_grad():
            for shape in ((1, 2, 4), (2, 2, 5), (1, 3, 5)):
                for module in (native, ours):
                    with pytest.raises(RuntimeError):
                        module(x, state(name, *shape))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_dtypes_under_autocast(name, kind):
    dtype = getattr(torch, kind)
    for input, initial in itertools.product(
        (torch.float32, torch.bfloat16), (None, torch.float32, torch.bfloat16)
    ):
        ours, native = twins(name, 4, 5, dtype=dtype)
        x = torch.randn(3, 2, 4).to(input)
        h = None if initial is None else state(name, 1, 2, 5, dtype=initial)
        with torch.autocast(DEVICE, torch.bfloat16):
            mine, theirs = leaves(ours(x, h)), leaves(native(x, h))
        assert [t.dtype for t in mine] == [t.dtype for t in theirs], (input, initial)
        assert_alike(mine, theirs, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_tokens(name):
    """int64 input is one-hot input: batched, batch_first, unbatched and packed."""
    ours, native = twins(name, 11, 6, 2, bidirectional=True)
    tokens = torch.randint(0, 11, (5, 3))
    rows = torch.nn.functional.one_hot(tokens, 11).float()
    assert_alike(ours(tokens), native(rows))
    assert_alike(ours(tokens[:, 0]), native(rows[:, 0]))
    ours.batch_first = native.batch_first = True
    assert_alike(ours(tokens), native(rows))
    ours.batch_first = native.batch_first = False
    lengths = torch.tensor([2, 5, 3], device="cpu")
    mine, theirs = (pack_padded_sequence(x, lengths, enforce_sorted=False) for x in (tokens, rows))
    (a, s), (b, t) = ours(mine), native(theirs)
    assert_alike((a.data, s), (b.data, t))


def saved_bytes(module, x):
    """Bytes of distinct storages that autograd keeps, parameters and input apart."""
    kept = {}
    given = {p.untyped_storage().data_ptr() for p in (x, *module.parameters())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(x)
    return sum(kept.values()), result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_is_saved_than_torch_saves(name, dtype):
    """What torch's own graph keeps, or for a fused native LSTM its outputs, gates and cell states."""
    ours, native = twins(name, 28, 32, dtype=dtype)
    x = torch.randn(20, 16, 28).to(dtype)
    mine, theirs = (saved_bytes(module, x)[0] for module in (ours, native))
    floor = 20 * 16 * 32 * 4 * 7 if name == "LSTM" else 0
    assert mine <= max(theirs, floor), (mine, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    ours, _ = twins(name, 4, 5, 2, batch_first=True)
    x = torch.randn(2, 3, 4)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert_alike(other(x), ours(x))


@pytest.mark.parametrize("name", NAMES)
@torch._dynamo.config.patch(allow_rnn=True)  # else dynamo refuses torch's recurrent modules and ours
def test_compile_and_export(name):
    ours, _ = twins(name, 4, 5, 2, bidirectional=True)
    x = torch.randn(3, 2, 4)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    expected = ours(x)
    assert_alike(compiled(x), expected)
    with torch.no_grad():
        h = state(name, 4, 2, 5)
        assert_alike(compiled(x[:1], h), ours(x[:1], h))
    exported = torch.export.export(ours, (x,)).module()
    assert_alike(exported(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_back_propagation(name):
    """A detached state stops the gradient, a kept one carries it."""
    results = []
    for module in twins(name, 4, 5):
        x = torch.randn(2, 3, 2, 4, generator=torch.Generator(DEVICE).manual_seed(1)).requires_grad_()
        _, h = module(x[0])
        detached = tuple(s.detach() for s in h) if name == "LSTM" else h.detach()
        cut = torch.autograd.grad(module(x[1], detached)[0].sum(), x, retain_graph=True)[0]
        assert not cut[0].any()
        results.append((cut, torch.autograd.grad(module(x[1], h)[0].sum(), x)[0]))
    assert_alike(*results)
