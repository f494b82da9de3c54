"""Small data and models for the tests of the training."""

import torch
from torch import nn
from torch.nn import functional as F

from d2lfast.data import ImageData, Images, TensorLoader
from d2lfast.training import DataModule, NetworkModule


def images(train=96, validation=40, classes=10):
    """Bright stripes whose place is the class: a network learns them in a few steps."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (train, validation):
        labels = torch.arange(count) % classes
        pictures = torch.rand(count, 1, 28, 28, generator=generator) * 0.2
        for picture, label in zip(pictures, labels):
            picture[0, 2 * label : 2 * label + 3] += 0.8
        parts += [pictures, labels]
    return Images("stripes", "memory", tuple(map(str, range(classes))), *parts)


def data(train=96, validation=40, batch_size=32):
    return ImageData(images(train, validation), batch_size)


def module(net, lr=0.1):
    return NetworkModule(net, F.cross_entropy, lr, accuracy=True)


def linear(layers=nn):
    return module(layers.Sequential(nn.Flatten(), nn.Linear(784, 10)))


class Points(DataModule):
    """y = 2x - 1 without noise."""

    def __init__(self, batch_size=8, count=32, validation=True):
        super().__init__()
        self.save_hyperparameters()
        self.X = torch.linspace(-1, 1, count).reshape(-1, 1)
        self.y = 2 * self.X - 1

    def get_dataloader(self, train):
        if not train and not self.validation:
            return None
        return TensorLoader(self.X, self.y, batch_size=self.batch_size, shuffle=train)
