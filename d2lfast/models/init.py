"""Initialisation of parameters as the book has it; for `Module.apply`.

The book's functions compare types, and so skip every subclass, such as d2lfast's layers: these take them. A
lazy layer that has seen no input is left as it is: run a batch first, as `initialize` does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Init = Callable[[nn.Module], None]


def initialize(model: nn.Module, *inputs: Any, init: Init | None = None) -> nn.Module:
    """Give every lazy layer its parameters by running `inputs` through, then apply `init`; return `model`.

    The run leaves no trace besides: it records no gradients and moves no statistics.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        model(*inputs)
    for module, mode in training.items():
        module.training = mode
    if init is not None:
        model.apply(init)
    return model


def init_cnn(module: nn.Module) -> None:
    """Fill the weight of a linear or convolutional layer by Xavier's uniform rule (book, 7.6).

    Biases keep torch's default.
    """
    if (weight := _weight(module, nn.Linear, nn.Conv2d)) is not None:
        nn.init.xavier_uniform_(weight)


def init_seq2seq(module: nn.Module) -> None:
    """Fill the weights of linear and recurrent layers by Xavier's uniform rule (book, 10.7)."""
    if (weight := _weight(module, nn.Linear)) is not None:
        nn.init.xavier_uniform_(weight)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for name, parameter in module.named_parameters(recurse=False):
            if "weight" in name:
                nn.init.xavier_uniform_(parameter)


def init_cnn_normal(module: nn.Module) -> None:
    """Fill the weight of a linear or convolutional layer from N(0, 0.01^2) (book, 13.6)."""
    if (weight := _weight(module, nn.Linear, nn.Conv2d)) is not None:
        nn.init.normal_(weight, std=0.01)


def init_normal(module: nn.Module) -> None:
    """Fill a linear layer's weight from N(0, 0.01^2) and its bias with zeros (book, 6.3)."""
    if (weight := _weight(module, nn.Linear)) is not None:
        nn.init.normal_(weight, std=0.01)
        _zero_bias(module)


def init_constant(module: nn.Module) -> None:
    """Fill a linear layer's weight with ones and its bias with zeros (book, 6.3)."""
    if (weight := _weight(module, nn.Linear)) is not None:
        nn.init.constant_(weight, 1)
        _zero_bias(module)


def init_xavier(module: nn.Module) -> None:
    """Fill a linear layer's weight by Xavier's uniform rule (book, 6.3)."""
    if (weight := _weight(module, nn.Linear)) is not None:
        nn.init.xavier_uniform_(weight)


def init_42(module: nn.Module) -> None:
    """Fill a linear layer's weight with 42 (book, 6.3)."""
    if (weight := _weight(module, nn.Linear)) is not None:
        nn.init.constant_(weight, 42)


def my_init(module: nn.Module) -> None:
    """Draw a linear layer's weight from U(-10, 10) and zero what is smaller than 5 (book, 6.3)."""
    if (weight := _weight(module, nn.Linear)) is not None:
        nn.init.uniform_(weight, -10, 10)
        with torch.no_grad():
            weight *= weight.abs() >= 5


def _weight(module: Any, *kinds: type[nn.Module]) -> Tensor | None:
    """The weight of a layer of these kinds that has one already."""
    if not isinstance(module, kinds):
        return None
    weight: Any = module.weight
    return None if is_lazy(weight) else weight


def _zero_bias(module: Any) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
