"""Softmax regression from scratch (book, 4.4) and from layers (4.5)."""

from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.lazy import linear


def softmax(X: Tensor) -> Tensor:
    """Exponentials of X [N, C], divided by their sum over C.

    The book's overflows for large inputs; here the maximum is taken off first.
    """
    X_exp = torch.exp(X - X.amax(1, keepdim=True))
    return X_exp / X_exp.sum(1, keepdim=True)


def cross_entropy(y_hat: Tensor, y: Tensor) -> Tensor:
    """Mean of minus the logarithm of the probability y_hat [N, C] of the classes y [N]."""
    return -torch.log(y_hat[torch.arange(len(y_hat), device=y_hat.device), y]).mean()


class SoftmaxRegressionScratch(nn.Module):
    """softmax(X W + b), with W from N(0, sigma^2).

    Args:
        num_inputs, num_outputs: numbers in an image, classes.
        sigma: standard deviation of the initial weights.
        layers: ignored; it has no layers.

    Shapes: [N, ...] of num_inputs numbers -> [N, num_outputs], probabilities; train it on `cross_entropy`.
    """

    def __init__(
        self, num_inputs: int = 784, num_outputs: int = 10, sigma: float = 0.01, *, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(num_inputs, num_outputs) * sigma)
        self.b = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Return the probabilities."""
        return softmax(X.flatten(1) @ self.W + self.b)


class SoftmaxRegression(nn.Module):
    """Flatten and one linear layer; 7,850 parameters for 28x28 images and ten classes.

    Args:
        num_outputs: classes.
        num_inputs: numbers in an image; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, ...] of num_inputs numbers -> [N, num_outputs], logits.
    """

    def __init__(
        self, num_outputs: int = 10, *, num_inputs: int | None = 784, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__()
        self.net = layers.Sequential(layers.Flatten(), linear(layers, num_inputs, num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(X)
