"""GoogLeNet and its Inception block (Szegedy et al., 2015; book, 8.4)."""

from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.lazy import conv_relu


class Inception(nn.Module):
    """Four branches side by side, concatenated along the channels; ReLU follows every convolution.

    Args:
        c1: channels of the 1x1 branch.
        c2, c3: channels of the 1x1 convolution and of the 3x3 (`c2`) or 5x5 (`c3`) convolution behind it.
        c4: channels of the 1x1 convolution behind a 3x3 maximum.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, c1 + c2[1] + c3[1] + c4, H, W].
    """

    def __init__(
        self,
        c1: int,
        c2: tuple[int, int],
        c3: tuple[int, int],
        c4: int,
        *,
        in_channels: int | None = None,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.b1_1 = conv_relu(layers, in_channels, c1, 1)
        self.b2_1 = conv_relu(layers, in_channels, c2[0], 1)
        self.b2_2 = conv_relu(layers, c2[0], c2[1], 3, padding=1)
        self.b3_1 = conv_relu(layers, in_channels, c3[0], 1)
        self.b3_2 = conv_relu(layers, c3[0], c3[1], 5, padding=2)
        self.b4_1 = layers.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.b4_2 = conv_relu(layers, in_channels, c4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenated branches."""
        b2 = self.b2_2(self.b2_1(x))
        b3 = self.b3_2(self.b3_1(x))
        b4 = self.b4_2(self.b4_1(x))
        return torch.cat((self.b1_1(x), b2, b3, b4), dim=1)


class GoogLeNet(ImageClassifier):
    """Nine Inception blocks; 5,977,530 parameters for one channel and ten classes.

    As in the book without auxiliary heads, dropout and local response normalisation.

    Args:
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], logits; 96 pixels in the book.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()

        def inception(in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> Any:
            return Inception(c1, c2, c3, c4, in_channels=in_channels, layers=layers)

        def halve() -> nn.Module:
            return layers.MaxPool2d(kernel_size=3, stride=2, padding=1)

        b1 = [layers.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3), layers.ReLU(), halve()]
        b2 = [
            layers.Conv2d(64, 64, kernel_size=1),
            layers.ReLU(),
            layers.Conv2d(64, 192, kernel_size=3, padding=1),
            layers.ReLU(),
            halve(),
        ]
        b3 = [
            inception(192, 64, (96, 128), (16, 32), 32),
            inception(256, 128, (128, 192), (32, 96), 64),
            halve(),
        ]
        b4 = [
            inception(480, 192, (96, 208), (16, 48), 64),
            inception(512, 160, (112, 224), (24, 64), 64),
            inception(512, 128, (128, 256), (24, 64), 64),
            inception(512, 112, (144, 288), (32, 64), 64),
            inception(528, 256, (160, 320), (32, 128), 128),
            halve(),
        ]
        b5 = [
            inception(832, 256, (160, 320), (32, 128), 128),
            inception(832, 384, (192, 384), (48, 128), 128),
            layers.AdaptiveAvgPool2d((1, 1)),
            layers.Flatten(),
        ]
        blocks = [layers.Sequential(*block) for block in (b1, b2, b3, b4, b5)]
        self.net = layers.Sequential(*blocks, layers.Linear(1024, num_classes))
