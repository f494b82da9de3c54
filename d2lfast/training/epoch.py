"""What an epoch came to."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from d2lfast._atomic import replacing


@dataclass(frozen=True)
class Epoch:
    """The means of what was recorded in one epoch, over its examples.

    Training values are taken as the weights were at each batch. `seconds` is the time of training alone,
    without validation.
    """

    training: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    examples: int = 0

    @property
    def examples_per_second(self) -> float:
        """The speed of training in this epoch."""
        return self.examples / self.seconds if self.seconds else 0.0

    @property
    def loss(self) -> float:
        """The mean training loss."""
        return self.training["loss"]

    @property
    def accuracy(self) -> float:
        """The training accuracy."""
        return self.training["acc"]

    @property
    def validation_loss(self) -> float:
        """The mean validation loss."""
        return self.validation["loss"]

    @property
    def validation_accuracy(self) -> float:
        """The validation accuracy."""
        return self.validation["acc"]


class Means:
    """Weighted means of values, added up where the values are: no batch waits for its number."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, float] = {}

    def add(self, key: str, value: Any, weight: float) -> None:
        """Add a value, a number or a tensor of one element."""
        if isinstance(value, torch.Tensor):
            value = value.detach().to(torch.float64 if value.device.type == "cpu" else torch.float32)
        self._sums[key] = self._sums.get(key, 0.0) + value * weight
        self._weights[key] = self._weights.get(key, 0.0) + weight

    def result(self) -> dict[str, float]:
        """Return the means, of all processes if there are several."""
        if not self._sums:
            return {}
        sums = torch.stack([torch.as_tensor(value).reshape(()) for value in self._sums.values()])
        weights = torch.tensor(list(self._weights.values()), dtype=sums.dtype, device=sums.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(weights)
        return dict(zip(self._sums, (sums / weights).tolist()))


def write_csv(history: Sequence[Epoch], path: str | Path) -> None:
    """Write a table with a line per epoch: its number, the means, seconds, examples per second."""
    training = _keys(epoch.training for epoch in history)
    validation = _keys(epoch.validation for epoch in history)
    heading = ["epoch", *(f"train_{key}" for key in training), *(f"val_{key}" for key in validation)]
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*heading, "seconds", "examples_per_second"])
        for number, epoch in enumerate(history, 1):
            values = [epoch.training.get(key, "") for key in training]
            values += [epoch.validation.get(key, "") for key in validation]
            writer.writerow([number, *values, epoch.seconds, epoch.examples_per_second])


def _keys(values: Iterable[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for each in values for key in each))
