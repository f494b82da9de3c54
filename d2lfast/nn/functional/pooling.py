"""Two-dimensional pooling."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as _native
from torch import Tensor

from d2lfast._support import supported
from d2lfast._symbolic import fall_back
from d2lfast.nn.functional._sizes import size_list

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "avg_pool2d",
    "max_pool2d",
    "max_pool2d_with_indices",
]

_ops: Any = torch.ops.d2lfast
_max_pool2d = _ops.max_pool2d.default
_max_pool2d_with_indices = _ops.max_pool2d_with_indices.default
_avg_pool2d = _ops.avg_pool2d.default
_adaptive_avg_pool2d = _ops.adaptive_avg_pool2d.default
_adaptive_max_pool2d = _ops.adaptive_max_pool2d.default

Pair = int | Sequence[int]


def _pair(op: str, name: str, value: Any) -> list[Any]:
    """One value for each axis; a stride of None or an empty sequence is left to the operator's default."""
    if type(value) is int:
        return [value, value]
    if value is None and name == "stride":
        return []
    values = size_list(op, name, value)
    if len(values) != 2 and not (name == "stride" and not values):
        raise RuntimeError(f"{op}: {name} must either be a single int, or a tuple of two ints")
    return values


def _window(op: str, kernel_size: Pair, stride: Pair | None, padding: Pair) -> tuple[list[int], ...]:
    kernel = _pair(op, "kernel_size", kernel_size)
    return kernel, _pair(op, "stride", stride) or kernel, _pair(op, "padding", padding)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maxima of windows and their flat int64 positions in the H x W plane; see `max_pool2d`."""
    if not supported(input, "max_pool2d_with_indices"):
        arguments = (input, kernel_size, stride, padding, dilation, ceil_mode)
        return fall_back(max_pool2d_with_indices, _native.max_pool2d_with_indices, *arguments)
    window = _window("max_pool2d", kernel_size, stride, padding)
    return _max_pool2d_with_indices(input, *window, _pair("max_pool2d", "dilation", dilation), ceil_mode)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over windows, as `torch.nn.functional.max_pool2d` (book section 7.5).

    Args:
        input: [N,C,H,W] or [C,H,W]; float32, float64, bfloat16 or float16. Other dtypes and devices without
            our kernels go to torch's function.
        kernel_size, stride, padding, dilation: one value or one for each axis; the stride defaults to the
            window's size. The padding counts as negative infinity.
        ceil_mode: also take windows that begin inside the image and end beyond it.
        return_indices: return the pair of `max_pool2d_with_indices`.

    Returns:
        [N,C,H',W'] in the layout of `input`, H' = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, or
        the pair with the indices. Of equal maxima the first in row-major order counts; NaN wins.

    Raises:
        RuntimeError: ranks or sizes do not fit, as in torch.
    """
    if return_indices:
        return max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    if not supported(input, "max_pool2d"):
        arguments = (input, kernel_size, stride, padding, dilation, ceil_mode)
        return fall_back(max_pool2d, _native.max_pool2d, *arguments)
    window = _window("max_pool2d", kernel_size, stride, padding)
    return _max_pool2d(input, *window, _pair("max_pool2d", "dilation", dilation), ceil_mode)


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over windows, as `torch.nn.functional.avg_pool2d` (book section 7.5).

    Args:
        input: [N,C,H,W] or [C,H,W], of the dtypes of `max_pool2d`.
        kernel_size, stride, padding: one value or one for each axis; the padding is zeros.
        ceil_mode: as in `max_pool2d`.
        count_include_pad: divide by the window's size with its part in the padding, or without.
        divisor_override: divide by this instead.

    Returns:
        [N,C,H',W'] in the layout of `input`.

    Raises:
        RuntimeError: ranks or sizes do not fit, or the divisor is 0, as in torch.
    """
    if not supported(input, "avg_pool2d"):
        arguments = (input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return fall_back(avg_pool2d, _native.avg_pool2d, *arguments)
    window = _window("avg_pool2d", kernel_size, stride, padding)
    return _avg_pool2d(input, *window, ceil_mode, count_include_pad, divisor_override)


def _adaptive_size(input: Tensor, output_size: Any) -> list[Any]:
    """The output's size; None keeps the input's along that axis."""
    if type(output_size) is int or isinstance(output_size, int | torch.SymInt):
        return [output_size, output_size]
    sizes = list(output_size)
    if len(sizes) >= input.dim():
        raise ValueError(f"Input dimension should be at least {len(sizes) + 1}")
    return [n if n is not None else d for n, d in zip(sizes, input.shape[-len(sizes) :])]


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Mean over a grid of regions, as `torch.nn.functional.adaptive_avg_pool2d` (book section 8.3).

    Args:
        input: [N,C,H,W] or [C,H,W], of the dtypes of `max_pool2d`; other ranks are left to torch.
        output_size: H' and W', or one value for both; None keeps the input's size.

    Returns:
        [N,C,H',W'] in the layout of `input`. Region i covers rows floor(i H / H') to ceil((i + 1) H / H').

    Raises:
        RuntimeError: ranks or sizes do not fit, as in torch.
    """
    if not supported(input, "adaptive_avg_pool2d") or input.dim() not in (3, 4):
        return fall_back(adaptive_avg_pool2d, _native.adaptive_avg_pool2d, input, output_size)
    return _adaptive_avg_pool2d(input, _adaptive_size(input, output_size))


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """Maxima of a grid of regions and their flat int64 positions; see `adaptive_max_pool2d`."""
    if not supported(input, "adaptive_max_pool2d"):
        native = _native.adaptive_max_pool2d_with_indices
        return fall_back(adaptive_max_pool2d_with_indices, native, input, output_size)
    return _adaptive_max_pool2d(input, _adaptive_size(input, output_size))


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maximum over a grid of regions, as `torch.nn.functional.adaptive_max_pool2d`.

    Args and errors are those of `adaptive_avg_pool2d`; ties and NaN resolve as in `max_pool2d`. With
    `return_indices` the result is the pair of `adaptive_max_pool2d_with_indices`.
    """
    results = adaptive_max_pool2d_with_indices(input, output_size)
    return results if return_indices else results[0]
