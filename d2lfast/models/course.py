"""The networks of the PyTorch course that the notes follow: its Inception net, `ShortCut`, and "hello"."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import d2lfast.nn
from d2lfast.models.blocks import norm_act


class CourseInception(nn.Module):
    """Four branches of 88 channels together, without activations; average pooling, two 3x3 for the last.

    Args:
        in_channels: of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, 88, H, W].
    """

    def __init__(self, in_channels: int, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.pool = layers.AvgPool2d(kernel_size=3, stride=1, padding=1)
        self.branch_pool = layers.Conv2d(in_channels, 24, kernel_size=1)
        self.branch1x1 = layers.Conv2d(in_channels, 16, kernel_size=1)
        self.branch5x5_1 = layers.Conv2d(in_channels, 16, kernel_size=1)
        self.branch5x5_2 = layers.Conv2d(16, 24, kernel_size=5, padding=2)
        self.branch3x3_1 = layers.Conv2d(in_channels, 16, kernel_size=1)
        self.branch3x3_2 = layers.Conv2d(16, 24, kernel_size=3, padding=1)
        self.branch3x3_3 = layers.Conv2d(24, 24, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenated branches."""
        pooled = self.branch_pool(self.pool(x))
        b5x5 = self.branch5x5_2(self.branch5x5_1(x))
        b3x3 = self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x)))
        return torch.cat((pooled, self.branch1x1(x), b5x5, b3x3), dim=1)


class CourseNet(nn.Module):
    """Two convolutions and two `CourseInception` blocks; 97,298 parameters for one channel and ten classes.

    Args:
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, 28, 28] -> [N, num_classes], logits.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(in_channels, 10, kernel_size=5)
        self.incep1 = CourseInception(10, layers=layers)
        self.conv2 = layers.Conv2d(88, 20, kernel_size=5)
        self.incep2 = CourseInception(20, layers=layers)
        self.mp = layers.MaxPool2d(2)
        self.fc = layers.Linear(88 * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.incep1(F.relu(self.mp(self.conv1(x))))
        x = self.incep2(F.relu(self.mp(self.conv2(x))))
        return self.fc(x.flatten(1))


class ShortCut(nn.Module):
    """The course's residual block; 1,270 parameters for (3, 10).

    The course gives `stride` to both 3x3 convolutions and not to the shortcut, so that none but 1 works. Here
    the first convolution and the shortcut take it.

    Args:
        in_channels, out_channels: if they differ, or `stride` is not 1, the shortcut is a 1x1 convolution.
        stride: of the block.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.bn1 = norm_act(layers, out_channels)
        self.conv2 = layers.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.bn2 = norm_act(layers, out_channels)
        if in_channels != out_channels or stride != 1:
            self.shortcut = layers.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)
        else:
            self.shortcut = layers.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.conv2(self.bn1(self.conv1(x)))
        return self.bn2(y, self.shortcut(x))
