"""Data that are drawn, not read."""

import torch
from torch import Tensor

from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule

__all__ = ["SineSeries", "SyntheticRegressionData", "WeightDecayData"]


class SyntheticRegressionData(DataModule):
    """y = Xw + b + noise with standard normal X (book, 3.3).

    Args:
        w: [features].
        b: the bias.
        noise: standard deviation of the noise.
        num_train, num_val: examples.
        batch_size: examples per batch.

    Attributes:
        X: [num_train + num_val, features].
        y: [num_train + num_val, 1].
    """

    def __init__(
        self,
        w: Tensor,
        b: float,
        noise: float = 0.01,
        num_train: int = 1000,
        num_val: int = 1000,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        n = num_train + num_val
        self.X = torch.randn(n, len(w))
        self.y = self.X @ w.reshape(-1, 1) + b + torch.randn(n, 1) * noise

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of X and y."""
        indices = slice(0, self.num_train) if train else slice(self.num_train, None)
        return self.get_tensorloader((self.X, self.y), train, indices)


class WeightDecayData(DataModule):
    """y = 0.05 + sum of 0.01 x_i + noise: more inputs than examples, which over-fits (book, 3.7)."""

    def __init__(self, num_train: int, num_val: int, num_inputs: int, batch_size: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        n = num_train + num_val
        self.X = torch.randn(n, num_inputs)
        self.y = self.X @ torch.full((num_inputs, 1), 0.01) + 0.05 + torch.randn(n, 1) * 0.01

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of X and y."""
        indices = slice(0, self.num_train) if train else slice(self.num_train, None)
        return self.get_tensorloader((self.X, self.y), train, indices)


class SineSeries(DataModule):
    """A noisy sine in time: the last `tau` values predict the next (book, 9.1).

    Attributes:
        time: [T].
        x: [T], sin(0.01 time) + 0.2 noise.
    """

    def __init__(self, batch_size: int = 16, T: int = 1000, num_train: int = 600, tau: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.time = torch.arange(1, T + 1, dtype=torch.float32)
        self.x = torch.sin(0.01 * self.time) + torch.randn(T) * 0.2

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of features [N, tau] and labels [N, 1]."""
        self.features = self.x.unfold(0, self.tau, 1)[:-1]
        self.labels = self.x[self.tau :].reshape(-1, 1)
        indices = slice(0, self.num_train) if train else slice(self.num_train, None)
        return self.get_tensorloader((self.features, self.labels), train, indices)
