"""Pooling layers."""

from typing import Any

import torch
from torch import Tensor

from d2lfast._symbolic import Proxy, record_layer
from d2lfast.nn import functional as F

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "MaxPool2d"]


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on d2lfast's kernels; see `d2lfast.nn.functional.max_pool2d` for shapes."""

    def forward(self, input: Tensor) -> Any:
        """Pool [N,C,H,W] or [C,H,W]."""
        if isinstance(input, Proxy):
            return record_layer(self, input)
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` on d2lfast's kernels; see `d2lfast.nn.functional.avg_pool2d` for shapes."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool [N,C,H,W] or [C,H,W]."""
        if isinstance(input, Proxy):
            return record_layer(self, input)
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` on d2lfast's kernels; `output_size` may hold None for "as the input"."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool [N,C,H,W] or [C,H,W]."""
        if isinstance(input, Proxy):
            return record_layer(self, input)
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` on d2lfast's kernels; `output_size` may hold None for "as the input"."""

    def forward(self, input: Tensor) -> Any:
        """Pool [N,C,H,W] or [C,H,W]."""
        if isinstance(input, Proxy):
            return record_layer(self, input)
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)
