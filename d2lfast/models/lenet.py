"""LeNet (LeCun et al., 1998; book, 7.6) and LeNet with batch normalisation (book, 8.5)."""

from typing import Any

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier


class LeNet(ImageClassifier):
    """LeNet-5 with sigmoids and average pooling; 61,706 parameters for one channel and ten classes.

    Args:
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, 28, 28] -> [N, num_classes], logits.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Conv2d(in_channels, 6, kernel_size=5, padding=2),
            layers.Sigmoid(),
            layers.AvgPool2d(kernel_size=2, stride=2),
            layers.Conv2d(6, 16, kernel_size=5),
            layers.Sigmoid(),
            layers.AvgPool2d(kernel_size=2, stride=2),
            layers.Flatten(),
            layers.Linear(16 * 5 * 5, 120),
            layers.Sigmoid(),
            layers.Linear(120, 84),
            layers.Sigmoid(),
            layers.Linear(84, num_classes),
        )


class BNLeNet(ImageClassifier):
    """LeNet with a batch normalisation before every sigmoid.

    44,878 parameters for one channel and ten classes. The first convolution has no padding. Arguments and
    shapes as for `LeNet`.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Conv2d(in_channels, 6, kernel_size=5),
            layers.BatchNorm2d(6),
            layers.Sigmoid(),
            layers.AvgPool2d(kernel_size=2, stride=2),
            layers.Conv2d(6, 16, kernel_size=5),
            layers.BatchNorm2d(16),
            layers.Sigmoid(),
            layers.AvgPool2d(kernel_size=2, stride=2),
            layers.Flatten(),
            layers.Linear(16 * 4 * 4, 120),
            layers.BatchNorm1d(120),
            layers.Sigmoid(),
            layers.Linear(120, 84),
            layers.BatchNorm1d(84),
            layers.Sigmoid(),
            layers.Linear(84, num_classes),
        )


def lenet(num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> LeNet:
    """Build a `LeNet` with the book's initialisation left to the caller (`model.apply(init_cnn)`)."""
    return LeNet(num_classes, in_channels, layers=layers)


def bn_lenet(num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> BNLeNet:
    """Build a `BNLeNet` with the book's initialisation left to the caller (`model.apply(init_cnn)`)."""
    return BNLeNet(num_classes, in_channels, layers=layers)
