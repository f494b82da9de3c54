"""Fused layers equal the sequences that they stand for."""

import copy
import pickle

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast.models import blocks
from d2lfast.nn import unfused
from d2lfast.testing.cases import DEVICE

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
each_activation = pytest.mark.parametrize("act", ACTIVATIONS)
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def gradients(module, *inputs):
    """Output, gradients of the inputs and the parameters, and buffers."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = module(*leaves)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    wanted = [*leaves, *module.parameters()]
    return [output, *torch.autograd.grad((output * weight).sum(), wanted), *module.buffers()]


def twins(make, dtype=torch.float64):
    """Ours, and the unfused sequence with the same state."""
    ours, native = make(d2lfast.nn).to(dtype), make(nn).to(dtype)
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    native.load_state_dict(ours.state_dict(), strict=True)
    return ours, native


def image(*shape, dtype=torch.float64, layout=torch.contiguous_format):
    return torch.randn(shape, dtype=dtype).to(memory_format=layout)


@each_activation
@LAYOUTS
@pytest.mark.parametrize("training", [True, False])
class TestEqualsItsSequence:
    def check(self, make, training, *inputs):
        for module in (pair := twins(make)):
            module.train(training)
        torch.testing.assert_close(gradients(pair[0], *inputs), gradients(pair[1], *inputs))

    def test_norm_act(self, act, layout, training):
        x = image(3, 6, 5, 4, layout=layout)
        self.check(lambda layers: blocks.norm_act(layers, 6, act, eps=1e-3), training, x)

    def test_norm_act_with_residual(self, act, layout, training):
        x, residual = (image(3, 6, 5, 4, layout=layout) for _ in range(2))
        self.check(lambda layers: blocks.norm_act(layers, 6, ACTIVATIONS[act]), training, x, residual)

    def test_residual_in_the_other_layout(self, act, layout, training):
        x, residual = image(3, 6, 5, 4), image(3, 6, 5, 4, layout=layout)
        self.check(lambda layers: blocks.norm_act(layers, 6, act), training, x, residual)

    def test_residual_that_is_broadcast(self, act, layout, training):
        x, residual = image(3, 6, 5, 4, layout=layout), image(1, 6, 1, 1)
        self.check(lambda layers: blocks.norm_act(layers, 6, act), training, x, residual)

    def test_conv_act(self, act, layout, training):
        x = image(2, 4, 9, 8, layout=layout)
        self.check(lambda layers: blocks.conv_act(layers, 4, 6, 3, 2, 1, act_layer=act), training, x)
        self.check(
            lambda layers: blocks.conv_act(layers, 4, 6, 3, padding="same", groups=2, act_layer=act),
            training,
            x,
        )

    @pytest.mark.parametrize(("stride", "padding", "size"), [(2, 1, (5, 4)), (1, "same", (9, 8))])
    def test_conv_act_with_residual(self, act, layout, training, stride, padding, size):
        x = image(2, 4, 9, 8, layout=layout)
        for shape in ((2, 6, *size), (1, 6, 1, 1)):
            self.check(
                lambda layers: blocks.conv_act(layers, 4, 6, 3, stride, padding, act_layer=act),
                training,
                x,
                image(*shape, layout=layout),
            )

    def test_conv_norm_act(self, act, layout, training):
        x = image(2, 4, 9, 8, layout=layout)
        residual = image(2, 6, 5, 4, layout=layout)
        self.check(lambda layers: blocks.conv_norm_act(layers, 4, 6, 3, 2, act_layer=act), training, x)
        self.check(
            lambda layers: blocks.conv_norm_act(layers, 4, 6, 3, 2, act_layer=act), training, x, residual
        )

    def test_sequential(self, act, layout, training):
        def make(layers):
            return layers.Sequential(
                layers.Conv2d(4, 6, 3),
                ACTIVATIONS[act](),
                layers.BatchNorm2d(6),
                ACTIVATIONS[act](),
                layers.Conv2d(6, 3, (1, 3), padding_mode="circular", padding=1),
                layers.BatchNorm2d(3),
                ACTIVATIONS[act](),
                layers.Flatten(),
                layers.BatchNorm1d(9 * 6 * 3),
                ACTIVATIONS[act](),
            )

        self.check(make, training, image(2, 4, 9, 8, layout=layout))


def test_mixed_dtype_residual_is_promoted():
    ours, native = twins(lambda layers: blocks.norm_act(layers, 4), torch.bfloat16)
    x, residual = image(3, 4, 5, 5, dtype=torch.bfloat16), image(3, 4, 5, 5, dtype=torch.float32)
    assert ours(x, residual).dtype == native(x, residual).dtype == torch.float32
    torch.testing.assert_close(ours(x, residual), native(x, residual), rtol=2e-2, atol=2e-2)
    ours, native = twins(lambda layers: blocks.conv_act(layers, 4, 4, 1), torch.bfloat16)
    assert ours(x, residual).dtype == native(x, residual).dtype == torch.float32
    torch.testing.assert_close(ours(x, residual), native(x, residual), rtol=2e-2, atol=2e-2)


def test_tensors_without_kernels_take_the_sequence():
    module = d2lfast.nn.Conv2dAct(2, 3, 3, act_layer="tanh")
    module.weight, module.bias = (nn.Parameter(p.to(torch.complex64)) for p in (module.weight, module.bias))
    x = torch.randn(1, 2, 4, 4, dtype=torch.complex64)
    torch.testing.assert_close(module(x), torch.tanh(nn.functional.conv2d(x, module.weight, module.bias)))


def test_arguments_and_names():
    module = d2lfast.nn.ConvNormAct(3, 8, 3, stride=2, dilation=2)
    assert list(module.state_dict()) == [
        "conv.weight",
        *(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    assert module.conv.padding == (2, 2)
    assert type(module.conv) is d2lfast.nn.Conv2d
    assert type(module.bn) is d2lfast.nn.BatchNormAct2d
    assert module(torch.zeros(2, 3, 11, 11)).shape == (2, 8, 6, 6)
    assert "act=relu" in repr(module)
    assert d2lfast.nn.BatchNormAct2d(3, apply_act=False).activation == "none"
    assert d2lfast.nn.BatchNormAct2d(3, act_layer=nn.Tanh()).activation == "tanh"
    assert d2lfast.nn.BatchNormAct2d(3, act_layer=None).activation == "none"
    for make in (d2lfast.nn.BatchNormAct2d, lambda n, **kw: d2lfast.nn.Conv2dAct(n, n, 1, **kw)):
        for wrong in ("gelu", nn.GELU, nn.ReLU6(), 3):
            with pytest.raises(ValueError, match="act_layer must be"):
                make(3, act_layer=wrong)
    assert type(blocks.conv_act(nn, 3, 3, 1)) is unfused.Conv2dAct


@pytest.mark.parametrize("name", ["BatchNormAct2d", "Conv2dAct", "ConvNormAct"])
def test_copies_and_pickles(name):
    args = {"BatchNormAct2d": (4,), "Conv2dAct": (4, 5, 3), "ConvNormAct": (4, 5, 3)}[name]
    module = getattr(d2lfast.nn, name)(*args).eval()
    x = image(2, 4, 6, 6, dtype=torch.float32)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert torch.equal(other(x), module(x))


def block():
    return chain(d2lfast.nn)


def chain(layers):
    return layers.Sequential(
        layers.Conv2d(3, 4, 3, padding=1), layers.BatchNorm2d(4), nn.ReLU(), layers.Conv2d(4, 4, 1), nn.Tanh()
    )


def operators(call):
    """Names of the operators that are called."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Recorder(), torch.no_grad():
        call()
    return names


class TestSequential:
    @property
    def x(self):
        return torch.randn(2, 3, 6, 6, generator=torch.Generator(DEVICE).manual_seed(0))

    def test_activations_are_not_run_on_their_own(self):
        model = block()
        names = operators(lambda: model(self.x))
        assert "aten::relu" not in names
        assert "aten::tanh" not in names

    def test_slices_indices_and_appending_stay(self):
        model = block()
        assert type(model[:2]) is d2lfast.nn.Sequential
        first, rest = model[:2], model[2:]
        model.eval()
        assert (first(self.x) < 0).any()
        torch.testing.assert_close(rest(first(self.x)), model(self.x))
        assert (model[1](model[0](self.x)) < 0).any()
        model.append(nn.Flatten())
        assert model(self.x).shape == (2, 4 * 36)

    @pytest.mark.parametrize("index", [0, 1, 2, 3, 4])
    def test_hooks_see_what_they_saw(self, index):
        model, native = twins(chain)
        seen = []
        for module in (model.eval(), native.eval()):
            module[index].register_forward_hook(lambda layer, args, output: seen.append((args[0], output)))
            module[index].register_full_backward_hook(lambda layer, gin, gout: seen.append(gin + gout))
            x = self.x.double().requires_grad_()
            module(x).square().sum().backward()
        assert len(seen) == 4
        torch.testing.assert_close(seen[0], seen[2])
        torch.testing.assert_close(seen[1], seen[3])

    def test_global_hooks_see_every_layer(self):
        called = []
        handle = nn.modules.module.register_module_forward_hook(lambda m, *rest: called.append(type(m)))
        try:
            block()(self.x)
        finally:
            handle.remove()
        assert called.count(nn.ReLU) == 1
        assert len(called) == 6

    def test_a_forward_of_its_own_is_called(self):
        model = block().eval()
        expected = model[4](model[3](-model[1](model[0](self.x))))
        model[2].forward = torch.neg
        torch.testing.assert_close(model(self.x), expected)

    def test_inputs_that_are_no_tensors(self):
        assert d2lfast.nn.Sequential(nn.Identity(), nn.Identity())((1, 2)) == (1, 2)

    def test_lazy_layers(self):
        model = d2lfast.nn.Sequential(
            d2lfast.nn.LazyConv2d(4, 3), nn.ReLU(), d2lfast.nn.LazyBatchNorm2d(), nn.Sigmoid()
        )
        first = model(self.x)
        assert [type(layer).__name__ for layer in model] == ["Conv2d", "ReLU", "BatchNorm2d", "Sigmoid"]
        torch.testing.assert_close(model(self.x), first)

    def test_compile_and_export(self):
        model = block().eval()
        expected = model(self.x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(self.x), expected)
        program = torch.export.export(model, (self.x,))
        torch.testing.assert_close(program.module()(self.x), expected)
        assert not [node for node in program.graph.nodes if "relu" in str(node.target)]

    def test_compile_of_training(self):
        model = block()
        x = self.x.requires_grad_()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
        results = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, compiled)]
        torch.testing.assert_close(*results)

    def test_autocast(self):
        model = block().eval()
        with torch.autocast(DEVICE, torch.bfloat16):
            result = model(self.x)
            expected = model[4](model[3](model[2](model[1](model[0](self.x)))))
        assert result.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)
