"""The line that tells how far a training is."""

import time
from types import TracebackType
from typing import Any

from d2lfast.training.epoch import Epoch

_REFRESH_SECONDS = 0.2


class ProgressBar:
    """A bar over the batches of all epochs, with speed, remaining time and the last epoch's means.

    It draws itself between batches and never from a thread, which would take time from the training.

    Raises:
        ModuleNotFoundError: rich is not installed.
    """

    def __init__(self, console: Any = None) -> None:
        try:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "The progress bar needs rich: pip install 'd2lfast[cli]'", name=error.name
            ) from error
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[news]}"),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("training", total=None, done="", speed="", news="")
        self._next = 0.0

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Draw the bar a last time."""
        self._progress.refresh()
        self._progress.stop()

    def expect(self, batches: int, epochs: int) -> None:
        """State how many batches and epochs there will be."""
        self._epochs, self._epoch = epochs, 0
        self._progress.update(self._task, total=batches, completed=0, done=f"0/{epochs}")

    def batch(self, examples_per_second: float) -> None:
        """Count a batch."""
        self._progress.advance(self._task)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REFRESH_SECONDS
            self._progress.update(self._task, speed=f"{examples_per_second:,.0f} examples/s", refresh=True)

    def epoch(self, name: str, epoch: Epoch) -> None:
        """Count an epoch and show its means."""
        self._epoch += 1
        news = [f"{key} {value:.3f}" for key, value in epoch.training.items() if key == "loss"]
        news += [f"validation {key} {value:.3f}" for key, value in epoch.validation.items() if key != "loss"]
        self._progress.update(
            self._task,
            done=f"{self._epoch}/{self._epochs}",
            speed=f"{epoch.examples_per_second:,.0f} examples/s",
            news=f"{name}: {', '.join(news)}" if name else ", ".join(news),
            refresh=True,
        )
