"""Training a classifier by plain stochastic gradient descent, epoch by epoch."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2lfast.data import Images, TensorLoader


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; the training loss is the mean over its batches, as the weights were at each.

    `seconds` is the time of training alone, without validation.
    """

    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    examples: int

    @property
    def examples_per_second(self) -> float:
        """The speed of training in this epoch."""
        return self.examples / self.seconds


@dataclass
class Run:
    """A model in training, with the book's rules: cross-entropy, plain SGD, last partial batch kept.

    Args:
        name: how tables and plots call it.
        model: [N, 1, height, width] -> logits [N, classes], on its device.
        images: the data; it is copied to the device of the model once.
        batch_size: examples per step.
        learning_rate: of SGD.
        seed: of the order of the examples. Runs of the same seed see the same batches.
    """

    name: str
    model: nn.Module
    images: Images
    batch_size: int
    learning_rate: float
    seed: int = 0
    history: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        data = self.images
        self.training_batches = TensorLoader(
            data.train_images.to(device),
            data.train_labels.to(device),
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
        )
        self.validation_batches = TensorLoader(
            data.validation_images.to(device), data.validation_labels.to(device), batch_size=1024
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.learning_rate)
        self.device = device

    def train_epoch(self) -> Epoch:
        """Train for one epoch, validate, and add the result to `history`."""
        # The random numbers of an epoch depend on its number alone: twins with dropout stay twins.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed + len(self.history))
            self._synchronize()
            start = time.perf_counter()
            loss, accuracy = self._fit()
            self._synchronize()
            seconds = time.perf_counter() - start
        validation_loss, validation_accuracy = self.validate()
        epoch = Epoch(
            loss, accuracy, validation_loss, validation_accuracy, seconds, self.training_batches.examples
        )
        self.history.append(epoch)
        return epoch

    def validate(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the validation images."""
        training = self.model.training
        self.model.eval()
        totals = torch.zeros(2, device=self.device)
        with torch.no_grad():
            for images, labels in self.validation_batches:
                logits = self.model(images)
                totals += _totals(F.cross_entropy(logits, labels), logits, labels)
        self.model.train(training)
        loss, accuracy = (totals / self.validation_batches.examples).tolist()
        return loss, accuracy

    @property
    def examples_per_second(self) -> float:
        """The median speed of the epochs so far."""
        return statistics.median(epoch.examples_per_second for epoch in self.history)

    def _fit(self) -> tuple[float, float]:
        self.model.train()
        totals = torch.zeros(2, device=self.device)
        for images, labels in self.training_batches:
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            totals += _totals(loss.detach(), logits.detach(), labels)
        mean_loss, accuracy = (totals / self.training_batches.examples).tolist()
        return mean_loss, accuracy

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([loss * len(labels), correct])


def train(runs: Sequence[Run], epochs: int, on_epoch: Callable[[Run, Epoch], None] | None = None) -> None:
    """Train all `runs` for `epochs` epochs, in turn, so that a busy or throttled machine slows all alike.

    Which one begins alternates too. `on_epoch` is called after every epoch of every run.
    """
    for number in range(epochs):
        for run in runs if number % 2 == 0 else reversed(runs):
            epoch = run.train_epoch()
            if on_epoch is not None:
                on_epoch(run, epoch)
