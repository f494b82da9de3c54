"""The blocks of the book's builders' guide (6.1, 6.2, 6.5 and 6.6)."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import d2lfast.nn


class BlockMLP(nn.Module):
    """The guide's `MLP`: a block with a hidden layer of 256 and ten outputs, on inputs of any width.

    Args:
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`; so for all blocks here.
    """

    def __init__(self, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.hidden = layers.LazyLinear(256)
        self.out = layers.LazyLinear(10)

    def forward(self, X: Tensor) -> Tensor:
        """Return [N, 10]."""
        return self.out(F.relu(self.hidden(X)))


class MySequential(nn.Module):
    """Calls its blocks one after the other."""

    def __init__(self, *args: nn.Module) -> None:
        super().__init__()
        for index, module in enumerate(args):
            self.add_module(str(index), module)

    def forward(self, X: Any) -> Any:
        """Return the last block's output."""
        for module in self.children():
            X = module(X)
        return X


class FixedHiddenMLP(nn.Module):
    """A block with weights that are not trained, a layer that is used twice, and a loop in its forward.

    Unlike the book's, the fixed weights are a buffer: they follow the module to other devices and into its
    `state_dict`.
    """

    rand_weight: Tensor

    def __init__(self, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.register_buffer("rand_weight", torch.rand(20, 20))
        self.linear = layers.LazyLinear(20)

    def forward(self, X: Tensor) -> Tensor:
        """Return the sum of the outputs, halved until its absolute values sum to at most one."""
        X = F.relu(self.linear(X) @ self.rand_weight + 1)
        X = self.linear(X)
        while X.abs().sum() > 1:
            X = X / 2
        return X.sum()


class NestMLP(nn.Module):
    """A block that holds a chain of layers: [N, features] -> [N, 16]."""

    def __init__(self, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.LazyLinear(64), layers.ReLU(), layers.LazyLinear(32), layers.ReLU()
        )
        self.linear = layers.LazyLinear(16)

    def forward(self, X: Tensor) -> Tensor:
        """Return [N, 16]."""
        return self.linear(self.net(X))


class CenteredLayer(nn.Module):
    """Takes off the mean; it has no parameters."""

    def forward(self, X: Tensor) -> Tensor:
        """Return X less its mean."""
        return X - X.mean()


class MyLinear(nn.Module):
    """relu(X W + b), with W [in_units, units] and b from N(0, 1)."""

    def __init__(self, in_units: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_units, units))
        self.bias = nn.Parameter(torch.randn(units))

    def forward(self, X: Tensor) -> Tensor:
        """Return [N, units]."""
        return F.relu(X @ self.weight + self.bias)


def tied_mlp(*, layers: Any = d2lfast.nn) -> nn.Sequential:
    """Four linear layers of which the second and the third are one: its gradients add up."""
    shared = layers.LazyLinear(8)
    return layers.Sequential(
        layers.LazyLinear(8),
        layers.ReLU(),
        shared,
        layers.ReLU(),
        shared,
        layers.ReLU(),
        layers.LazyLinear(1),
    )


def save_parameters(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the `state_dict` of `model` to a file, which is only replaced when all is written."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(target)


def load_parameters(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Fill `model` from a file of `save_parameters`, in place, and return it.

    Raises:
        RuntimeError: parameters are missing, left over, or of another shape.
    """
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model
