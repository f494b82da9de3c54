"""Names of earlier editions of the book that its module, and the notes, still use."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2lfast.book.devices import try_gpu
from d2lfast.book.plotting import Animator
from d2lfast.book.utilities import Accumulator, Timer
from d2lfast.data import FashionMNIST, TensorLoader
from d2lfast.data.fashion_mnist import CLASSES
from d2lfast.models.init import init_cnn

__all__ = [
    "accuracy", "evaluate_accuracy", "evaluate_accuracy_gpu", "evaluate_loss", "get_dataloader_workers",
    "get_fashion_mnist_labels", "grad_clipping", "linreg", "load_array", "load_data_fashion_mnist", "sgd",
    "squared_loss", "synthetic_data", "train_ch6",
]  # fmt: skip


def load_array(data_arrays: Sequence[Tensor], batch_size: int, is_train: bool = True) -> TensorLoader:
    """Return batches of tensors, shuffled for training."""
    return TensorLoader(*data_arrays, batch_size=batch_size, shuffle=is_train)


def synthetic_data(w: Tensor, b: float, num_examples: int) -> tuple[Tensor, Tensor]:
    """Return X [N, features] and y = Xw + b + noise [N, 1]."""
    X = torch.randn(num_examples, len(w))
    return X, (X @ w + b + torch.randn(num_examples) * 0.01).reshape(-1, 1)


@torch.no_grad()
def sgd(params: Iterable[Tensor], lr: float, batch_size: int) -> None:
    """Take one step along summed gradients, and set them to zero."""
    for param in params:
        if param.grad is not None:
            param.sub_(param.grad, alpha=lr / batch_size)
            param.grad.zero_()


def linreg(X: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Xw + b."""
    return X @ w + b


def squared_loss(y_hat: Tensor, y: Tensor) -> Tensor:
    """Half the squared error of every example."""
    return (y_hat - y.reshape(y_hat.shape)) ** 2 / 2


def load_data_fashion_mnist(
    batch_size: int, resize: int | tuple[int, int] | None = None
) -> tuple[TensorLoader, TensorLoader]:
    """Return the training and the test batches of Fashion-MNIST."""
    size = 28 if resize is None else resize
    data = FashionMNIST(batch_size, (size, size) if isinstance(size, int) else size)
    return data.get_dataloader(True), data.get_dataloader(False)


def get_fashion_mnist_labels(labels: Iterable[Any]) -> list[str]:
    """Return the names of labels."""
    return [CLASSES[int(label)] for label in labels]


def get_dataloader_workers() -> int:
    """The book's number of processes that read data."""
    return 4


def accuracy(y_hat: Tensor, y: Tensor) -> float:
    """The number of right predictions: of classes, or of logits [N, classes]."""
    if y_hat.dim() > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(1)
    return float((y_hat.to(y.dtype) == y).sum())


def evaluate_accuracy_gpu(net: nn.Module, data_iter: Iterable[Any], device: Any = None) -> float:
    """The share of right predictions, computed on `device`, by default the network's."""
    parameter = next(iter(net.parameters()), None)
    device = device or (parameter.device if parameter is not None else torch.device("cpu"))
    training = net.training
    net.eval()
    metric = Accumulator(2)
    with torch.no_grad():
        for X, y in data_iter:
            X = [x.to(device) for x in X] if isinstance(X, list) else X.to(device)
            y = y.to(device)
            metric.add(accuracy(net(X), y), y.numel())
    net.train(training)
    return metric[0] / metric[1]


def evaluate_accuracy(net: nn.Module, data_iter: Iterable[Any]) -> float:
    """The share of right predictions."""
    return evaluate_accuracy_gpu(net, data_iter)


def evaluate_loss(net: Any, data_iter: Iterable[Any], loss: Callable[..., Tensor]) -> float:
    """The mean of a loss that is given for every example, or for the batch."""
    metric = Accumulator(2)
    with torch.no_grad():
        for X, y in data_iter:
            out = net(X)
            each = loss(out, y.reshape(out.shape) if y.numel() == out.numel() else y)
            metric.add(each.sum(), each.numel())
    return metric[0] / metric[1]


def grad_clipping(net: Any, theta: float) -> None:
    """Scale the gradients of a module, or of an object with `params`, so that their norm is at most theta."""
    params = net.parameters() if isinstance(net, nn.Module) else net.params
    nn.utils.clip_grad_norm_([param for param in params if param.grad is not None], theta)


def train_ch6(
    net: nn.Module, train_iter: Any, test_iter: Any, num_epochs: int, lr: float, device: Any = None
) -> Animator:
    """Train a convolutional network from Xavier's initialisation by SGD; print how well and how fast.

    Returns the curves, which the book does not.
    """
    device = device or try_gpu()
    net.apply(init_cnn)
    net.to(device)
    print("training on", device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    animator = Animator("epoch", xlim=(1, num_epochs), legend=["train loss", "train acc", "test acc"])
    timer, num_batches = Timer(), len(train_iter)
    timer.times.clear()
    for epoch in range(num_epochs):
        sums = torch.zeros(3, device=device)
        net.train()
        for i, (X, y) in enumerate(train_iter):
            timer.start()
            X, y = X.to(device), y.to(device)
            y_hat = net(X)
            loss = F.cross_entropy(y_hat, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                sums += torch.stack(
                    [loss * len(X), (y_hat.argmax(1) == y).sum(), torch.tensor(len(X), device=device)]
                )
            timer.stop()
            if (i + 1) % max(1, num_batches // 5) == 0 or i == num_batches - 1:
                loss_sum, right, count = sums.tolist()
                animator.add(epoch + (i + 1) / num_batches, (loss_sum / count, right / count, None))
        test_acc = evaluate_accuracy_gpu(net, test_iter)
        animator.add(epoch + 1, (None, None, test_acc))
    loss_sum, right, count = sums.tolist()
    print(f"loss {loss_sum / count:.3f}, train acc {right / count:.3f}, test acc {test_acc:.3f}")
    print(f"{count * num_epochs / timer.sum():.1f} examples/sec on {device}")
    return animator
