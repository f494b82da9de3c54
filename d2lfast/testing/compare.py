"""Is a result as good as that of torch?"""

import math

import torch
from torch import Tensor

from d2lfast.testing.cases import DEVICE, Case, Result, inputs_of, run
from d2lfast.testing.operators import OPERATORS, Tensors


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_accurate(
    ours: Tensor, theirs: Tensor, exact: Tensor, reduction: int = 1, what: str = "output"
) -> None:
    """Asserts that `ours` is about as near to `exact` (float64) as torch's own result is.

    The error may be twice that of torch, plus the rounding of the result, plus the rounding of `reduction`
    additions of terms around 1. NaN and infinities are where torch has them.
    """
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, torch has {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, torch has {theirs.dtype}"
    assert ours.device == theirs.device, f"{what}: on {ours.device}, torch's is on {theirs.device}"
    # From a GPU once: each comparison there would wait for it.
    ours, theirs, exact = ours.cpu(), theirs.cpu(), exact.cpu()
    if not ours.is_floating_point():
        assert torch.equal(ours, theirs), f"{what}: differs from torch's"
        return
    # oneDNN's gradient of a dilated bfloat16 weight has read memory that nobody had written.
    wrong = ~theirs.isfinite() & ours.isfinite() & (exact.abs() < torch.finfo(ours.dtype).max / 4)
    theirs = torch.where(wrong, exact.to(theirs.dtype), theirs)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(ours), kind(theirs)), f"{what}: {kind.__name__} elsewhere than in torch's"
    finite = torch.isfinite(theirs) & torch.isfinite(exact)
    if not finite.any():
        return
    rounding = torch.finfo(ours.dtype).eps / 2
    accumulation = torch.finfo(_accumulator(ours.dtype)).eps * math.sqrt(reduction)
    if ours.dtype == torch.float64:
        accumulation *= 2  # what is called exact is rounded as well
    ours, theirs, exact = ours[finite].double(), theirs[finite].double(), exact[finite].double()
    scale = max(exact.abs().max().item(), math.sqrt(reduction))
    error, their_error = (x.sub(exact).abs().max().item() for x in (ours, theirs))
    allowed = 2 * their_error + (rounding + accumulation) * scale
    assert error <= allowed, (
        f"{what}: error {error:.3e} against float64 is over {allowed:.3e} (torch's own error "
        f"{their_error:.3e}, largest value {exact.abs().max().item():.3e}, {reduction} additions)"
    )


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in each bit, but for the payload of NaN and the sign of zero."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def native_inputs_of(case: Case, device: str = DEVICE) -> Tensors:
    """The arguments for torch: its batch_norm backward reads a strided weight as if it were contiguous."""
    inputs = inputs_of(case, device)
    return {name: x.contiguous() if x is not None and x.dim() == 1 else x for name, x in inputs.items()}


def check(case: Case, device: str = DEVICE, strides: bool = True) -> None:
    """Runs a case with d2lfast and with torch, and compares outputs, strides, gradients and errors.

    Raises:
        AssertionError: a result is less accurate than torch's, has other strides or dtype, an argument was
            written, or one of the two raises another error than the other.
    """
    operator = OPERATORS[case.operator]
    try:
        theirs = run(case, operator.native, native_inputs_of(case, device))
    except Exception as expected:
        try:
            run(case, operator.ours, inputs_of(case, device))
        except Exception as error:
            if type(error) is type(expected):
                return
            raise AssertionError(
                f"raises {type(error).__name__} ({error}), torch {type(expected).__name__} ({expected})"
            ) from error
        raise AssertionError(
            f"accepts what torch refuses with {type(expected).__name__}: {expected}"
        ) from expected
    inputs = inputs_of(case, device)
    ours = run(case, operator.ours, inputs)
    for name, tensor in inputs_of(case, device).items():
        if tensor is not None and name not in operator.mutated:
            now = inputs[name]
            assert now is not None
            assert now._version == tensor._version, f"{name}: its version counter moved"
            assert same(now, tensor), f"{name} was written"
    exact = run(case, operator.native, inputs_of(case, device), exact=True)
    compare(case, ours, theirs, exact, strides)


def compare(case: Case, ours: Result, theirs: Result, exact: Result, strides: bool = True) -> None:
    """Compares the results of a case; `strides`: also the strides of the outputs."""
    operator = OPERATORS[case.operator]
    shapes = {name: tuple(shape) for name, shape in case.shapes.items() if shape is not None}

    def additions(of: str) -> int:
        count = operator.reduction(of, shapes, dict(case.options), ours.outputs[0].shape)
        # Equal terms are rounded alike: the errors of a running sum add up to count / 4 of the result's.
        return max(count, count**2 // 16) if "broadcast" in case.layouts.values() else count

    assert len(ours.outputs) == len(theirs.outputs)
    for i, output in enumerate(ours.outputs):
        assert_accurate(output, theirs.outputs[i], exact.outputs[i], additions("output"), f"output {i}")
        if operator.exact:
            assert same(output, theirs.outputs[i]), f"output {i}: not bitwise torch's"
        if strides and output.numel() > 0 and not (operator.mutated and i > 0):
            # The stride of an axis of length 1 means nothing, and torch's own kernels differ in it.
            real = [axis for axis, n in enumerate(output.shape) if n > 1]
            mine, wanted = ([x.stride(axis) for axis in real] for x in (output, theirs.outputs[i]))
            assert mine == wanted, (
                f"output {i} of shape {tuple(output.shape)}: strides {mine}, torch has {wanted}"
            )
    assert ours.gradients.keys() == theirs.gradients.keys(), (
        f"gradients of {sorted(ours.gradients)}, torch has those of {sorted(theirs.gradients)}"
    )
    for name, gradient in ours.gradients.items():
        assert_accurate(
            gradient, theirs.gradients[name], exact.gradients[name], additions(name), f"gradient of {name}"
        )
