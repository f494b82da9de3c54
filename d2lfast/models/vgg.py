"""VGG (Simonyan and Zisserman, 2014; book, 8.2)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.lazy import conv

Arch = Sequence[tuple[int, int]]

VGG11: Arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
# A quarter of the channels: what the book trains.
VGG11_SMALL: Arch = ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128))


def vgg_block(
    num_convs: int, out_channels: int, *, in_channels: int | None = None, layers: Any = d2lfast.nn
) -> nn.Sequential:
    """3x3 convolutions with ReLU, then a maximum that halves height and width.

    Args:
        num_convs: how many convolutions.
        out_channels: of each.
        in_channels: of the input; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.
    """
    return layers.Sequential(*_vgg_block(num_convs, out_channels, in_channels, layers))


class VGGBlock(nn.Sequential):
    """`vgg_block` as a class; the same arguments, `state_dict` and numbers."""

    def __init__(
        self, num_convs: int, out_channels: int, *, in_channels: int | None = None, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__(*_vgg_block(num_convs, out_channels, in_channels, layers))


def _vgg_block(num_convs: int, out_channels: int, in_channels: int | None, layers: Any) -> list[nn.Module]:
    block: list[nn.Module] = []
    for _ in range(num_convs):
        block += [conv(layers, in_channels, out_channels, 3, padding=1), layers.ReLU()]
        in_channels = out_channels
    return [*block, layers.MaxPool2d(kernel_size=2, stride=2)]


class VGG(ImageClassifier):
    """VGG blocks and three linear layers; VGG-11 has 128,806,154 parameters, the book's small one 43,093,322.

    Args:
        arch: for every block the number of convolutions and of channels.
        num_classes: size of the output.
        in_channels: channels of the input.
        image_size: height and width of the input, a multiple of 2 ** len(arch).
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, image_size, image_size] -> [N, num_classes], logits.
    """

    def __init__(
        self,
        arch: Arch = VGG11,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        image_size: int = 224,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        blocks = []
        channels = in_channels
        for num_convs, out_channels in arch:
            blocks.append(vgg_block(num_convs, out_channels, in_channels=channels, layers=layers))
            channels = out_channels
        self.net = layers.Sequential(
            *blocks,
            layers.Flatten(),
            layers.Linear(channels * (image_size >> len(arch)) ** 2, 4096),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Linear(4096, 4096),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Linear(4096, num_classes),
        )
