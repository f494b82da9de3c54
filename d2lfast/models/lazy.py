"""Layers whose input size may be left to the first input, as in the book's blocks.

Where the size is None, each function returns the lazy layer of the namespace, else the plain one.
"""

from typing import Any

from torch import nn

import d2lfast.nn
from d2lfast.models import blocks
from d2lfast.nn import unfused


def linear(layers: Any, in_features: int | None, out_features: int) -> nn.Module:
    """A linear layer."""
    return (
        layers.LazyLinear(out_features) if in_features is None else layers.Linear(in_features, out_features)
    )


def conv(layers: Any, in_channels: int | None, out_channels: int, kernel_size: int, **options: Any) -> Any:
    """A convolution; `options` are those of `layers.Conv2d`."""
    if in_channels is None:
        return layers.LazyConv2d(out_channels, kernel_size, **options)
    return layers.Conv2d(in_channels, out_channels, kernel_size, **options)


def conv_relu(
    layers: Any, in_channels: int | None, out_channels: int, kernel_size: int, **options: Any
) -> nn.Module:
    """A convolution with ReLU as one layer; `options` are those of `layers.Conv2d`."""
    if in_channels is None:
        kind = _LazyFused if hasattr(layers, "Conv2dAct") else _LazyUnfused
        return kind(out_channels, kernel_size, **options)
    return blocks.conv_act(layers, in_channels, out_channels, kernel_size, **options)


def norm(layers: Any, channels: int | None) -> nn.Module:
    """Batch normalisation of images."""
    return layers.LazyBatchNorm2d() if channels is None else layers.BatchNorm2d(channels)


class _LazyUnfused(nn.LazyConv2d):
    """Becomes `unfused.Conv2dAct`; its parameters come, and its class changes, before its forward runs."""

    cls_to_become = unfused.Conv2dAct  # type: ignore[assignment]
    forward = unfused.Conv2dAct.forward

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = "relu"


class _LazyFused(_LazyUnfused):
    cls_to_become = d2lfast.nn.Conv2dAct  # type: ignore[assignment]
    forward = d2lfast.nn.Conv2dAct.forward
