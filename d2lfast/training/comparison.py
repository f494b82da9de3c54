"""Twins: one network built from d2lfast's layers and from torch's, trained alike and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import d2lfast.nn
from d2lfast.data import Images
from d2lfast.models import init_cnn
from d2lfast.training.classifier import Epoch, Run


def twins(
    build: Callable[..., nn.Module],
    images: Images,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[Run, Run]:
    """Return the runs of d2lfast's and of torch's `build(num_classes, layers=...)`.

    Both begin with the same weights (Xavier's rule, from `seed`) and see the same batches.
    """
    runs: list[Run] = []
    layers: Any
    for name, layers in (("d2lfast", d2lfast.nn), ("torch", nn)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(len(images.classes), layers=layers)
            model.apply(init_cnn)
        runs.append(Run(name, model.to(device), images, batch_size, learning_rate, seed))
    runs[1].model.load_state_dict(runs[0].model.state_dict())
    return runs[0], runs[1]


@dataclass(frozen=True)
class Comparison:
    """Two runs that have been trained for the same number of epochs."""

    ours: Run
    native: Run

    @property
    def loss_difference(self) -> float:
        """The largest difference of the two training-loss curves."""
        return self._largest(lambda epoch: epoch.loss)

    @property
    def validation_loss_difference(self) -> float:
        """The largest difference of the two validation-loss curves."""
        return self._largest(lambda epoch: epoch.validation_loss)

    @property
    def speed_up(self) -> float:
        """How many times as many examples per second ours trains, by the medians of the epochs."""
        return self.ours.examples_per_second / self.native.examples_per_second

    def _largest(self, value: Callable[[Epoch], float]) -> float:
        pairs = zip(self.ours.history, self.native.history, strict=True)
        return max(abs(value(ours) - value(native)) for ours, native in pairs)
