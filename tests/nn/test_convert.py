import copy
import gc
import io
import pickle
import threading
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import d2lfast
from d2lfast import convert, report, revert
from d2lfast.convert import LAYERS, Row
from d2lfast.nn import unfused
from d2lfast.testing.cases import DEVICE

IMAGE = (2, 4, 9, 8)
MAKERS = {
    "Conv2d": (lambda ns: ns.Conv2d(4, 6, 3, padding=1, groups=2), IMAGE),
    "LazyConv2d": (lambda ns: ns.LazyConv2d(6, 3), IMAGE),
    "MaxPool2d": (lambda ns: ns.MaxPool2d(2, ceil_mode=True), IMAGE),
    "AvgPool2d": (lambda ns: ns.AvgPool2d(3, 2, padding=1), IMAGE),
    "AdaptiveAvgPool2d": (lambda ns: ns.AdaptiveAvgPool2d((3, None)), IMAGE),
    "AdaptiveMaxPool2d": (lambda ns: ns.AdaptiveMaxPool2d(2), IMAGE),
    "BatchNorm1d": (lambda ns: ns.BatchNorm1d(4), (5, 4)),
    "BatchNorm2d": (lambda ns: ns.BatchNorm2d(4), IMAGE),
    "LazyBatchNorm1d": (lambda ns: ns.LazyBatchNorm1d(), (5, 4)),
    "LazyBatchNorm2d": (lambda ns: ns.LazyBatchNorm2d(), IMAGE),
    "SyncBatchNorm": (lambda ns: ns.SyncBatchNorm(4), IMAGE),
    "RNNCell": (lambda ns: ns.RNNCell(4, 3, nonlinearity="relu"), (5, 4)),
    "GRUCell": (lambda ns: ns.GRUCell(4, 3), (5, 4)),
    "LSTMCell": (lambda ns: ns.LSTMCell(4, 3, bias=False), (5, 4)),
    "RNN": (lambda ns: ns.RNN(4, 3, 2, bidirectional=True), (6, 5, 4)),
    "GRU": (lambda ns: ns.GRU(4, 3, batch_first=True), (6, 5, 4)),
    "LSTM": (lambda ns: ns.LSTM(4, 3, 2), (6, 5, 4)),
}
INPLACE = pytest.mark.parametrize("inplace", [False, True])


def first(output):
    while isinstance(output, tuple):
        output = output[0]
    return output


def ours(layer):
    name = type(layer).__name__
    return type(layer) is getattr(d2lfast.nn, name) and type(layer) is not getattr(nn, name)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4 * 9, 3)
        self.absent = None
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.head(self.features(x).flatten(1)) * self.scale


def batch():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator(DEVICE).manual_seed(0))


def test_all_layers_have_a_case():
    assert set(MAKERS) == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
class TestEveryLayer:
    def test_twins_add_no_state(self, name):
        make, _ = MAKERS[name]
        assert vars(make(d2lfast.nn)).keys() == vars(make(nn)).keys()

    @INPLACE
    def test_swap_and_back(self, name, inplace):
        make, _ = MAKERS[name]
        native = make(nn)
        state, tensors = copy.copy(vars(native)), native.state_dict(keep_vars=True)
        converted = convert(native, inplace)
        assert (converted is native) is inplace
        assert type(converted) is getattr(d2lfast.nn, name)
        if not inplace:
            assert type(native) is getattr(nn, name)
        assert vars(converted).keys() == state.keys()
        after = converted.state_dict(keep_vars=True)
        assert list(after) == list(tensors)
        assert all(after[key] is tensors[key] for key in tensors)
        assert repr(converted) == repr(native)
        back = revert(converted, inplace)
        assert type(back) is getattr(nn, name)
        assert (back is converted) is inplace

    def test_computes_the_same(self, name):
        make, shape = MAKERS[name]
        torch.manual_seed(0)
        native = make(nn).double()
        x = torch.randn(shape, dtype=torch.float64)
        expected = first(copy.deepcopy(native)(x)) if not name.startswith("Lazy") else None
        converted = convert(native)
        result = first(converted(x))
        assert ours(converted)  # a lazy layer too, once it is materialised
        if expected is None:
            expected = first(copy.deepcopy(native)(x))
        torch.testing.assert_close(result, expected)

    def test_copy_and_pickle_before_and_after(self, name):
        make, shape = MAKERS[name]
        x = torch.randn(shape)
        model = nn.Sequential(make(nn))
        if not name.startswith("Lazy"):
            model.eval()
        for source in (model, convert(model)):
            clones = [pickle.loads(pickle.dumps(source)), save_and_load(source)]
            if not name.startswith("LazyBatchNorm"):  # torch cannot copy an uninitialised buffer
                clones.append(copy.deepcopy(source))
            for clone in clones:
                assert type(clone[0]) is type(source[0])
                result = convert(clone)
                assert first(result(x)).shape == first(convert(clone)(x)).shape
                assert ours(result[0])
                if not name.startswith("Lazy"):
                    torch.testing.assert_close(first(result(x)), first(source(x)))


def save_and_load(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@INPLACE
class TestKept:
    def test_structure_parameters_and_buffers(self, inplace):
        model = Net()
        before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        keys = list(model.state_dict())
        types = [type(module) for module in model.modules()]
        new = convert(model, inplace)
        after = {**dict(new.named_parameters()), **dict(new.named_buffers())}
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)
        assert list(new.state_dict()) == keys
        assert new.absent is None
        assert [ours(new.features[i]) for i in range(4)] == [True, True, False, True]
        if not inplace:
            assert [type(module) for module in model.modules()] == types
            assert not {id(m) for m in model.modules()} & {id(m) for m in new.modules()}
        model.eval()
        new.eval()
        torch.testing.assert_close(new(batch()), revert(new)(batch()))

    def test_training_flags_requires_grad_and_attributes(self, inplace):
        model = Net()
        model.features[1].eval()
        model.features[0].weight.requires_grad_(False)
        model.features[0].note = "mine"
        model.features.double()
        new = convert(model, inplace)
        assert [module.training for module in new.modules()] == [True, True, True, False, True, True, True]
        assert not new.features[0].weight.requires_grad
        assert new.features[0].bias.requires_grad
        assert new.features[0].note == "mine"
        assert new.features[0].weight.dtype == torch.float64

    def test_layers_used_twice_stay_one(self, inplace):
        layer = nn.Conv2d(3, 3, 3, padding=1)
        model = nn.Sequential(layer, nn.Sequential(layer), layer)
        new = convert(model, inplace)
        assert new[0] is new[2]
        assert new[0] is new[1][0]
        assert ours(new[0])
        assert len(list(new.parameters())) == 2
        assert [row.path for row in report(new).swapped] == ["0", "1.0", "2"]

    def test_tied_parameters_stay_tied(self, inplace):
        a, b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        b.weight = a.weight
        new = convert(nn.Sequential(a, b), inplace)
        assert new[0].weight is new[1].weight is a.weight

    def test_hooks_of_every_kind(self, inplace):
        calls = []

        def note(name):
            return lambda *args, **kwargs: calls.append(name)

        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2))
        layer = model[0]
        layer.register_forward_pre_hook(lambda module, args: calls.append(("pre", ours(module))))
        layer.register_forward_pre_hook(lambda m, args, kwargs: calls.append("pre kwargs"), with_kwargs=True)
        layer.register_forward_hook(lambda module, args, out: out * 2)
        layer.register_forward_hook(lambda m, args, kwargs, out: calls.append("fwd kwargs"), with_kwargs=True)
        layer.register_forward_hook(note("always"), always_call=True)
        layer.register_full_backward_pre_hook(note("backward pre"))
        layer.register_full_backward_hook(note("backward"))
        layer.register_state_dict_pre_hook(lambda module, *rest: calls.append(("state pre", ours(module))))
        layer.register_state_dict_post_hook(note("state"))
        layer.register_load_state_dict_pre_hook(lambda m, *rest: calls.append(("load pre", ours(m))))
        layer.register_load_state_dict_post_hook(lambda m, keys: calls.append(("load post", ours(m))))
        expected = nn.functional.avg_pool2d(nn.functional.conv2d(batch(), layer.weight, layer.bias) * 2, 2)
        new = convert(model, inplace)
        x = batch().requires_grad_()
        result = new(x)
        torch.testing.assert_close(result, expected)
        assert calls == [("pre", True), "pre kwargs", "fwd kwargs", "always"]
        calls.clear()
        result.sum().backward()
        assert calls == ["backward pre", "backward"]
        calls.clear()
        new.load_state_dict(new.state_dict())
        assert calls == [("state pre", True), "state", ("load pre", True), ("load post", True)]

    def test_hooks_that_are_methods_follow_the_model(self, inplace):
        class Recorder(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(1, 2, 3)
                self.seen = []
                self.handle = self.conv.register_forward_hook(self.see)

            def see(self, module, args, output):
                self.seen.append(module)

            def forward(self, x):
                return self.conv(x)

        model = Recorder()
        new = convert(model, inplace)
        new(batch())
        assert new.seen == [new.conv]
        assert model.seen == ([new.conv] if inplace else [])
        new.handle.remove()
        new(batch())
        assert len(new.seen) == 1
        if not inplace:
            model(batch())
            assert model.seen == [model.conv]

    def test_handles_of_the_caller_stay_with_the_original(self, inplace):
        calls = []
        model = nn.Conv2d(1, 2, 3)
        handle = model.register_forward_hook(lambda *args: calls.append(1))
        new = convert(model, inplace)
        handle.remove()
        new(batch())
        assert len(calls) == (0 if inplace else 1)

    def test_modules_in_plain_containers(self, inplace):
        class Listed(nn.Module):
            def __init__(self):
                super().__init__()
                self.order = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)]
                self.by_name = OrderedDict(conv=self.order[0], pair=(self.order[1], 7))
                for index, layer in enumerate(self.order):
                    self.add_module(str(index), layer)

        new = convert(Listed(), inplace)
        assert new.order[0] is new._modules["0"] is new.by_name["conv"]
        assert new.by_name["pair"] == (new._modules["1"], 7)
        assert ours(new.order[0])

    def test_attributes_that_cannot_be_copied(self, inplace):
        model = Net()
        model.lock, model.kept = threading.Lock(), model(batch())
        new = convert(model, inplace)
        assert new.lock is model.lock
        assert new.kept is model.kept

    def test_a_layer_as_the_root(self, inplace):
        layer = nn.Conv2d(1, 2, 3)
        new = convert(layer, inplace)
        assert ours(new)
        assert new.weight is layer.weight
        assert [(row.path, row.status) for row in report(new)] == [("", "swapped")]

    def test_converting_twice_and_reverting_twice(self, inplace):
        new = convert(convert(Net(), inplace), inplace)
        assert len(report(new).swapped) == 3
        native = revert(revert(new, inplace), inplace)
        assert not report(native).swapped
        assert all(type(module).__module__.startswith("torch.nn") for module in native.features)

    def test_pruned_and_weight_normed_layers_of_the_old_kind(self, inplace):
        with pytest.warns(FutureWarning):
            layer = nn.utils.weight_norm(nn.Conv2d(1, 2, 3))
        pruned = prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", amount=0.5)
        model = nn.Sequential(layer, pruned)
        expected = model(batch())
        new = convert(model, inplace)
        assert ours(new[0])
        assert ours(new[1])
        torch.testing.assert_close(new(batch()), expected)
        assert new[0].weight_g is layer.weight_g


def test_training_the_copy_trains_the_original():
    model = Net()
    new = convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.features[0].weight.clone()
    new(batch()).sum().backward()
    optimizer.step()
    assert not torch.equal(model.features[0].weight, before)
    assert new.features[0].weight is model.features[0].weight
    assert model.features[1].num_batches_tracked == 1


def test_the_copy_is_independent_in_flags_and_lists():
    model = Net()
    model.history = [1]
    new = convert(model)
    new.eval()
    new.history.append(2)
    new.features.add_module("extra", nn.Identity())
    new.register_buffer("more", torch.ones(1), persistent=False)
    assert model.training
    assert model.features[0].training
    assert model.history == [1]
    assert len(model.features) == 4
    assert "more" not in model._buffers
    assert "more" not in model._non_persistent_buffers_set


def test_the_copy_does_not_keep_the_original_alive():
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.GRU(2, 2))
    model[0].register_load_state_dict_pre_hook(lambda *args: None)
    old = weakref.ref(model), weakref.ref(model[0])
    new = convert(model)
    del model
    gc.collect()
    assert [reference() for reference in old] == [None, None]
    new.load_state_dict(new.state_dict())


class TestLazy:
    @INPLACE
    def test_materialises_after_conversion(self, inplace):
        model = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyBatchNorm1d())
        new = convert(model, inplace)
        assert ours(new[0])
        assert type(new[0]) is d2lfast.nn.LazyConv2d
        new(batch())
        assert [type(new[i]) for i in (0, 1, 3)] == [
            d2lfast.nn.Conv2d,
            d2lfast.nn.BatchNorm2d,
            d2lfast.nn.BatchNorm1d,
        ]
        assert new[0].weight.shape == (3, 1, 3, 3)
        assert not new[0]._forward_pre_hooks
        assert not new[0]._load_state_dict_pre_hooks
        if not inplace:
            assert type(model[0]) is nn.LazyConv2d
            assert model[0].weight is new[0].weight
            model.eval()
            new.eval()
            torch.testing.assert_close(model(batch()), new(batch()))
            assert type(model[0]) is nn.Conv2d

    def test_loads_a_state_before_the_first_batch(self):
        source = nn.Sequential(nn.Conv2d(1, 3, 3))
        new = convert(nn.Sequential(nn.LazyConv2d(3, 3)))
        new.load_state_dict(source.state_dict())
        torch.testing.assert_close(new(batch()), source(batch()))

    def test_reverts(self):
        native = revert(nn.Sequential(d2lfast.nn.LazyConv2d(3, 3)))
        assert type(native[0]) is nn.LazyConv2d
        native(batch())
        assert type(native[0]) is nn.Conv2d


class TestLeftAlone:
    def check(self, layer, reason, run=True):
        model = nn.Sequential(layer, nn.MaxPool2d(2))
        kind = type(layer)
        before = report(model)
        for inplace in (False, True):
            new = convert(model, inplace)
            assert type(new[0]) is kind
            assert ours(new[1])
            row = report(new).rows[0]
            assert (row.path, row.status) == ("0", "native")
            assert reason in row.reason
            if run:
                torch.testing.assert_close(new(batch()), model(batch()))
        assert reason in before.rows[0].reason

    def test_subclass(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return super().forward(x) * 2

        self.check(Doubled(1, 2, 3), "a subclass of torch.nn.Conv2d")

    def test_parametrized(self):
        self.check(parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), "a parametrization changed its class")
        layer = nn.Conv2d(1, 2, 3)
        parametrize.register_parametrization(layer, "weight", nn.Tanh())
        self.check(layer, "a parametrization changed its class from torch.nn.Conv2d")

    def test_forward_replaced_on_the_instance(self):
        layer = nn.Conv2d(1, 2, 3)
        layer.forward = lambda x: x
        self.check(layer, "forward was replaced")

    def test_data_parallel(self):
        self.check(nn.DataParallel(nn.Conv2d(1, 2, 3)), "before wrapping it")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_script_module(self):
        self.check(torch.jit.script(nn.Conv2d(1, 2, 3)), "before scripting it")

    def test_compiled_module(self):
        self.check(
            torch.compile(nn.Conv2d(1, 2, 3), backend="eager"), "wrapped in OptimizedModule", run=False
        )

    def test_layers_that_d2lfast_has_not(self):
        self.check(nn.Conv3d(1, 1, 3), "no layer for it", run=False)
        self.check(nn.Identity(), "no layer for it")


def test_graph_module():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    graph = torch.fx.symbolic_trace(model)
    new = convert(graph)
    assert ours(new.get_submodule("0"))
    assert type(graph.get_submodule("0")) is nn.Conv2d
    torch.testing.assert_close(new(batch()), model(batch()))


def test_a_compiled_method_is_dropped_by_the_copy():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    model.compile(backend="eager")
    new = convert(model)
    assert new._compiled_call_impl is None
    torch.testing.assert_close(new(batch()), nn.functional.conv2d(batch(), *model.parameters()))


def test_report():
    model = Net()
    rows = {row.path: row for row in report(model)}
    assert list(rows) == ["features.0", "features.1", "features.2", "features.3", "head"]
    assert rows["features.0"] == Row("features.0", "torch.nn.Conv2d", "native", "convert() would swap it")
    assert rows["head"].reason == "d2lfast has no layer for it"
    after = report(convert(model))
    assert [row.path for row in after.swapped] == ["features.0", "features.1", "features.3"]
    assert [row.path for row in after.native] == ["head"]
    assert after.fused == (Row("features.2", "torch.nn.ReLU", "fused", "runs in features.1"),)
    assert after.swapped[0].type == "d2lfast.nn.Conv2d"
    assert len(after) == 5
    lines = str(after).splitlines()
    assert lines[0].split() == ["layer", "type", "status", "reason"]
    assert lines[1].split() == ["features.0", "d2lfast.nn.Conv2d", "swapped"]
    assert lines[-1] == "3 swapped, 1 fused, 1 native"
    assert pickle.loads(pickle.dumps(after)) == after


class TestFusion:
    def net(self):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Tanh())

    def reasons(self, model):
        return {row.path: (row.status, row.reason) for row in report(model) if "Conv" not in row.type}

    @INPLACE
    def test_activations_join_and_part(self, inplace):
        model = self.net()
        keys, layers = list(model.state_dict()), list(model)
        assert report(model).rows[2].reason == "convert() would fuse it"
        new = convert(model, inplace)
        assert [row.path for row in report(new).fused] == ["2", "4"]
        assert list(new.state_dict()) == keys
        assert [type(layer).__name__ for layer in new] == [type(layer).__name__ for layer in layers]
        back = revert(new, inplace)
        assert type(back) is nn.Sequential
        for training in (True, False):
            results = [copy.deepcopy(m.train(training))(batch()) for m in (new, revert(new))]
            torch.testing.assert_close(*results)

    @INPLACE
    def test_opting_out(self, inplace):
        new = convert(self.net(), inplace, fuse=False)
        assert type(new) is nn.Sequential
        assert not report(new).fused
        assert len(report(new).swapped) == 3

    def test_one_activation_at_several_places(self):
        relu = nn.ReLU()
        model = nn.Sequential(nn.Conv2d(1, 2, 3), relu, nn.Conv2d(2, 2, 3), relu, nn.MaxPool2d(2), relu)
        new = convert(model)
        assert new[1] is new[3] is new[5]
        assert [row.path for row in report(new).fused] == ["1", "3"]
        torch.testing.assert_close(new(batch()), model(batch()))

    def test_what_is_not_fused_and_why(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return super().forward(x) * 2

        model = nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.ReLU(),
            Doubled(2, 2, 1),
            nn.ReLU(),
            nn.LazyConv2d(3, 1),
            nn.ReLU(),
            nn.GELU(),
        )
        model[1].register_forward_hook(lambda *args: None)
        new = convert(model)
        reasons = {row.path: row.reason for row in report(new)}
        assert "hooks" in reasons["1"]
        assert "a subclass" in reasons["3"]
        assert "first batch" in reasons["5"]
        assert "no layer" in reasons["6"]
        assert not report(new).fused
        torch.testing.assert_close(new(batch()), model(batch()))
        assert [row.path for row in report(new).fused] == ["5"]

    def test_a_subclass_of_sequential_is_left_alone(self):
        class Reversed(nn.Sequential):
            def forward(self, x):
                for layer in reversed(self):
                    x = layer(x)
                return x

        model = Reversed(nn.ReLU(), nn.Conv2d(1, 2, 3))
        new = convert(model)
        assert type(new) is Reversed
        torch.testing.assert_close(new(batch()), model(batch()))

    def test_layers_that_are_taken_one_by_one(self):
        class Taps(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())

            def forward(self, x):
                before = self.net[1](self.net[0](x))
                return before, self.net(x), self.net[:2](x)

        model = Taps().eval()
        for ours_, native in zip(convert(model)(batch()), model(batch()), strict=True):
            torch.testing.assert_close(ours_, native)

    @INPLACE
    def test_unfused_twins(self, inplace):
        model = nn.Sequential(unfused.ConvNormAct(1, 3, 3), unfused.Conv2dAct(3, 2, 1))
        expected = model.eval()(batch())
        new = convert(model, inplace)
        assert [type(m) for m in new] == [d2lfast.nn.ConvNormAct, d2lfast.nn.Conv2dAct]
        assert type(new[0].bn) is d2lfast.nn.BatchNormAct2d
        assert [row.status for row in report(new)] == ["swapped"] * 3
        torch.testing.assert_close(new(batch()), expected)
        assert type(revert(new, inplace)[0].bn) is unfused.BatchNormAct2d


def test_report_of_a_subclass_of_ours():
    class Mine(d2lfast.nn.Conv2d):
        pass

    row = report(nn.Sequential(Mine(1, 2, 3))).rows[0]
    assert row.status == "swapped"
    assert "subclass" in row.reason
    assert type(revert(nn.Sequential(Mine(1, 2, 3)))[0]) is Mine


@pytest.mark.parametrize("call", [convert, revert])
def test_only_modules(call):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
        call([nn.Conv2d(1, 2, 3)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_are_kept():
    layer = convert(nn.Conv2d(1, 2, 3).cuda())
    assert layer.weight.is_cuda
    assert layer(batch().cuda()).is_cuda
