"""Watches, sums and checks that the book's programs use."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Accumulator", "Benchmark", "Timer", "check_len", "check_shape", "split_batch"]


class Timer:
    """Takes times, in seconds; it runs from the beginning."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Begin a time."""
        self.tik = time.perf_counter()

    def stop(self) -> float:
        """End it, and return it."""
        self.times.append(time.perf_counter() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        """The mean of the times."""
        return sum(self.times) / len(self.times)

    def sum(self) -> float:
        """The sum of the times."""
        return sum(self.times)

    def cumsum(self) -> list[float]:
        """The sums up to each time."""
        return np.array(self.times).cumsum().tolist()


class Accumulator:
    """`n` sums."""

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: Any) -> None:
        """Add a number to each sum."""
        self.data = [a + _number(b) for a, b in zip(self.data, args, strict=True)]

    def reset(self) -> None:
        """Set all to zero."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, idx: int) -> float:
        return self.data[idx]


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


class Benchmark:
    """Prints how long its block took."""

    def __init__(self, description: str = "Done") -> None:
        self.description = description

    def __enter__(self) -> "Benchmark":
        self.timer = Timer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        print(f"{self.description}: {self.timer.stop():.4f} sec")


def check_len(a: Any, n: int) -> None:
    """Assert the length of a sequence."""
    assert len(a) == n, f"list's length {len(a)} != expected length {n}"


def check_shape(a: Tensor, shape: Sequence[int]) -> None:
    """Assert the shape of a tensor."""
    assert tuple(a.shape) == tuple(shape), f"tensor's shape {tuple(a.shape)} != expected shape {tuple(shape)}"


def split_batch(
    X: Tensor, y: Tensor, devices: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Divide a batch among devices (book, 13.5); the first ones get one more if it does not come out even."""
    assert X.shape[0] == y.shape[0]
    return tuple(
        tuple(part.to(device) for part, device in zip(tensor.tensor_split(len(devices)), devices))
        for tensor in (X, y)
    )  # type: ignore[return-value]
