"""Minibatch stochastic gradient descent, written out (book, 3.4.3)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from d2lfast.hyperparameters import HyperParameters

__all__ = ["SGD"]


class SGD(HyperParameters):
    """p <- p - lr * grad for every parameter that has a gradient."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        params = list(params)
        self.save_hyperparameters()

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for param in self.params:
            if param.grad is not None:
                param.sub_(param.grad, alpha=self.lr)

    def zero_grad(self) -> None:
        """Set the gradients to zero; those that are not there stay so."""
        for param in self.params:
            if param.grad is not None:
                param.grad.zero_()

    params: list[Tensor]
    lr: float
