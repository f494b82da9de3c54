"""Residual networks (He et al., 2016; book, 8.6) and the variant for small images (book, 13.6)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.blocks import norm_act
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.lazy import conv


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the input or to its 1x1 convolution.

    Args:
        num_channels: of the output.
        use_1x1conv: take the shortcut through a 1x1 convolution, which changes channels and size. As in the
            book it has no batch normalisation.
        strides: of the first convolution and of the shortcut.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_channels, ceil(H / strides), ceil(W / strides)].
    """

    def __init__(
        self,
        num_channels: int,
        use_1x1conv: bool = False,
        strides: int = 1,
        *,
        in_channels: int | None = None,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.conv1 = conv(layers, in_channels, num_channels, 3, padding=1, stride=strides)
        self.conv2 = layers.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.conv3 = conv(layers, in_channels, num_channels, 1, stride=strides) if use_1x1conv else None
        self.bn1 = norm_act(layers, num_channels)
        self.bn2 = norm_act(layers, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.conv2(self.bn1(self.conv1(x)))
        return self.bn2(y, x if self.conv3 is None else self.conv3(x))


def residual_stage(
    num_residuals: int,
    in_channels: int,
    num_channels: int,
    *,
    first_block: bool = False,
    layers: Any = d2lfast.nn,
) -> nn.Sequential:
    """`Residual` blocks; unless `first_block`, the first halves the image and changes the channels."""
    blocks = []
    for index in range(num_residuals):
        if index == 0 and not first_block:
            block = Residual(num_channels, True, 2, in_channels=in_channels, layers=layers)
        else:
            block = Residual(num_channels, in_channels=num_channels, layers=layers)
        blocks.append(block)
    return layers.Sequential(*blocks)


class ResNet(ImageClassifier):
    """A residual network.

    Args:
        arch: for every stage the number of blocks and of channels; the first stage keeps the 64 channels of
            the stem.
        num_classes: size of the output.
        in_channels: channels of the input.
        small_stem: a 3x3 convolution without pooling, for images of about 28 pixels (book, 13.6), in place of
            a 7x7 convolution and a maximum, which quarter the image.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], logits.
    """

    def __init__(
        self,
        arch: Sequence[tuple[int, int]],
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        small_stem: bool = False,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        if small_stem:
            stem = [
                layers.Conv2d(in_channels, 64, kernel_size=3, padding=1),
                layers.BatchNorm2d(64),
                layers.ReLU(),
            ]
        else:
            stem = [
                layers.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
                layers.BatchNorm2d(64),
                layers.ReLU(),
                layers.MaxPool2d(kernel_size=3, stride=2, padding=1),
            ]
        self.net = layers.Sequential(layers.Sequential(*stem))
        channels = 64
        for index, (num_residuals, num_channels) in enumerate(arch):
            stage = residual_stage(
                num_residuals, channels, num_channels, first_block=index == 0, layers=layers
            )
            self.net.add_module(f"b{index + 2}", stage)
            channels = num_channels
        head = [layers.AdaptiveAvgPool2d((1, 1)), layers.Flatten(), layers.Linear(channels, num_classes)]
        self.net.add_module("last", layers.Sequential(*head))


class ResNet18(ResNet):
    """The 18-layer network; 11,178,378 parameters for one channel and ten classes, the small one 11,175,818.

    Arguments and shapes as for `ResNet`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        small_stem: bool = False,
        layers: Any = d2lfast.nn,
    ) -> None:
        arch = ((2, 64), (2, 128), (2, 256), (2, 512))
        super().__init__(arch, num_classes, in_channels, small_stem=small_stem, layers=layers)
