"""Shape functions of the pooling operators."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def _layout(input: Tensor) -> torch.memory_format:
    """What comes in is what goes out (csrc/ops/layout.h); unbatched images are contiguous."""
    return suggest_memory_format(input) if input.dim() == 4 else torch.contiguous_format


def _new(like: Tensor, size, layout: torch.memory_format, dtype: torch.dtype | None = None) -> Tensor:
    shape = [*like.shape[:-2], *size]
    return like.new_empty(shape, dtype=dtype or like.dtype).to(memory_format=layout)


def _pooled(size, kernel, stride, pad, dilation, ceil_mode):
    out = (size + 2 * pad - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + pad:
        out -= 1
    return out


def _window_output(input, kernel_size, stride, padding, dilation, ceil_mode):
    torch._check(
        input.dim() in (3, 4),
        lambda: f"Expected 3D or 4D (batch mode) tensor, but got input of size: {tuple(input.shape)}",
    )
    torch._check(
        all(pad <= kernel // 2 for pad, kernel in zip(padding, kernel_size, strict=True)),
        lambda: "pad should be smaller than or equal to half of kernel size",
    )
    stride = stride or kernel_size
    size = [
        _pooled(*axis, ceil_mode)
        for axis in zip(input.shape[-2:], kernel_size, stride, padding, dilation, strict=True)
    ]
    for n in size:
        torch._check(n >= 1, lambda: "Output size is too small")
    return size


@torch.library.register_fake("d2lfast::max_pool2d")
def _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode):
    size = _window_output(input, kernel_size, stride, padding, dilation, ceil_mode)
    return _new(input, size, _layout(input))


@torch.library.register_fake("d2lfast::max_pool2d_with_indices")
def _max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode):
    size = _window_output(input, kernel_size, stride, padding, dilation, ceil_mode)
    layout = _layout(input)
    return _new(input, size, layout), _new(input, size, layout, torch.int64)


@torch.library.register_fake("d2lfast::_max_pool2d_with_position")
def _max_pool2d_with_position(input, kernel_size, stride, padding, dilation, ceil_mode):
    size = _window_output(input, kernel_size, stride, padding, dilation, ceil_mode)
    layout = _layout(input)
    position = torch.uint8 if kernel_size[0] * kernel_size[1] <= 256 else torch.int32
    return _new(input, size, layout), _new(input, size, layout, position)


@torch.library.register_fake("d2lfast::_max_pool2d_position_to_index")
def _max_pool2d_position_to_index(position, input_size, kernel_size, stride, padding, dilation):
    return _new(position, position.shape[-2:], _layout(position), torch.int64)


def _gradient(grad_output, input_size, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return _new(grad_output, input_size, layout)


@torch.library.register_fake("d2lfast::_max_pool2d_backward")
def _max_pool2d_backward(
    grad_output, position, input_size, kernel_size, stride, padding, dilation, channels_last
):
    return _gradient(grad_output, input_size, channels_last)


@torch.library.register_fake("d2lfast::avg_pool2d")
def _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    size = _window_output(input, kernel_size, stride, padding, (1, 1), ceil_mode)
    return _new(input, size, _layout(input))


@torch.library.register_fake("d2lfast::_avg_pool2d_backward")
def _avg_pool2d_backward(
    grad_output, input_size, kernel_size, stride, padding, count_include_pad, divisor_override, channels_last
):
    return _gradient(grad_output, input_size, channels_last)


@torch.library.register_fake("d2lfast::adaptive_avg_pool2d")
def _adaptive_avg_pool2d(input, output_size):
    torch._check(input.dim() in (3, 4), lambda: f"Expected 3D or 4D tensor, but got {tuple(input.shape)}")
    return _new(input, output_size, _layout(input))


@torch.library.register_fake("d2lfast::adaptive_max_pool2d")
def _adaptive_max_pool2d(input, output_size):
    torch._check(input.dim() in (3, 4), lambda: f"Expected 3D or 4D tensor, but got {tuple(input.shape)}")
    layout = _layout(input)
    return _new(input, output_size, layout), _new(input, output_size, layout, torch.int64)


@torch.library.register_fake("d2lfast::_adaptive_avg_pool2d_backward")
def _adaptive_avg_pool2d_backward(grad_output, input_size, channels_last):
    return _gradient(grad_output, input_size, channels_last)


@torch.library.register_fake("d2lfast::_adaptive_max_pool2d_backward")
def _adaptive_max_pool2d_backward(grad_output, indices, input_size, channels_last):
    return _gradient(grad_output, input_size, channels_last)
