"""Initialisation of the weights as the book has it."""

from torch import nn
from torch.nn.parameter import is_lazy


def init_cnn(module: nn.Module) -> None:
    """Fill the weight of a linear or convolutional layer by Xavier's uniform rule; for `Module.apply`.

    Biases keep torch's default. Unlike the book's function, which compares types, it takes subclasses too:
    d2lfast's layers are subclasses of torch's. Lazy layers that have seen no input yet are left as they are.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)) and not is_lazy(module.weight):
        nn.init.xavier_uniform_(module.weight)
