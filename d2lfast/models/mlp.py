"""Multilayer perceptrons (book, 5.2) and dropout (Srivastava et al., 2014; book, 5.6)."""

from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.lazy import linear


def relu(X: Tensor) -> Tensor:
    """The larger of X and zero."""
    return torch.clamp_min(X, 0)


def dropout_layer(X: Tensor, dropout: float) -> Tensor:
    """Zero each number with probability `dropout` and divide the others by 1 - dropout.

    Raises:
        ValueError: `dropout` is not in [0, 1].
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be between 0 and 1, but got {dropout}")
    if dropout == 1:
        return torch.zeros_like(X)
    mask = torch.rand_like(X) >= dropout
    return mask * X / (1.0 - dropout)


class MLPScratch(nn.Module):
    """One hidden layer with ReLU, with weights from N(0, sigma^2) and zero biases.

    Args:
        num_inputs, num_outputs, num_hiddens: numbers in an image, classes, width of the hidden layer.
        sigma: standard deviation of the initial weights.
        layers: ignored; it has no layers.

    Shapes: [N, ...] of num_inputs numbers -> [N, num_outputs], logits.
    """

    def __init__(
        self,
        num_inputs: int = 784,
        num_outputs: int = 10,
        num_hiddens: int = 256,
        sigma: float = 0.01,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(num_inputs, num_hiddens) * sigma)
        self.b1 = nn.Parameter(torch.zeros(num_hiddens))
        self.W2 = nn.Parameter(torch.randn(num_hiddens, num_outputs) * sigma)
        self.b2 = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits."""
        H = relu(X.flatten(1) @ self.W1 + self.b1)
        return H @ self.W2 + self.b2


class MLP(nn.Module):
    """One hidden layer with ReLU; 203,530 parameters for 28x28 images and ten classes.

    Args:
        num_outputs: classes.
        num_hiddens: width of the hidden layer.
        num_inputs: numbers in an image; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, ...] of num_inputs numbers -> [N, num_outputs], logits.
    """

    def __init__(
        self,
        num_outputs: int = 10,
        num_hiddens: int = 256,
        *,
        num_inputs: int | None = 784,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Flatten(),
            linear(layers, num_inputs, num_hiddens),
            layers.ReLU(),
            layers.Linear(num_hiddens, num_outputs),
        )

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(X)


class DropoutMLPScratch(nn.Module):
    """Two hidden layers with `dropout_layer` behind each.

    Args:
        num_outputs: classes.
        num_hiddens_1, num_hiddens_2: widths of the hidden layers.
        dropout_1, dropout_2: probabilities of dropping their outputs.
        num_inputs: numbers in an image; None takes them from the first input.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, ...] of num_inputs numbers -> [N, num_outputs], logits.
    """

    def __init__(
        self,
        num_outputs: int = 10,
        num_hiddens_1: int = 256,
        num_hiddens_2: int = 256,
        dropout_1: float = 0.5,
        dropout_2: float = 0.5,
        *,
        num_inputs: int | None = 784,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.dropout_1 = dropout_1
        self.dropout_2 = dropout_2
        self.lin1 = linear(layers, num_inputs, num_hiddens_1)
        self.lin2 = layers.Linear(num_hiddens_1, num_hiddens_2)
        self.lin3 = layers.Linear(num_hiddens_2, num_outputs)

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits."""
        H1 = relu(self.lin1(X.flatten(1)))
        if self.training:
            H1 = dropout_layer(H1, self.dropout_1)
        H2 = relu(self.lin2(H1))
        if self.training:
            H2 = dropout_layer(H2, self.dropout_2)
        return self.lin3(H2)


class DropoutMLP(nn.Module):
    """Two hidden layers with dropout; 269,322 parameters. Arguments as for `DropoutMLPScratch`."""

    def __init__(
        self,
        num_outputs: int = 10,
        num_hiddens_1: int = 256,
        num_hiddens_2: int = 256,
        dropout_1: float = 0.5,
        dropout_2: float = 0.5,
        *,
        num_inputs: int | None = 784,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Flatten(),
            linear(layers, num_inputs, num_hiddens_1),
            layers.ReLU(),
            layers.Dropout(dropout_1),
            layers.Linear(num_hiddens_1, num_hiddens_2),
            layers.ReLU(),
            layers.Dropout(dropout_2),
            layers.Linear(num_hiddens_2, num_outputs),
        )

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(X)
