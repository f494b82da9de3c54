"""Loss functions."""

from typing import Any

import torch
import torch.nn.functional as _native
from torch import Tensor

from d2lfast._support import supported, traced

__all__ = ["cross_entropy"]

_ops: Any = torch.ops.d2lfast
_cross_entropy = _ops._cross_entropy.default
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _takes(input: Tensor, target: Tensor) -> bool:
    """Whether the operator computes it: class numbers, and classes that are dense in memory."""
    return (
        target.dtype is torch.int64
        and supported(input, "cross_entropy")
        and target.device == input.device
        and input.dim() >= 2
        and input.stride(1) == 1
        and input.size(1) > 0
        and target.layout is torch.strided
        and target.shape == (*input.shape[:1], *input.shape[2:])
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`, for class numbers in one pass over the logits.

    Shapes: input [N,C] or [N,C,...], target int64 [N] or [N,...] to a scalar, or to the target's shape with
    reduction "none". For logits whose classes are the last axis, `input.movedim(-1, 1)` costs no copy. What
    backward needs is the logits and two numbers for each row.

    Weights, label smoothing, probabilities as target, classes that are not dense in memory, devices for which
    the build has no kernels, compiled code, `torch.func` and forward-mode differentiation are left to torch.
    A class number out of range is an IndexError on the CPU and, as torch's, a device-side assertion on CUDA.
    """
    plain = weight is None and size_average is None and reduce is None and label_smoothing == 0.0
    if not plain or reduction not in _REDUCTIONS or traced() or not _takes(input, target):
        return _native.cross_entropy(
            input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    if input.dtype.itemsize == 2 and torch.is_autocast_enabled(input.device.type):
        input = input.float()
    return _cross_entropy(input, target, _REDUCTIONS[reduction], ignore_index)[0]
