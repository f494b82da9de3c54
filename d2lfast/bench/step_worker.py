"""A fresh process that runs training steps of native ResNet-18 on demand; `step_times` drives two of them.

`python -m d2lfast.bench.step_worker (cached|plain) BATCH PIXELS (contiguous|channels_last) THREADS` runs a
step for every line that it reads and answers with the seconds that it took.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn import functional as F

from d2lfast import memory, models


def training_step(batch: int, pixels: int, channels_last: bool) -> Callable[[], object]:
    """A step of SGD with momentum on native ResNet-18, RGB images and ten classes."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model: nn.Module = models.ResNet18(10, 3, layers=nn)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, pixels, pixels).to(memory_format=layout)
    labels = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def step_times(
    seconds: float, batch: int = 32, pixels: int = 96, channels_last: bool = False, threads: int | None = None
) -> dict[str, list[float]]:
    """Seconds of each step, with `d2lfast.memory` ("cached") and with malloc alone ("plain").

    Each side has a process of its own, since malloc adapts to what a process has freed; they take turns.
    """
    layout = "channels_last" if channels_last else "contiguous"
    times: dict[str, list[float]] = {"plain": [], "cached": []}
    with ExitStack() as stack:
        workers = {}
        for name in times:
            arguments = [name, str(batch), str(pixels), layout, str(threads or torch.get_num_threads())]
            workers[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "d2lfast.bench.step_worker", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )

        def run(name: str) -> float:
            worker = workers[name]
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(file=worker.stdin, flush=True)
            return float(worker.stdout.readline())

        for name in times:
            run(name), run(name)
        deadline = time.monotonic() + seconds
        order = list(times)
        while len(times["plain"]) < 5 or time.monotonic() < deadline:
            for name in order:
                times[name].append(run(name))
            order.reverse()
    return times


def _serve(cached: bool, batch: int, pixels: int, channels_last: bool) -> None:
    if cached:
        memory.enable()
    step = training_step(batch, pixels, channels_last)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    _serve(sys.argv[1] == "cached", int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "channels_last")
