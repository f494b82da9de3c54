"""ResNeXt (Xie et al., 2017; book, 8.6.5): residual blocks with grouped convolutions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.blocks import norm_act
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.lazy import conv


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution with batch normalisation, added to the input.

    Args:
        num_channels: of the output.
        groups: channels of one group. The book's prose takes it for the number of groups, its code, which
            this follows, for their width.
        bot_mul: the 3x3 convolution has round(num_channels * bot_mul) channels.
        use_1x1conv: take the shortcut through a 1x1 convolution with batch normalisation.
        strides: of the 3x3 convolution and of the shortcut.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_channels, ceil(H / strides), ceil(W / strides)].
    """

    def __init__(
        self,
        num_channels: int,
        groups: int,
        bot_mul: float,
        use_1x1conv: bool = False,
        strides: int = 1,
        *,
        in_channels: int | None = None,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        width = round(num_channels * bot_mul)
        self.conv1 = conv(layers, in_channels, width, 1)
        self.conv2 = layers.Conv2d(
            width, width, kernel_size=3, stride=strides, padding=1, groups=width // groups
        )
        self.conv3 = layers.Conv2d(width, num_channels, kernel_size=1)
        self.bn1 = norm_act(layers, width)
        self.bn2 = norm_act(layers, width)
        self.bn3 = norm_act(layers, num_channels)
        if use_1x1conv:
            self.conv4 = conv(layers, in_channels, num_channels, 1, stride=strides)
            self.bn4 = layers.BatchNorm2d(num_channels)
        else:
            self.conv4 = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        return self.bn3(y, x if self.conv4 is None else self.bn4(self.conv4(x)))


def resnext_stage(
    depth: int,
    in_channels: int,
    num_channels: int,
    groups: int,
    bot_mul: float,
    *,
    strides: int = 2,
    layers: Any = d2lfast.nn,
) -> nn.Sequential:
    """`ResNeXtBlock`s of which the first has `strides` and changes the channels."""
    blocks = [
        ResNeXtBlock(num_channels, groups, bot_mul, True, strides, in_channels=in_channels, layers=layers)
    ]
    for _ in range(depth - 1):
        blocks.append(ResNeXtBlock(num_channels, groups, bot_mul, in_channels=num_channels, layers=layers))
    return layers.Sequential(*blocks)


class ResNeXt(ImageClassifier):
    """ResNet's stem and head around ResNeXt blocks; the book shows the block alone.

    Args:
        arch: for every stage the number of blocks and of channels; all but the first halve the image.
        groups, bot_mul: of every block.
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], logits.
    """

    def __init__(
        self,
        arch: Sequence[tuple[int, int]] = ((2, 64), (2, 128), (2, 256), (2, 512)),
        groups: int = 16,
        bot_mul: float = 1,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Sequential(
                layers.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
                layers.BatchNorm2d(64),
                layers.ReLU(),
                layers.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        )
        channels = 64
        for index, (depth, num_channels) in enumerate(arch):
            strides = 1 if index == 0 else 2
            stage = resnext_stage(
                depth, channels, num_channels, groups, bot_mul, strides=strides, layers=layers
            )
            self.net.add_module(f"b{index + 2}", stage)
            channels = num_channels
        head = [layers.AdaptiveAvgPool2d((1, 1)), layers.Flatten(), layers.Linear(channels, num_classes)]
        self.net.add_module("last", layers.Sequential(*head))
