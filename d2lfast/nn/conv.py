"""Convolution layers."""

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin

from d2lfast._fake.conv2d import convolved
from d2lfast._symbolic import Proxy, record_layer
from d2lfast.nn import functional as F

__all__ = ["Conv2d", "LazyConv2d"]


def convolve(
    self: torch.nn.Conv2d,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The forward of a convolution layer, with what follows it: `activation(convolution + residual)`."""
    padding: int | tuple[int, ...] | str = self.padding
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        padding = 0
    return F.conv2d(
        input, weight, bias, self.stride, padding, self.dilation, self.groups, activation, residual
    )


def output_shape(self: torch.nn.Conv2d, input: Tensor) -> list[int]:
    """The shape that a convolution layer gives to an input that it accepts."""
    image = list(input.shape[-2:])
    if self.padding != "same":
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        image = convolved(image, self.kernel_size, self.stride, padding, self.dilation)
    return [*input.shape[:-3], self.out_channels, *image]


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` on d2lfast's kernels: same constructor, parameters, `state_dict` and errors.

    Shapes: input [N,C,H,W] or [C,H,W] to [N,O,H',W'] or [O,H',W']; see `d2lfast.nn.functional.conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [N,C,H,W] or [C,H,W]."""
        if isinstance(input, Proxy):
            return record_layer(self, input)
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, input, weight, bias)


class LazyConv2d(torch.nn.LazyConv2d):
    """`torch.nn.LazyConv2d` that becomes a `d2lfast.nn.Conv2d` at its first input."""

    cls_to_become = Conv2d  # type: ignore[assignment]
    _conv_forward = Conv2d._conv_forward


assert issubclass(LazyConv2d, LazyModuleMixin)
