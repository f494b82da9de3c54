"""Linear models that know how they are trained (book, 3.4, 3.5, 3.7; the course's logistic regression)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2lfast.models import l2_penalty
from d2lfast.training import SGD, Classifier, Module, Trainer

__all__ = [
    "LinearRegression", "LinearRegressionScratch", "LogisticRegression", "WeightDecay", "WeightDecayScratch",
    "k_fold", "l2_penalty",
]  # fmt: skip


class _SmallLazyLinear(nn.LazyLinear):
    """Begins with weights from N(0, 0.01^2) and zero bias; the book's fill is lost with its first input."""

    def reset_parameters(self) -> None:
        if self.in_features and not self.has_uninitialized_params():
            nn.init.normal_(self.weight, 0, 0.01)
            nn.init.zeros_(self.bias)


class LinearRegressionScratch(Module):
    """Xw + b with half the mean squared error and `SGD`."""

    def __init__(self, num_inputs: int, lr: float, sigma: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.w = nn.Parameter(torch.randn(num_inputs, 1) * sigma)
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, X: Tensor) -> Tensor:
        """Return the predictions [N, 1]."""
        return X @ self.w + self.b

    def loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """Return half the mean squared error."""
        return ((y_hat - y) ** 2 / 2).mean()

    def configure_optimizers(self) -> Any:
        """Return the book's `SGD`."""
        return SGD([self.w, self.b], self.lr)


class LinearRegression(Module):
    """One linear layer with the mean squared error (without the half)."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = _SmallLazyLinear(1)

    def loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(y_hat, y)

    def get_w_b(self) -> tuple[Tensor, Tensor]:
        """Return the weights [1, features] and the bias [1]."""
        return self.net.weight.data, self.net.bias.data


class WeightDecayScratch(LinearRegressionScratch):
    """Adds `lambd` times half the squared norm of w to the loss."""

    def __init__(self, num_inputs: int, lambd: float, lr: float, sigma: float = 0.01) -> None:
        super().__init__(num_inputs, lr, sigma)
        self.save_hyperparameters()

    def loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """Return the penalised loss."""
        return super().loss(y_hat, y) + self.lambd * l2_penalty(self.w)


class WeightDecay(LinearRegression):
    """Lets the optimizer shrink the weights, not the bias."""

    def __init__(self, wd: float, lr: float) -> None:
        super().__init__(lr)
        self.save_hyperparameters()
        self.wd = wd

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return torch's SGD."""
        groups: list[dict[str, Any]] = [
            {"params": [self.net.weight], "weight_decay": self.wd},
            {"params": [self.net.bias]},
        ]
        return torch.optim.SGD(groups, lr=self.lr)


class LogisticRegression(Classifier):
    """One linear layer whose output is the logit of class 1; binary cross-entropy.

    Labels are [N, 1] float, 0 or 1.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.LazyLinear(1)

    def loss(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:
        """Return the binary cross-entropy."""
        reduction = "mean" if averaged else "none"
        return F.binary_cross_entropy_with_logits(Y_hat, Y, reduction=reduction)

    def accuracy(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:
        """Return the share of right predictions, or 0 and 1 for each."""
        right = ((Y_hat > 0) == (Y > 0.5)).to(torch.float32).reshape(-1)
        return right.mean() if averaged else right


def k_fold(trainer: Trainer, data: Any, k: int, lr: float) -> list[LinearRegression]:
    """Train k linear regressions, each with another part of `data` for validation (book, 5.7).

    Prints the average validation loss. `data` is a `d2lfast.data.HousePrices`.
    """
    losses, models = [], []
    for index in range(k):
        model = LinearRegression(lr)
        model.board.display = index == 0
        trainer.fit(model, data.fold(index, k))
        losses.append(trainer.history[-1].validation_loss)
        models.append(model)
    print(f"average validation log mse = {sum(losses) / len(losses)}")
    return models
