"""AlexNet (Krizhevsky et al., 2012; book, 8.1)."""

from typing import Any

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier


class AlexNet(ImageClassifier):
    """Five convolutions and three large linear layers; 46,764,746 parameters for one channel and ten classes.

    Args:
        num_classes: size of the output.
        in_channels: channels of the input.
        image_size: height and width of the input; 96 is about the least.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, image_size, image_size] -> [N, num_classes], logits.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        image_size: int = 224,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        size = (image_size + 2 - 11) // 4 + 1
        for _ in range(3):
            size = (size - 3) // 2 + 1
        self.net = layers.Sequential(
            layers.Conv2d(in_channels, 96, kernel_size=11, stride=4, padding=1),
            layers.ReLU(),
            layers.MaxPool2d(kernel_size=3, stride=2),
            layers.Conv2d(96, 256, kernel_size=5, padding=2),
            layers.ReLU(),
            layers.MaxPool2d(kernel_size=3, stride=2),
            layers.Conv2d(256, 384, kernel_size=3, padding=1),
            layers.ReLU(),
            layers.Conv2d(384, 384, kernel_size=3, padding=1),
            layers.ReLU(),
            layers.Conv2d(384, 256, kernel_size=3, padding=1),
            layers.ReLU(),
            layers.MaxPool2d(kernel_size=3, stride=2),
            layers.Flatten(),
            layers.Linear(256 * size * size, 4096),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Linear(4096, 4096),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Linear(4096, num_classes),
        )
