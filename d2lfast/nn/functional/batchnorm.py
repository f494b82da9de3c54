"""Batch normalisation."""

import torch
import torch.nn.functional as _native
from torch import Tensor

from d2lfast._support import supported, transformed
from d2lfast._symbolic import Proxy, fall_back, record_function
from d2lfast.nn.unfused import activate

__all__ = ["batch_norm", "batch_norm_act"]

_batch_norm_act = torch.ops.d2lfast.batch_norm_act.default
_batch_norm_act_ = torch.ops.d2lfast.batch_norm_act_.default
_permitted = torch.ops.d2lfast._batch_norm_inplace_permitted.default


def _verify(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float
) -> None:
    if training:
        size = input.size()
        count = size[0]
        for extent in size[2:]:
            count *= extent
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
        if eps <= 0.0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    elif eps <= 0.0:
        # Whether zero is allowed differs by version of torch: it says so for no images, too.
        _native.batch_norm(input[:0], running_mean, running_var, eps=eps)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel over the batch, as `torch.nn.functional.batch_norm` (book section 8.5).

    Args:
        input: [N,C] or [N,C,*]; float32, float64, bfloat16 or float16.
        running_mean, running_var: [C] of the input's dtype, or float32 beside a 16-bit input. Updated in
            place in training, if given; the normalisation's statistics otherwise.
        weight, bias: [C] or None; of the dtype of the running statistics.
        training: normalise with the statistics of the batch.
        momentum: weight of the batch's statistics in the running ones.
        eps: added to the variance.

    Returns:
        A tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per channel in training; a bad eps.
        RuntimeError: sizes, dtypes or devices do not fit, or evaluation without running statistics.
    """
    if not supported(input, "batch_norm_act") or input.dim() < 2:
        arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps)
        return fall_back(batch_norm, _native.batch_norm, *arguments)
    _verify(input, running_mean, running_var, training, eps)
    return _batch_norm_act(input, weight, bias, running_mean, running_var, training, momentum, eps)


def _may_overwrite(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    activation: str,
    residual: Tensor | None,
) -> bool:
    """Whether autograd permits `batch_norm_act_`. A graph that is traced keeps its tensors apart."""
    if torch.compiler.is_compiling():
        return False
    tensors = (input, weight, bias, residual)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        return True
    return _permitted(input, weight, bias, training, activation, residual)


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """`activation(batch_norm(input) + residual)` in one sweep (book sections 8.5 and 8.6).

    Args:
        input to eps: as for `batch_norm`.
        activation: "none", "relu", "sigmoid" or "tanh".
        residual: of the input's shape and dtype, or None.
        inplace: write the result over `input` wherever its gradients can do without it, and return `input`;
            elsewhere the result is a new tensor of the same values, and `input` keeps its own. Without
            gradients that is always. With gradients it is in evaluation whose weight wants none; on the CPU
            also in evaluation with "none" or "relu" without a residual, and in training with "none" without
            a residual. Backward then finds the normalised values in the result, as
            `(result - bias) / weight`, and no weight may be so small that this loses them: at least 2^-60
            (2^-4 for float16 inputs) and a sixteenth of its bias. (Of 16-bit inputs the weight's gradient
            then carries the rounding of the result.) On a GPU looking at the weights would wait for it.
            ReLU in training needs the input where it is 0. What is traced (`torch.compile`, `torch.export`)
            or transformed (`torch.func`) gets a new tensor. A gradient of the gradient is refused.

    Returns:
        A tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per channel in training; a bad eps; no such activation.
        RuntimeError: sizes, dtypes or devices do not fit, or evaluation without running statistics; in place:
            `input` is a leaf that requires a gradient, or its elements share memory.
        NotImplementedError: a dtype, device or layout without kernels.
    """
    if not supported(input, "batch_norm_act"):
        arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps)
        if isinstance(input, Proxy):
            return record_function(batch_norm_act, *arguments, activation, residual, inplace)
        if not transformed():
            raise NotImplementedError(f"a fused batch normalisation for {input.dtype} on {input.device}")
        output = _native.batch_norm(*arguments)
        return activate(output, activation, residual)
    if input.dim() >= 2:
        _verify(input, running_mean, running_var, training, eps)
    if inplace and _may_overwrite(input, weight, bias, training, activation, residual):
        _batch_norm_act_(
            input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual
        )
        return input
    return _batch_norm_act(
        input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual
    )
