"""Network in network (Lin et al., 2013; book, 8.3)."""

from typing import Any

from torch import nn

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.lazy import conv


def nin_block(
    out_channels: int,
    kernel_size: int,
    strides: int,
    padding: int,
    *,
    in_channels: int | None = None,
    layers: Any = d2lfast.nn,
) -> nn.Sequential:
    """A convolution and two 1x1 convolutions, each with ReLU.

    Args:
        out_channels: of each convolution.
        kernel_size, strides, padding: of the first.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.
    """
    return layers.Sequential(
        conv(layers, in_channels, out_channels, kernel_size, stride=strides, padding=padding),
        layers.ReLU(),
        layers.Conv2d(out_channels, out_channels, kernel_size=1),
        layers.ReLU(),
        layers.Conv2d(out_channels, out_channels, kernel_size=1),
        layers.ReLU(),
    )


class NiN(ImageClassifier):
    """Four blocks and a global mean in place of linear layers; 1,992,166 parameters.

    As in the book a ReLU follows the last convolution too, so that no logit is negative.

    Args:
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], logits; 224 pixels in the book.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Sequential(
            nin_block(96, 11, 4, 0, in_channels=in_channels, layers=layers),
            layers.MaxPool2d(kernel_size=3, stride=2),
            nin_block(256, 5, 1, 2, in_channels=96, layers=layers),
            layers.MaxPool2d(kernel_size=3, stride=2),
            nin_block(384, 3, 1, 1, in_channels=256, layers=layers),
            layers.MaxPool2d(kernel_size=3, stride=2),
            layers.Dropout(0.5),
            nin_block(num_classes, 3, 1, 1, in_channels=384, layers=layers),
            layers.AdaptiveAvgPool2d((1, 1)),
            layers.Flatten(),
        )
