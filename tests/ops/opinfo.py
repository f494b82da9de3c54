"""PyTorch's own samples (torch.testing._internal) for the functions that d2lfast replaces."""

import copy

import pytest
import torch

from d2lfast.testing import assert_accurate
from d2lfast.testing.cases import DEVICE
from d2lfast.testing.compare import same

DTYPES = tuple(
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
)


def op_info(name):
    pytest.importorskip("expecttest", reason="torch's samples need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    return next(entry for entry in op_db if entry.name == f"nn.functional.{name}")


def tensors_in(tree):
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def fresh(tree, dtype=None):
    """A copy whose tensors are leaves, with the same strides."""

    def leaf(x):
        if not isinstance(x, torch.Tensor):
            return x
        y = x.detach().clone(memory_format=torch.preserve_format)
        if x.is_floating_point() and dtype is not None:
            y = y.to(dtype)
        return y.requires_grad_(x.requires_grad)

    return torch.utils._pytree.tree_map(leaf, tree)


def evaluate(function, sample, dtype=None):
    arguments = fresh((sample.input, sample.args, sample.kwargs), dtype)
    input, args, kwargs = arguments
    outputs = function(input, *args, **kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [x for x in tensors_in(arguments) if x.requires_grad]
    gradients = ()
    if leaves and outputs[0].requires_grad:
        grad = torch.randn(
            outputs[0].shape, generator=torch.Generator(DEVICE).manual_seed(1), dtype=torch.float64
        )
        grad = grad.to(sample.input.dtype).to(outputs[0].dtype)
        gradients = torch.autograd.grad(outputs[0], leaves, grad, allow_unused=True)
    written = [x for x in tensors_in(arguments) if not x.requires_grad]
    return [x.detach() for x in outputs], gradients, written


class OpInfoTester:
    """`function` is a name that `d2lfast.nn.functional` replaces; `every` takes each n-th sample."""

    function: str
    every = 1
    dtypes = DTYPES

    def functions(self):
        from d2lfast.nn import functional

        ours, native = (getattr(f, self.function) for f in (functional, torch.nn.functional))
        assert ours is not native, f"{self.function} falls through to torch"
        return ours, native

    def samples(self, dtype, requires_grad):
        info = op_info(self.function)
        samples = [*info.sample_inputs(DEVICE, dtype, requires_grad=requires_grad)]
        if info.reference_inputs_func is not None:
            samples += info.reference_inputs(DEVICE, dtype, requires_grad=requires_grad)
        return samples[:: self.every]

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_samples_of_torch(self, any_dtype, requires_grad):
        samples = self.samples(any_dtype, requires_grad)
        assert samples
        ours, native = self.functions()
        for sample in samples:
            mine, theirs = evaluate(ours, sample), evaluate(native, sample)
            exact = evaluate(native, sample, torch.float64)
            context = str(sample)
            for kind, a, b, c in zip(("output", "gradient", "buffer"), mine, theirs, exact):
                assert len(a) == len(b)
                for x, y, z in zip(a, b, c):
                    assert (x is None) == (y is None), context
                    if x is not None:
                        reduction = max(1, sample.input.numel() // max(1, sample.input.shape[0]))
                        assert_accurate(x, y, z, reduction, f"{kind} of {context}")

    def test_samples_of_torch_leave_their_arguments_alone(self):
        ours, _ = self.functions()
        for sample in self.samples(torch.float32, False)[::7]:
            arguments = (sample.input, *sample.args)
            before = copy.deepcopy(arguments)
            if "training" in sample.kwargs:
                continue
            ours(sample.input, *sample.args, **sample.kwargs)
            for a, b in zip(tensors_in(arguments), tensors_in(before), strict=True):
                assert same(a, b)

    def test_errors_of_torch(self):
        """torch's own list of refused arguments: the same exception type, and the same words."""
        info = op_info(self.function)
        ours, native = self.functions()
        for entry in info.error_inputs(DEVICE) if info.error_inputs_func else ():
            sample = entry.sample_input
            with pytest.raises(entry.error_type, match=entry.error_regex):
                native(sample.input, *sample.args, **sample.kwargs)
            with pytest.raises(entry.error_type):
                ours(sample.input, *sample.args, **sample.kwargs)
