"""Linear regression (book, 3.4 and 3.5), weight decay (3.7) and logistic regression."""

from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn


def closed_form(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [F, 1] and bias [1] of the least squared error for X [N, F] and y [N, 1] (book, 3.1).

    Solved by QR rather than by the normal equations, whose condition number is the square.
    """
    ones = torch.ones(len(X), 1, dtype=X.dtype, device=X.device)
    solution = torch.linalg.lstsq(torch.cat((X, ones), 1), y).solution
    return solution[:-1], solution[-1]


def l2_penalty(w: Tensor) -> Tensor:
    """Half the sum of the squares of w."""
    return (w**2).sum() / 2


class LinearRegressionScratch(nn.Module):
    """X w + b, with w from N(0, sigma^2) and b zero.

    Args:
        num_inputs: features.
        sigma: standard deviation of the initial weights.
        layers: ignored; it has no layers.

    Shapes: [N, num_inputs] -> [N, 1].
    """

    def __init__(self, num_inputs: int = 2, sigma: float = 0.01, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(num_inputs, 1) * sigma)
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, X: Tensor) -> Tensor:
        """Return the predictions."""
        return X @ self.w + self.b


class WeightDecayScratch(LinearRegressionScratch):
    """Linear regression whose loss has `lambd` times `l2_penalty` of the weights added.

    Args:
        num_inputs, sigma, layers: as for `LinearRegressionScratch`.
        lambd: the rate of the decay.
    """

    def __init__(
        self, num_inputs: int, lambd: float, sigma: float = 0.01, *, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__(num_inputs, sigma, layers=layers)
        self.lambd = lambd

    def penalty(self) -> Tensor:
        """What is added to the loss."""
        return self.lambd * l2_penalty(self.w)


class LinearRegression(nn.Module):
    """One linear layer with weights from N(0, 0.01^2) and bias zero.

    The book's weights are PyTorch's: what it fills in is overwritten at the first batch, since its layer is
    lazy.

    Args:
        num_inputs: features.
        layers: namespace that the layer is taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, num_inputs] -> [N, 1].
    """

    def __init__(self, num_inputs: int = 2, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Linear(num_inputs, 1)
        nn.init.normal_(self.net.weight, 0.0, 0.01)
        nn.init.zeros_(self.net.bias)

    def forward(self, X: Tensor) -> Tensor:
        """Return the predictions."""
        return self.net(X)

    def get_w_b(self) -> tuple[Tensor, Tensor]:
        """Return weights [1, num_inputs] and bias [1]."""
        return self.net.weight.detach(), self.net.bias.detach()


class LogisticRegression(nn.Module):
    """A linear score whose sigmoid is the probability of class 1.

    Args:
        num_inputs: features; eight in the course's diabetes data.
        layers: namespace that the layer is taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, num_inputs] -> [N, 1], logits for `binary_cross_entropy_with_logits`.
    """

    def __init__(self, num_inputs: int = 8, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Linear(num_inputs, 1)

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(X)

    def probability(self, X: Tensor) -> Tensor:
        """Return the probabilities [N, 1] of class 1."""
        return torch.sigmoid(self(X))
