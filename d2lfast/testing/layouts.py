"""Memory layouts that a tensor argument may have."""

import math

import torch
from torch import Tensor

# Memory layouts of a tensor argument. "sliced" and "strided" are views into a larger buffer full of NaN,
# with a unit and a non-unit last stride; "expanded" has stride 0 along its first axis, "broadcast" along all.
LAYOUTS = (
    "contiguous",
    "channels_last",
    "transposed",
    "sliced",
    "strided",
    "sliced_channels_last",
    "expanded",
    "broadcast",
)


def _slice_of_nan(tensor: Tensor, step: int) -> Tensor:
    if tensor.dim() == 0:
        return tensor.clone()
    sizes = [n + 3 for n in tensor.shape[:-1]] + [tensor.shape[-1] * step + 3]
    buffer = tensor.new_full(sizes, math.nan)
    view = buffer
    for axis, n in enumerate(tensor.shape):
        stride = step if axis == tensor.dim() - 1 else 1
        view = view.narrow(axis, 1, n * stride)[(slice(None),) * axis + (slice(None, None, stride),)]
    return view.copy_(tensor)


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """A fresh tensor of the same shape, dtype and device in a layout of `LAYOUTS`.

    It has the values of `tensor`, except that "expanded" and "broadcast" repeat the first of them. A layout
    that the rank does not know (channels_last of a matrix) is the contiguous one.
    """
    if layout == "contiguous" or (tensor.numel() == 0 and layout in ("expanded", "broadcast")):
        return tensor.clone(memory_format=torch.contiguous_format)
    if layout in ("channels_last", "sliced_channels_last"):
        if tensor.dim() not in (3, 4):
            return tensor.clone(memory_format=torch.contiguous_format)
        last = tensor.movedim(-3, -1).contiguous()
        return (last if layout == "channels_last" else _slice_of_nan(last, 1)).movedim(-1, -3)
    if layout == "transposed":
        if tensor.dim() < 2:
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return _slice_of_nan(tensor, 1)
    if layout == "strided":
        return _slice_of_nan(tensor, 2)
    if layout == "expanded":
        return tensor.narrow(0, 0, 1).clone().expand(tensor.shape) if tensor.dim() else tensor.clone()
    if layout == "broadcast":
        return tensor.flatten()[:1].clone().reshape(()).expand(tensor.shape)
    raise ValueError(f"no layout '{layout}'")
