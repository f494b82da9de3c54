"""Data-parallel training written by hand (book, 13.5).

It shows what `torchrun` and DistributedDataParallel do: every device has a copy of the parameters and a part
of the batch; the gradients are added up, and every copy takes the same step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from d2lfast.book.devices import try_gpu
from d2lfast.book.utilities import Timer, split_batch
from d2lfast.data import TensorLoader
from d2lfast.models.toy_lenet import toy_lenet as lenet

__all__ = ["allreduce", "get_params", "initial_params", "lenet", "train", "train_batch"]


def initial_params(scale: float = 0.01) -> list[Tensor]:
    """Return weights from N(0, scale^2) and zero biases for `lenet`."""
    shapes = ((20, 1, 3, 3), (50, 20, 5, 5), (800, 128), (128, 10))
    return [
        tensor
        for shape in shapes
        for tensor in (torch.randn(shape) * scale, torch.zeros(shape[0] if len(shape) == 4 else shape[1]))
    ]


def get_params(params: Sequence[Tensor], device: Any) -> list[Tensor]:
    """Return a copy of the parameters on a device, with gradients."""
    copies = [param.detach().to(device, copy=True) for param in params]
    for copy in copies:
        copy.requires_grad_()
    return copies


def allreduce(data: Sequence[Tensor]) -> None:
    """Add up tensors that lie on several devices; each holds the sum afterwards."""
    for other in data[1:]:
        data[0].add_(other.to(data[0].device))
    for other in data[1:]:
        other.copy_(data[0])


def train_batch(
    X: Tensor, y: Tensor, device_params: Sequence[Sequence[Tensor]], devices: Sequence[Any], lr: float
) -> None:
    """Take one step of gradient descent, every device on its part of the batch."""
    parts = zip(*split_batch(X, y, devices), device_params)
    losses = [F.cross_entropy(lenet(x, params), label, reduction="sum") for x, label, params in parts]
    for loss in losses:
        loss.backward()
    with torch.no_grad():
        for index in range(len(device_params[0])):
            grads = [params[index].grad for params in device_params]
            allreduce([grad for grad in grads if grad is not None])
        for params in device_params:
            for param in params:
                if param.grad is not None:
                    param.sub_(param.grad, alpha=lr / len(X))
                    param.grad = None


def train(
    num_gpus: int,
    batch_size: int,
    lr: float,
    num_epochs: int = 10,
    data: tuple[TensorLoader, TensorLoader] | None = None,
) -> list[float]:
    """Train `lenet` on Fashion-MNIST on several devices; return the test accuracy after every epoch.

    GPUs that are not there are played by the processor.
    """
    if data is None:
        from d2lfast.book.old import load_data_fashion_mnist

        data = load_data_fashion_mnist(batch_size)
    train_iter, test_iter = data
    devices = [try_gpu(i) for i in range(num_gpus)]
    start = initial_params()
    device_params = [get_params(start, device) for device in devices]
    timer, accuracies = Timer(), []
    timer.times.clear()
    for _ in range(num_epochs):
        timer.start()
        for X, y in train_iter:
            train_batch(X, y, device_params, devices, lr)
        timer.stop()
        accuracies.append(_accuracy(device_params[0], test_iter, devices[0]))
    print(f"test acc: {accuracies[-1]:.2f}, {timer.avg():.1f} sec/epoch on {[str(each) for each in devices]}")
    return accuracies


@torch.no_grad()
def _accuracy(params: Sequence[Tensor], batches: Any, device: Any) -> float:
    right = total = 0
    for X, y in batches:
        right += int((lenet(X.to(device), params).argmax(1) == y.to(device)).sum())
        total += len(y)
    return right / total
