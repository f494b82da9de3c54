"""AlexNet (Krizhevsky et al., 2012; book, 8.1)."""

from typing import Any

from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.fusion import conv_act


class AlexNet(nn.Module):
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
            *conv_act(layers, in_channels, 96, 11, stride=4, padding=1),
            layers.MaxPool2d(kernel_size=3, stride=2),
            *conv_act(layers, 96, 256, 5, padding=2),
            layers.MaxPool2d(kernel_size=3, stride=2),
            *conv_act(layers, 256, 384, 3, padding=1),
            *conv_act(layers, 384, 384, 3, padding=1),
            *conv_act(layers, 384, 256, 3, padding=1),
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

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.net(x)
