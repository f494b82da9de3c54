"""Dense layers."""

from typing import Any

import torch
import torch.nn.functional as _native
from torch import Tensor

from d2lfast._support import traced

__all__ = ["linear"]

_ops: Any = torch.ops.d2lfast
_linear = _ops._linear.default
_TYPES = frozenset({torch.float32, torch.float64})
# Measured: with fewer rows or more features torch's products are as fast.
_LEAST_ROWS, _MOST_FEATURES = 2048, 128


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, whose gradients of many rows and few features are one pass over the rows.

    Shapes: input [...,I], weight [O,I], bias [O] to [...,O]. For float32 and float64 on the CPU, from 2048
    rows on that are dense in memory, with up to 128 features on either side, and gradients; the rest is
    torch's.
    """
    if torch.is_grad_enabled() and not traced() and _takes(input, weight, bias):
        return _linear(input, weight, bias)
    return _native.linear(input, weight, bias)


def _takes(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        input.dtype in _TYPES
        and weight.dim() == 2
        and min(weight.shape) > 0
        and max(weight.shape) <= _MOST_FEATURES
        and input.dim() > 1
        and input.size(-1) == weight.size(1)
        and input.numel() >= _LEAST_ROWS * weight.size(1)
        and all(_plain(tensor, input.dtype) for tensor in (input, weight))
        and (bias is None or (_plain(bias, input.dtype) and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )


def _plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return (
        tensor.dtype is dtype
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
    )
