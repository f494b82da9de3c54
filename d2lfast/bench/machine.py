"""The machine and the versions that a measurement belongs to."""

import datetime
import os

import torch

import d2lfast
from d2lfast import _extension
from d2lfast._machine import cpu_model
from d2lfast.bench.allocator import malloc_setting


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def machine() -> dict[str, str | int]:
    """Facts for the header of a table and of a result file."""
    return {
        "cpu": cpu_model(),
        "cores": _cores(),
        "isa": _extension.load().current_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "d2lfast": d2lfast.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "malloc": malloc_setting(),
    }
