"""Shape functions of the convolution operators."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from d2lfast._fake.devices import check_same_device


def _stays_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes it for channels_last that it has made so: a copy of [N,1,1,1] does not look it."""
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return suggest_memory_format(tensor) == torch.channels_last
    return any(size != 1 for size in tensor.shape[1:])


def _layout(input: Tensor, weight: Tensor) -> torch.memory_format:
    """torch's rule for convolutions (csrc/ops/layout.h)."""
    if input.dim() == 3:
        input = input.unsqueeze(0)
    tensors = (input, weight)
    if any(suggest_memory_format(tensor) == torch.channels_last for tensor in tensors) and any(
        map(_stays_channels_last, tensors)
    ):
        return torch.channels_last
    return torch.contiguous_format


def convolved(image: Iterable[int], *geometry: Iterable[int]) -> list[int]:
    """Height and width of a result, from those of the image, kernel, stride, padding and dilation."""
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(image, *geometry)]


def _empty(like: Tensor, shape: list, layout: torch.memory_format) -> Tensor:
    if len(shape) == 3:
        return (
            like.new_empty(shape)
            if layout == torch.contiguous_format
            else (like.new_empty([1, *shape]).to(memory_format=layout).squeeze(0))
        )
    return like.new_empty(shape).to(memory_format=layout)


@torch.library.register_fake("d2lfast::conv2d")
def _conv2d(
    input,
    weight,
    bias,
    stride,
    padding,
    dilation,
    groups,
    activation="none",
    algorithm="auto",
    residual=None,
):
    check_same_device(input, weight, bias, residual)
    torch._check(
        input.dim() in (3, 4),
        lambda: f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got {tuple(input.shape)}",
    )
    torch._check(weight.dim() == 4, lambda: f"weight should have 4 dimensions, but got {weight.shape}")
    torch._check(
        input.dtype == weight.dtype,
        lambda: f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same",
    )
    torch._check(
        input.shape[-3] == weight.shape[1] * groups,
        lambda: f"Given groups={groups}, weight of size {weight.shape}, expected input{input.shape} to have "
        f"{weight.shape[1] * groups} channels, but got {input.shape[-3]} channels instead",
    )
    size = convolved(input.shape[-2:], weight.shape[-2:], stride, padding, dilation)
    for n in size:
        torch._check(n > 0, lambda: "Kernel size can't be greater than actual input size")
    shape = [*input.shape[:-3], weight.shape[0], *size]
    if residual is not None:
        torch._check(
            list(residual.shape) == shape,
            lambda: f"expected residual of the output's size {shape}, but got {list(residual.shape)}",
        )
    return _empty(input, shape, _layout(input, weight))


@torch.library.register_fake("d2lfast::_conv2d_backward")
def _conv2d_backward(
    grad_output, input, weight, output, stride, padding, dilation, groups, activation, algorithm, output_mask
):
    wants_input, wants_weight, wants_bias = output_mask
    return (
        _empty(input, list(input.shape), _layout(input, weight)) if wants_input else input.new_empty([0]),
        torch.empty_like(weight) if wants_weight else input.new_empty([0]),
        weight.new_empty([weight.shape[0]]) if wants_bias else input.new_empty([0]),
    )
