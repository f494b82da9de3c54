"""Small data for the examples, so that they can be tried without a download: `--small`."""

import sys

import torch

from d2lfast import book as d2l
from d2lfast.data import ImageData, Images, TextData

SMALL = "--small" in sys.argv


def epochs(usual: int) -> int:
    """The book's number of epochs, or one."""
    return 1 if SMALL else usual


def fashion_mnist(batch_size: int, resize: tuple[int, int] = (28, 28)) -> ImageData:
    """Fashion-MNIST, or a few images of noise."""
    if not SMALL:
        return d2l.FashionMNIST(batch_size, resize)
    parts = [torch.rand(8, 1, *resize), torch.arange(8), torch.rand(4, 1, *resize), torch.arange(4)]
    return ImageData(Images("noise", "memory", tuple("0123456789"), *parts), 4, resize)


def time_machine(batch_size: int, num_steps: int) -> TextData:
    """The Time Machine, or one sentence of it."""
    if not SMALL:
        return d2l.TimeMachine(batch_size, num_steps)
    return TextData("the time traveller for so it will be convenient to speak of him " * 3, 16, 8, 64, 16)
