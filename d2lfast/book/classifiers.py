"""Softmax regression and multilayer perceptrons that know how they are trained (book, 4.4 to 5.6)."""

import torch
from torch import Tensor, nn

from d2lfast import models
from d2lfast.training import Classifier

__all__ = [
    "MLP", "DropoutMLP", "DropoutMLPScratch", "MLPScratch", "SoftmaxRegression", "SoftmaxRegressionScratch",
    "cross_entropy", "dropout_layer", "relu", "softmax",
]  # fmt: skip

softmax = models.softmax.softmax
cross_entropy = models.softmax.cross_entropy
relu = models.mlp.relu
dropout_layer = models.mlp.dropout_layer


class SoftmaxRegressionScratch(Classifier):
    """softmax(XW + b), probabilities."""

    def __init__(self, num_inputs: int, num_outputs: int, lr: float, sigma: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.W = nn.Parameter(torch.randn(num_inputs, num_outputs) * sigma)
        self.b = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Return the probabilities [N, num_outputs]."""
        return softmax(X.reshape(-1, self.W.shape[0]) @ self.W + self.b)

    def loss(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:
        """Return the cross-entropy of probabilities."""
        if averaged:
            return cross_entropy(Y_hat, Y)
        return -torch.log(Y_hat[torch.arange(len(Y_hat)), Y])


class SoftmaxRegression(Classifier):
    """Flatten and one linear layer."""

    def __init__(self, num_outputs: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.SoftmaxRegression(num_outputs, num_inputs=None).net


class MLPScratch(Classifier):
    """One hidden layer from its formulas."""

    def __init__(
        self, num_inputs: int, num_outputs: int, num_hiddens: int, lr: float, sigma: float = 0.01
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.W1 = nn.Parameter(torch.randn(num_inputs, num_hiddens) * sigma)
        self.b1 = nn.Parameter(torch.zeros(num_hiddens))
        self.W2 = nn.Parameter(torch.randn(num_hiddens, num_outputs) * sigma)
        self.b2 = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits [N, num_outputs]."""
        H = relu(X.reshape(-1, self.num_inputs) @ self.W1 + self.b1)
        return H @ self.W2 + self.b2


class MLP(Classifier):
    """One hidden layer with ReLU."""

    def __init__(self, num_outputs: int, num_hiddens: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = models.MLP(num_outputs, num_hiddens, num_inputs=None).net


class DropoutMLPScratch(Classifier):
    """Two hidden layers with `dropout_layer`."""

    def __init__(
        self,
        num_outputs: int,
        num_hiddens_1: int,
        num_hiddens_2: int,
        dropout_1: float,
        dropout_2: float,
        lr: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = (num_outputs, num_hiddens_1, num_hiddens_2, dropout_1, dropout_2)
        self.net = models.DropoutMLPScratch(*sizes, num_inputs=None)


class DropoutMLP(Classifier):
    """Two hidden layers with dropout."""

    def __init__(
        self,
        num_outputs: int,
        num_hiddens_1: int,
        num_hiddens_2: int,
        dropout_1: float,
        dropout_2: float,
        lr: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = (num_outputs, num_hiddens_1, num_hiddens_2, dropout_1, dropout_2)
        self.net = models.DropoutMLP(*sizes, num_inputs=None).net
