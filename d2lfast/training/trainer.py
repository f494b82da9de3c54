"""The loop that trains a model on a data set (book, 3.2.4), with what a long training needs besides."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule
from d2lfast.hyperparameters import HyperParameters
from d2lfast.training import checkpoint as checkpoints
from d2lfast.training import distributed
from d2lfast.training.epoch import Epoch, Means, write_csv
from d2lfast.training.module import Module, dry_run
from d2lfast.training.progress import ProgressBar

__all__ = ["Trainer"]

_NEAR_BYTES = 2 << 30


class Trainer(HyperParameters):
    """Trains a `Module` on a `DataModule`.

    Args:
        max_epochs: epochs in all, those of a resumed training included.
        num_gpus: 1 or more trains on the first GPU if there is one. For several, start one process per GPU
            with torchrun: each takes its part of every batch.
        gradient_clip_val: the largest norm of the gradient; 0 does not clip.
        device: where to train; overrides `num_gpus`.
        amp: run the steps in bfloat16 where autocast deems it safe.
        channels_last: keep 4-dimensional weights and batches in that layout.
        seed: of the random numbers of every epoch, which makes runs repeatable, and twins see the same
            batches. Torch's generator is left as it was. Default: whatever torch's generator gives.
        checkpoint: file that holds the state after the last whole epoch.
        resume: go on from `checkpoint` if it is there.
        log: CSV file with a line per epoch.
        plot: picture of the curves, drawn at the end.
        progress: show a progress bar; True, or one to use.
        name: how tables and pictures call this training.
        facts: plain values that the checkpoint keeps, for whoever loads it.

    Attributes:
        history: an `Epoch` for every epoch.
        interrupted: whether Ctrl-C ended the training; the model is kept as it was at that moment.
    """

    def __init__(
        self,
        max_epochs: int,
        num_gpus: int = 0,
        gradient_clip_val: float = 0,
        *,
        device: str | torch.device | None = None,
        amp: bool = False,
        channels_last: bool = False,
        seed: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        log: str | Path | None = None,
        plot: str | Path | None = None,
        progress: bool | ProgressBar = False,
        name: str = "",
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.save_hyperparameters(ignore=["progress"])
        self.progress: bool | ProgressBar = progress
        count = torch.cuda.device_count() if num_gpus else 0
        self.gpus = [torch.device("cuda", index) for index in range(min(num_gpus, count))]
        default = self.gpus[0] if self.gpus else torch.device("cpu")
        self.device = torch.device(device) if device is not None else default
        self.history: list[Epoch] = []
        self.interrupted = False

    def prepare_data(self, data: DataModule) -> None:
        """Take the batches of `data`."""
        self.train_dataloader = self._near(data.train_dataloader())
        self.val_dataloader = self._near(data.val_dataloader())
        self.num_train_batches = len(self.train_dataloader)  # type: ignore[arg-type]
        self.num_val_batches = 0 if self.val_dataloader is None else len(self.val_dataloader)  # type: ignore[arg-type]

    def prepare_model(self, model: Module) -> None:
        """Move `model` to its device and layout, and let lazy layers take their sizes."""
        model.to(self.device)
        if any(is_lazy(parameter) for parameter in model.parameters()):
            with self._random(-1):
                batch = self.prepare_batch(next(iter(self.train_dataloader)))
                dry_run(model, batch[:-1])
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.trainer = self  # type: ignore[assignment]
        board = getattr(model, "board", None)
        if board is not None:
            board.xlim = board.xlim or (0, self.max_epochs)
        self.model = model

    @property
    def examples_per_second(self) -> float:
        """The median speed of the epochs so far."""
        return statistics.median(epoch.examples_per_second for epoch in self.history)

    def prepare_batch(self, batch: Sequence[Any]) -> list[Any]:
        """Move the tensors of a batch to the device and layout of the training."""
        return [self._moved(item) if isinstance(item, Tensor) else item for item in batch]

    def prepare(self, model: Module, data: DataModule) -> None:
        """Do all that comes before the first epoch; `fit` begins with it."""
        self.prepare_data(data)
        self.prepare_model(model)
        if distributed.world_size() > 1:
            self.model = distributed.synchronize_batch_norm(self.model)  # type: ignore[assignment]
        self.optim = self.model.configure_optimizers()
        self.epoch = self.train_batch_idx = self.val_batch_idx = 0
        self.history = []
        self._means = {True: Means(), False: Means()}
        if self.resume and self.checkpoint is not None and Path(self.checkpoint).exists():
            self._restore(self.checkpoint)
        self._step: Callable[[Sequence[Any]], Tensor] = self.model.training_step
        if distributed.world_size() > 1:
            self._step = distributed.parallel_step(self.model, self.device)

    def fit(self, model: Module, data: DataModule) -> None:
        """Train `model` on `data` up to `max_epochs`; Ctrl-C ends it early and keeps the model."""
        self.prepare(model, data)
        with self._bar():
            try:
                while self.epoch < self.max_epochs:
                    self.run_epoch()
            except KeyboardInterrupt:
                self.interrupted = True
                warnings.warn(self._stopped(), stacklevel=2)
        self.finish()

    def run_epoch(self) -> Epoch:
        """Train for one epoch, validate, write checkpoint and log; return what it came to."""
        self._means = {True: Means(), False: Means()}
        self._examples, self._seconds = 0, 0.0
        with self._random(self.epoch):
            self.fit_epoch()
        epoch = Epoch(self._means[True].result(), self._means[False].result(), self._seconds, self._examples)
        self.history.append(epoch)
        self.epoch += 1
        if distributed.rank() == 0:
            if self.checkpoint is not None:
                checkpoints.save(self.checkpoint, self.model, self.optim, self.history, self.seed, self.facts)
            if self.log is not None:
                write_csv(self.history, self.log)
        if isinstance(self.progress, ProgressBar):
            self.progress.epoch(self.name, epoch)
        return epoch

    def fit_epoch(self) -> None:
        """Train on every batch, then validate."""
        self.model.train()
        self._synchronize()
        start = time.perf_counter()
        for batch in self.train_dataloader:
            count = len(batch[0])
            self._weight: float = count
            factor = 1.0
            if distributed.world_size() > 1:
                batch, factor = distributed.own_part(batch)
                self._weight = count * factor / distributed.world_size()
            batch = self.prepare_batch(batch)
            with self._autocast():
                loss = self._step(batch)
            self.optim.zero_grad()
            (loss * factor if factor != 1.0 else loss).backward()
            if self.gradient_clip_val > 0:
                self.clip_gradients(self.gradient_clip_val, self.model)
            self.optim.step()
            self.train_batch_idx += 1
            self._examples += count
            if isinstance(self.progress, ProgressBar):
                self.progress.batch(self._examples / (time.perf_counter() - start))
        self._synchronize()
        self._seconds = time.perf_counter() - start
        self.validate()

    def validate(self) -> dict[str, float]:
        """Run the validation steps and return their means; weights and statistics stay as they are."""
        if self.val_dataloader is None:
            return {}
        self._means[False] = Means()
        self.model.eval()
        with torch.no_grad(), self._autocast():
            for batch in self.val_dataloader:
                count = len(batch[0])
                self._weight = count
                if distributed.world_size() > 1:
                    batch, factor = distributed.own_part(batch)
                    self._weight = count * factor / distributed.world_size()
                self.model.validation_step(self.prepare_batch(batch))
                self.val_batch_idx += 1
        return self._means[False].result()

    def clip_gradients(self, grad_clip_val: float, model: nn.Module) -> None:
        """Scale the gradients of `model` so that their norm is at most `grad_clip_val`."""
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip_val)

    def record(self, key: str, value: Any, train: bool) -> None:
        """Add a value of the current batch to the means of the epoch; `Module.plot` calls it."""
        self._means[train].add(key, value, self._weight)

    def finish(self) -> None:
        """Draw the curves."""
        board = getattr(self.model, "board", None)
        if board is None or distributed.rank() != 0:
            return
        board.show()
        if self.plot is not None:
            board.save(self.plot)

    def _near(self, loader: Any) -> Any:
        """Data in memory are copied to a GPU once, not batch by batch, unless they are large."""
        if self.device.type == "cuda" and isinstance(loader, TensorLoader) and loader.nbytes < _NEAR_BYTES:
            return loader.to(self.device)
        return loader

    def _moved(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        if self.channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.amp else nullcontext()

    @contextmanager
    def _random(self, epoch: int) -> Iterator[None]:
        """The random numbers of an epoch depend on seed and epoch alone: twins with dropout stay twins."""
        if self.seed is None:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed + epoch)
            yield

    @contextmanager
    def _bar(self) -> Iterator[None]:
        if self.progress is not True:
            yield
            return
        bar = ProgressBar()
        bar.expect((self.max_epochs - self.epoch) * self.num_train_batches, self.max_epochs - self.epoch)
        with bar:
            self.progress = bar
            try:
                yield
            finally:
                self.progress = True

    def _restore(self, path: str | Path) -> None:
        self.history, seed = checkpoints.restore(path, self.model, self.optim, self.device)
        if seed != self.seed:
            warnings.warn(f"{path} was trained with seed {seed}, now {self.seed} is used", stacklevel=4)
        self.epoch = len(self.history)
        self.train_batch_idx = self.epoch * self.num_train_batches
        self.val_batch_idx = self.epoch * self.num_val_batches

    def _stopped(self) -> str:
        kept = f"; {self.checkpoint} holds the last whole epoch" if self.checkpoint and self.history else ""
        return f"Training stopped after {self.epoch} of {self.max_epochs} epochs; the model is kept{kept}"

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
