"""AnyNet and RegNet (Radosavovic et al., 2020; book, 8.8)."""

from collections.abc import Sequence
from typing import Any

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier
from d2lfast.models.resnext import resnext_stage


class AnyNet(ImageClassifier):
    """A stem, stages of ResNeXt blocks that halve the image, a head: a family of networks.

    Args:
        arch: for every stage the depth, the channels, the width of a group and the bottleneck's factor.
        stem_channels: of the stem.
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], logits; 96 pixels in the book.
    """

    def __init__(
        self,
        arch: Sequence[tuple[int, int, int, float]],
        stem_channels: int,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Sequential(
                layers.Conv2d(in_channels, stem_channels, kernel_size=3, stride=2, padding=1),
                layers.BatchNorm2d(stem_channels),
                layers.ReLU(),
            )
        )
        channels = stem_channels
        for index, (depth, num_channels, groups, bot_mul) in enumerate(arch):
            stage = resnext_stage(depth, channels, num_channels, groups, bot_mul, layers=layers)
            self.net.add_module(f"stage{index + 1}", stage)
            channels = num_channels
        head = [layers.AdaptiveAvgPool2d((1, 1)), layers.Flatten(), layers.Linear(channels, num_classes)]
        self.net.add_module("head", layers.Sequential(*head))


class RegNetX32(AnyNet):
    """The book's 32-layer network; 179,290 parameters for one channel and ten classes.

    Arguments and shapes as for `AnyNet`.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__(((4, 32, 16, 1), (6, 80, 16, 1)), 32, num_classes, in_channels, layers=layers)
