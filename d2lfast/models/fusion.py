"""Pairs of layers that `d2lfast.nn` runs as one and `torch.nn` one after the other.

Each pair takes two places in a `Sequential` in either namespace, so that `state_dict` keys, and the indices
of the layers behind it, are the book's.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "tanh": "Tanh"}


def conv_act(
    layers: Any,
    in_channels: int | None,
    out_channels: int,
    kernel_size: int,
    *,
    activation: str = "relu",
    **kwargs: Any,
) -> tuple[nn.Module, nn.Module]:
    """A convolution (see `conv`) and its activation."""
    convolution = conv(layers, in_channels, out_channels, kernel_size, **kwargs)
    return convolution, getattr(layers, ACTIVATIONS[activation])()


def norm_act(layers: Any, channels: int | None, *, activation: str = "relu") -> tuple[nn.Module, nn.Module]:
    """Batch normalisation of images (lazy without `channels`) and its activation."""
    norm = layers.LazyBatchNorm2d() if channels is None else layers.BatchNorm2d(channels)
    return norm, getattr(layers, ACTIVATIONS[activation])()


def add_norm_act(norm: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """relu(norm(x) + residual), the end of a residual block."""
    return F.relu(norm(x) + residual)


def conv(
    layers: Any, in_channels: int | None, out_channels: int, kernel_size: int, **kwargs: Any
) -> nn.Module:
    """A convolution that takes the number of its input channels from the first input if it is None."""
    if in_channels is None:
        return layers.LazyConv2d(out_channels, kernel_size, **kwargs)
    return layers.Conv2d(in_channels, out_channels, kernel_size, **kwargs)
