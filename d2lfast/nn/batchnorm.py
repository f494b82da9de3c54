"""Batch normalisation layers."""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from d2lfast._symbolic import Proxy, record_layer
from d2lfast.nn import functional as F

__all__ = ["BatchNorm1d", "BatchNorm2d", "LazyBatchNorm1d", "LazyBatchNorm2d"]


def normalize(
    self: _BatchNorm,
    input: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """The forward of a batch norm layer, with what follows it: `activation(batch_norm(input) + residual)`."""
    self._check_input_dim(input)
    factor = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            # A cumulative average.
            factor = 1.0 / float(self.num_batches_tracked)
    tracks = not self.training or self.track_running_stats
    arguments = (
        input,
        self.running_mean if tracks else None,
        self.running_var if tracks else None,
        self.weight,
        self.bias,
        self.training or (self.running_mean is None and self.running_var is None),
        factor,
        self.eps,
    )
    if activation == "none" and residual is None and not inplace:
        return F.batch_norm(*arguments)
    return F.batch_norm_act(*arguments, activation, residual, inplace)


def _forward(self: _BatchNorm, input: Tensor) -> Tensor:
    if isinstance(input, Proxy):
        return record_layer(self, input)
    return normalize(self, input)


class BatchNorm1d(torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on d2lfast's kernels: same constructor, parameters, `state_dict` and errors.

    Shapes: [N,C] or [N,C,L] to the same; see `d2lfast.nn.functional.batch_norm`.
    """

    forward = _forward


class BatchNorm2d(torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on d2lfast's kernels: same constructor, parameters, `state_dict` and errors.

    Shapes: [N,C,H,W] to the same; see `d2lfast.nn.functional.batch_norm`.
    """

    forward = _forward


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d):
    """`torch.nn.LazyBatchNorm1d` that becomes a `d2lfast.nn.BatchNorm1d` at its first input."""

    cls_to_become = BatchNorm1d  # type: ignore[assignment]
    forward = _forward


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d):
    """`torch.nn.LazyBatchNorm2d` that becomes a `d2lfast.nn.BatchNorm2d` at its first input."""

    cls_to_become = BatchNorm2d  # type: ignore[assignment]
    forward = _forward
