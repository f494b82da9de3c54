"""Convolutional networks that know how they are trained (book, 7.6 to 8.8).

The networks are those of `d2lfast.models`. Unlike the book's they are built for images of one channel, and
those that end in large linear layers for the size that the book trains them on; `in_channels` and
`image_size` change that. So they need no dry run before they are initialised.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2lfast import models
from d2lfast.nn import functional as F
from d2lfast.training import Classifier

__all__ = [
    "VGG", "AlexNet", "AnyNet", "BNLeNet", "BNLeNetScratch", "Conv2D", "DenseNet", "GoogLeNet", "GoogleNet",
    "LeNet", "NiN", "RegNetX32", "ResNeXt", "ResNet", "ResNet18", "comp_conv2d", "resnet18",
]  # fmt: skip


class LeNet(Classifier):
    """LeNet-5 (7.6)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.LeNet(num_classes, in_channels).net


class AlexNet(Classifier):
    """AlexNet (8.1)."""

    def __init__(
        self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1, image_size: int = 224
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.AlexNet(num_classes, in_channels, image_size=image_size).net


class VGG(Classifier):
    """VGG (8.2); `arch` has the number of convolutions and of channels of every block."""

    def __init__(
        self,
        arch: Sequence[tuple[int, int]],
        lr: float = 0.1,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.VGG(tuple(arch), num_classes, in_channels, image_size=image_size).net


class NiN(Classifier):
    """Network in network (8.3)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.NiN(num_classes, in_channels).net


class GoogleNet(Classifier):
    """GoogLeNet (8.4)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.GoogLeNet(num_classes, in_channels).net


GoogLeNet = GoogleNet


class BNLeNetScratch(Classifier):
    """LeNet with batch normalisation from scratch (8.5)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.BNLeNetScratch(num_classes, in_channels).net


class BNLeNet(Classifier):
    """LeNet with batch normalisation (8.5)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.BNLeNet(num_classes, in_channels).net


class ResNet(Classifier):
    """A residual network (8.6); `arch` has the number of blocks and of channels of every stage."""

    def __init__(
        self, arch: Sequence[tuple[int, int]], lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.ResNet(arch, num_classes, in_channels).net


class ResNet18(ResNet):
    """ResNet-18 (8.6)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        arch = ((2, 64), (2, 128), (2, 256), (2, 512))
        super().__init__(arch, lr, num_classes, in_channels=in_channels)


class ResNeXt(Classifier):
    """A network of ResNeXt blocks (8.6.5); the book has the block alone."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.ResNeXt(num_classes=num_classes, in_channels=in_channels).net


class DenseNet(Classifier):
    """DenseNet (8.7)."""

    def __init__(
        self,
        num_channels: int = 64,
        growth_rate: int = 32,
        arch: Sequence[int] = (4, 4, 4, 4),
        lr: float = 0.1,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.DenseNet(num_channels, growth_rate, arch, num_classes, in_channels).net


class AnyNet(Classifier):
    """The space that RegNets are found in (8.8); `arch` has depth, channels, groups, bottleneck per stage."""

    def __init__(
        self,
        arch: Sequence[tuple[int, int, int, float]],
        stem_channels: int,
        lr: float = 0.1,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.AnyNet(arch, stem_channels, num_classes, in_channels).net


class RegNetX32(AnyNet):
    """RegNetX with 32 channels in its stem (8.8)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, *, in_channels: int = 1) -> None:
        arch = ((4, 32, 16, 1), (6, 80, 16, 1))
        super().__init__(arch, 32, lr, num_classes, in_channels=in_channels)


def resnet18(num_classes: int, in_channels: int = 1) -> nn.Module:
    """ResNet-18 for small images, without the pooling of the stem (13.6)."""
    return models.ResNet18(num_classes, in_channels, small_stem=True)


class Conv2D(nn.Module):
    """Cross-correlation of a matrix with a kernel that is learned, and a bias (7.2)."""

    def __init__(self, kernel_size: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(kernel_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [h - kh + 1, w - kw + 1]."""
        return F.conv2d(x[None, None], self.weight[None, None])[0, 0] + self.bias


def comp_conv2d(conv2d: nn.Module, X: Tensor) -> Tensor:
    """Apply a convolution of one channel to a matrix (7.3)."""
    Y = conv2d(X[None, None])
    return Y.reshape(Y.shape[2:])
