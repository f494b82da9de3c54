"""Densely connected networks (Huang et al., 2017; book, 8.7)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.lazy import conv, norm


class DenseBlock(nn.Module):
    """Convolutions (batch normalisation, ReLU, 3x3) that each see all that came before.

    Args:
        num_convs: how many.
        num_channels: that each adds, the growth rate.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, in_channels + num_convs * num_channels, H, W].
    """

    def __init__(
        self, num_convs: int, num_channels: int, *, in_channels: int | None = None, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__()
        blocks = []
        for index in range(num_convs):
            channels = None if in_channels is None else in_channels + index * num_channels
            convolution = conv(layers, channels, num_channels, 3, padding=1)
            blocks.append(layers.Sequential(norm(layers, channels), layers.ReLU(), convolution))
        self.net = layers.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the outputs of all convolutions, concatenated."""
        for block in self.net:
            x = torch.cat((x, block(x)), dim=1)
        return x


def transition_block(
    num_channels: int, *, in_channels: int | None = None, layers: Any = d2lfast.nn
) -> nn.Sequential:
    """Batch normalisation, ReLU, a 1x1 convolution to `num_channels` and a mean that halves the image.

    Args:
        num_channels: of the output.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.
    """
    return layers.Sequential(
        norm(layers, in_channels),
        layers.ReLU(),
        conv(layers, in_channels, num_channels, 1),
        layers.AvgPool2d(kernel_size=2, stride=2),
    )


class DenseNet(ImageClassifier):
    """Dense blocks with transitions between them; 758,226 parameters for one channel and ten classes.

    Args:
        num_channels: of the stem.
        growth_rate: channels that each convolution of a block adds.
        arch: number of convolutions of each block.
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], logits; 96 pixels in the book.
    """

    def __init__(
        self,
        num_channels: int = 64,
        growth_rate: int = 32,
        arch: Sequence[int] = (4, 4, 4, 4),
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Sequential(
                layers.Conv2d(in_channels, num_channels, kernel_size=7, stride=2, padding=3),
                layers.BatchNorm2d(num_channels),
                layers.ReLU(),
                layers.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        )
        channels = num_channels
        for index, num_convs in enumerate(arch):
            block = DenseBlock(num_convs, growth_rate, in_channels=channels, layers=layers)
            self.net.add_module(f"dense_blk{index + 1}", block)
            channels += num_convs * growth_rate
            if index < len(arch) - 1:
                transition = transition_block(channels // 2, in_channels=channels, layers=layers)
                self.net.add_module(f"tran_blk{index + 1}", transition)
                channels //= 2
        head = [
            layers.BatchNorm2d(channels),
            layers.ReLU(),
            layers.AdaptiveAvgPool2d((1, 1)),
            layers.Flatten(),
            layers.Linear(channels, num_classes),
        ]
        self.net.add_module("last", layers.Sequential(*head))
