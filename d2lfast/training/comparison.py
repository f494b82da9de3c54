"""Twins: one network built from d2lfast's layers and from torch's, trained alike and compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import d2lfast.nn
from d2lfast.data import DataModule
from d2lfast.training.epoch import Epoch
from d2lfast.training.module import Module
from d2lfast.training.trainer import Trainer


def twins(
    build: Callable[[Any], Module], data: DataModule, *, max_epochs: int, seed: int = 0, **options: Any
) -> tuple[Trainer, Trainer]:
    """Return trainers, ready to run, of d2lfast's and of torch's `build(layers)` on `data`.

    Both begin with the same parameters, drawn from `seed`, and see the same batches and random numbers.
    `options` are those of `Trainer`; files that it writes are d2lfast's.
    """
    ours = trainer_of(build, d2lfast.nn, data, max_epochs=max_epochs, seed=seed, name="d2lfast", **options)
    alone = {"checkpoint": None, "resume": False, "log": None, "plot": None}
    native = trainer_of(
        build, nn, data, max_epochs=max_epochs, seed=seed, name="torch", **{**options, **alone}
    )
    if not ours.history:
        native.model.load_state_dict(ours.model.state_dict())
    return ours, native


def trainer_of(
    build: Callable[[Any], Module], layers: Any, data: DataModule, *, seed: int, **options: Any
) -> Trainer:
    """Return a trainer, ready to run, of `build(layers)`, whose parameters are drawn from `seed`."""
    trainer = Trainer(seed=seed, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(layers)
    trainer.prepare(model, data)
    return trainer


def train(trainers: Sequence[Trainer], on_epoch: Callable[[Trainer, Epoch], None] | None = None) -> None:
    """Train all to their last epoch, in turn, so that a busy or throttled machine slows all alike.

    Which one begins alternates too. `on_epoch` is called after every epoch of every trainer.
    """
    for number in range(min(trainer.epoch for trainer in trainers), max(t.max_epochs for t in trainers)):
        for trainer in trainers if number % 2 == 0 else reversed(trainers):
            if trainer.epoch <= number < trainer.max_epochs:
                epoch = trainer.run_epoch()
                if on_epoch is not None:
                    on_epoch(trainer, epoch)


@dataclass(frozen=True)
class Comparison:
    """Two trainings of the same number of epochs."""

    ours: Trainer
    native: Trainer

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
