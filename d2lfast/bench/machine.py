"""The machine and the versions that a measurement belongs to."""

import datetime
import os
import platform
from pathlib import Path

import torch

import d2lfast
from d2lfast import _extension
from d2lfast.bench.allocator import malloc_setting


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def machine() -> dict[str, str | int]:
    """Facts for the header of a table and of a result file."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "isa": _extension.load().current_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "d2lfast": d2lfast.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "malloc": malloc_setting(),
    }
