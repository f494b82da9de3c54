"""Interleaved timing: every contender runs in every round, so that drift hits all of them alike."""

import gc
import math
import os
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

MIN_ROUNDS = 5
# Shorter calls are repeated within a sample, which also hides the cold caches the previous contender left.
SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and the 20th and 80th percentile over `samples` of `repeats` calls."""

    median: float
    p20: float
    p80: float
    samples: int
    repeats: int


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleave(calls: Mapping[Key, Call], seconds: float) -> dict[Key, Timing]:
    """Time the calls in turn, for `seconds` altogether and at least five rounds.

    Args:
        calls: contenders by any key.
        seconds: wall-clock time to spend, without warm-up (which takes up to a fifth of it more, and at
            least two calls of each).

    Returns:
        The timings by the same keys.
    """
    warm_up = 0.2 * seconds / len(calls)
    target = min(SAMPLE_SECONDS, seconds / (MIN_ROUNDS * len(calls)))
    repeats: dict[Key, int] = {}
    for key, call in calls.items():
        call()
        deadline = time.perf_counter() + warm_up
        fastest = _seconds(call, 1)
        while time.perf_counter() < deadline:
            fastest = min(fastest, _seconds(call, 1))
        repeats[key] = max(1, math.ceil(target / fastest))
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    order, shuffler = list(calls), random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        rounds = 0
        while rounds < MIN_ROUNDS or time.perf_counter() < deadline:
            # Nobody always runs behind the same neighbour, whose tensors the caches still hold.
            shuffler.shuffle(order)
            for key in order:
                samples[key].append(_seconds(calls[key], repeats[key]))
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    timings = {}
    for key, times in samples.items():
        fifths = quantiles(times, n=5, method="inclusive")
        timings[key] = Timing(median(times), fifths[0], fifths[-1], len(times), repeats[key])
    return timings


class LoadMeter:
    """Measures how many cores other processes kept busy inside a `with` block.

    `foreign` is None where the system does not tell (no /proc/stat).
    """

    foreign: float | None = None

    def __enter__(self) -> "LoadMeter":
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        end = self._now()
        if self._start is None or end is None:
            return
        wall, busy, own = (b - a for a, b in zip(self._start, end))
        self.foreign = max(0.0, (busy - own) / wall) if wall > 0 else None

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            with open("/proc/stat") as file:
                ticks = [int(field) for field in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()


def foreign_load(seconds: float = 0.3) -> float | None:
    """Cores that other processes keep busy now; None where the system does not tell."""
    with LoadMeter() as meter:
        time.sleep(seconds)
    return meter.foreign
