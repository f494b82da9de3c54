"""PyTorch's own samples (ModuleInfo) for every module that d2lfast.nn replaces."""

import copy

import pytest
import torch

import d2lfast
from d2lfast.testing import assert_accurate
from d2lfast.testing.cases import DEVICE
from d2lfast.testing.compare import same

pytest.importorskip("expecttest", reason="torch's samples need expecttest")
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

REPLACED = (
    "Conv2d",
    "LazyConv2d",
    "MaxPool2d",
    "AvgPool2d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "RNNCell",
    "GRUCell",
    "LSTMCell",
    "RNN",
    "GRU",
    "LSTM",
)
INFO = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in REPLACED}
DTYPES = tuple(
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
)


def test_pytorch_has_samples_of_every_module():
    assert set(INFO) == set(REPLACED)


def tensors_in(tree):
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def evaluate(module, arguments, dtype=None):
    """Outputs, gradients of inputs and parameters, and buffers."""
    module = copy.deepcopy(module)
    args, kwargs = copy.deepcopy(arguments)
    if dtype is not None:
        module = module.to(dtype)
        args, kwargs = torch.utils._pytree.tree_map(
            lambda x: x.detach().to(dtype).requires_grad_(x.requires_grad)
            if isinstance(x, torch.Tensor) and x.is_floating_point()
            else x,
            (args, kwargs),
        )
    outputs = tensors_in(module(*args, **kwargs))
    generator = torch.Generator(DEVICE).manual_seed(1)
    used, grads = [], []
    for x in outputs:
        if x.requires_grad:
            values = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            used.append(x)
            grads.append(values.to(arguments[0][0].dtype).to(x.dtype))
    leaves = [x for x in (*tensors_in((args, kwargs)), *module.parameters()) if x.requires_grad]
    gradients = torch.autograd.grad(used, leaves, grads, allow_unused=True) if used and leaves else ()
    return [x.detach() for x in outputs], gradients, list(module.buffers())


def pair(name, input, dtype):
    """Our module and torch's, with the same parameters."""
    args, kwargs = input.constructor_input.args, input.constructor_input.kwargs
    if name not in ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"):
        kwargs = {**kwargs, "dtype": dtype}
    ours, native = (getattr(nn, name)(*args, **kwargs) for nn in (d2lfast.nn, torch.nn))
    assert type(ours) is not type(native), f"{name} falls through to torch"
    assert isinstance(ours, type(native))
    return ours, native


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_and_gradients(name, dtype, training):
    info = INFO[name]
    inputs = info.module_inputs_func(info, DEVICE, dtype, requires_grad=True, training=training)
    assert inputs
    for input in inputs:
        arguments = (input.forward_input.args, input.forward_input.kwargs)
        ours, native = pair(name, input, dtype)
        for module in (ours, native):
            module.train(training)
            if name.startswith("Lazy"):
                module(*copy.deepcopy(arguments[0]))
        ours.load_state_dict(native.state_dict())
        assert ours.state_dict().keys() == native.state_dict().keys()
        results = (
            evaluate(ours, arguments),
            evaluate(native, arguments),
            evaluate(native, arguments, torch.float64),
        )
        for kind, mine, theirs, exact in zip(("output", "gradient", "buffer"), *results, strict=True):
            assert len(mine) == len(theirs)
            for a, b, c in zip(mine, theirs, exact):
                assert (a is None) == (b is None)
                if a is not None:
                    assert_accurate(a, b, c, 64, f"{kind} of {native} {input.desc}")


@pytest.mark.parametrize("name", [name for name in REPLACED if INFO[name].module_error_inputs_func])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_errors(name, training):
    info = INFO[name]
    entries = info.module_error_inputs_func(
        info, DEVICE, torch.float32, requires_grad=False, training=training
    )
    assert entries
    for entry in entries:
        input = entry.module_error_input
        construct = input.constructor_input
        cls = getattr(d2lfast.nn, name)
        if entry.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(entry.error_type, match=entry.error_regex):
                cls(*construct.args, **construct.kwargs)
        else:
            ours, native = (
                getattr(nn, name)(*construct.args, **construct.kwargs).train(training)
                for nn in (d2lfast.nn, torch.nn)
            )
            arguments = (input.forward_input.args, input.forward_input.kwargs)
            if name.startswith("BatchNorm") and not training:
                # torch's list is for training; in eval eps=0 is accepted, and eps<0 refused in other words.
                try:
                    expected = native(*arguments[0], **arguments[1])
                except ValueError:
                    with pytest.raises(ValueError, match="eps"):
                        ours(*arguments[0], **arguments[1])
                else:
                    torch.testing.assert_close(ours(*arguments[0], **arguments[1]), expected)
                continue
            with pytest.raises(entry.error_type, match=entry.error_regex):
                native(*arguments[0], **arguments[1])
            with pytest.raises(entry.error_type):
                ours(*arguments[0], **arguments[1])


@pytest.mark.parametrize("name", REPLACED)
def test_inputs_are_not_written(name):
    info = INFO[name]
    for input in info.module_inputs_func(info, DEVICE, torch.float32, requires_grad=False, training=True):
        ours, _ = pair(name, input, torch.float32)
        arguments = (input.forward_input.args, input.forward_input.kwargs)
        before = copy.deepcopy(arguments)
        ours(*arguments[0], **arguments[1])
        for a, b in zip(tensors_in(arguments), tensors_in(before), strict=True):
            assert same(a, b)
