"""Batch normalisation from scratch (Ioffe and Szegedy, 2015; book, 8.5) and the LeNet that uses it."""

from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.classifier import ImageClassifier


def batch_norm(
    X: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_var: Tensor,
    eps: float,
    momentum: float,
    training: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise [N, F] by feature or [N, C, H, W] by channel.

    Args:
        X: the input.
        gamma, beta: scale and shift, of a shape that broadcasts with X, as are the moving statistics.
        moving_mean, moving_var: what normalises outside training.
        eps: added to the variance.
        momentum: weight of this batch in the moving statistics (torch's convention, and the book's English
            edition's; the Chinese edition's is one minus that).
        training: normalise by the batch's own statistics and move the others; None, as in the book, does so
            where gradients are recorded.

    Returns:
        The output and the new moving statistics. The moving variance is, as in the book, the biased one;
        `torch.nn.BatchNorm2d` keeps the unbiased.
    """
    if not (torch.is_grad_enabled() if training is None else training):
        return (X - moving_mean) / torch.sqrt(moving_var + eps) * gamma + beta, moving_mean, moving_var
    if X.dim() not in (2, 4):
        raise ValueError(f"batch_norm takes [N, F] or [N, C, H, W], but got {X.dim()} dimensions")
    dims = (0,) if X.dim() == 2 else (0, 2, 3)
    mean = X.mean(dims, keepdim=True)
    var = ((X - mean) ** 2).mean(dims, keepdim=True)
    Y = (X - mean) / torch.sqrt(var + eps) * gamma + beta
    moving_mean = (1.0 - momentum) * moving_mean + momentum * mean.detach()
    moving_var = (1.0 - momentum) * moving_var + momentum * var.detach()
    return Y, moving_mean, moving_var


class BatchNorm(nn.Module):
    """A layer around `batch_norm`; its mode is the module's, and its moving statistics are buffers.

    Args:
        num_features: features or channels.
        num_dims: 2 for [N, F], 4 for [N, C, H, W].
    """

    moving_mean: Tensor
    moving_var: Tensor

    def __init__(self, num_features: int, num_dims: int) -> None:
        super().__init__()
        shape = (1, num_features) if num_dims == 2 else (1, num_features, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.register_buffer("moving_mean", torch.zeros(shape))
        self.register_buffer("moving_var", torch.ones(shape))

    def forward(self, X: Tensor) -> Tensor:
        """Normalise X."""
        Y, self.moving_mean, self.moving_var = batch_norm(
            X, self.gamma, self.beta, self.moving_mean, self.moving_var, 1e-5, 0.1, self.training
        )
        return Y


class BNLeNetScratch(ImageClassifier):
    """`BNLeNet` on `BatchNorm`; the same arguments, shapes and 44,878 parameters."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Conv2d(in_channels, 6, kernel_size=5),
            BatchNorm(6, num_dims=4),
            layers.Sigmoid(),
            layers.AvgPool2d(kernel_size=2, stride=2),
            layers.Conv2d(6, 16, kernel_size=5),
            BatchNorm(16, num_dims=4),
            layers.Sigmoid(),
            layers.AvgPool2d(kernel_size=2, stride=2),
            layers.Flatten(),
            layers.Linear(16 * 4 * 4, 120),
            BatchNorm(120, num_dims=2),
            layers.Sigmoid(),
            layers.Linear(120, 84),
            BatchNorm(84, num_dims=2),
            layers.Sigmoid(),
            layers.Linear(84, num_classes),
        )
