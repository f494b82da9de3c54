"""The file of the measured convolution algorithms: one for each processor and version, shared by processes.

csrc/ops/conv2d_tuning.cpp measures. What it finds is written at once; what other processes found is read when
autotuning is switched on. A file that cannot be read, or that is not what it should be, is ignored with one
warning and replaced by the next finding.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import d2lfast
from d2lfast import _extension
from d2lfast._atomic import replacing
from d2lfast._folders import cache_folder
from d2lfast._machine import cpu_model

try:
    import fcntl
except ImportError:  # not on Windows: the last writer wins there
    fcntl = None  # type: ignore[assignment]

__all__ = ["enable", "tuning_file"]

_log = logging.getLogger(__name__)

FIELDS = (
    "pass", "dtype", "channels_last", "threads", "winograd_allowed", "batch", "channels", "height", "width",
    "result_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h",
    "dilation_w", "groups", "cuda", "tf32",
)  # fmt: skip

Key = tuple[int, ...]
Findings = dict[Key, str]


def _environment() -> dict[str, Any]:
    """What a measurement holds for."""
    return {
        "cpu": cpu_model(),
        "isa": _extension.load().current_isa(),
        "torch": torch.__version__,
        "d2lfast": d2lfast.__version__,
        "fields": list(FIELDS),
    }


def tuning_file() -> Path:
    """The file of this processor and these versions."""
    text = json.dumps(_environment(), sort_keys=True)
    return cache_folder() / "conv2d" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


class _File:
    """The findings on disk. One warning for each kind of trouble; a convolution never fails for its file."""

    def __init__(self) -> None:
        self.warned: set[str] = set()
        # What this process found: written again with each finding, should another process have lost it.
        self.own: Findings = {}

    def warn(self, kind: str, path: Path, problem: object) -> None:
        if kind in self.warned:
            return
        self.warned.add(kind)
        _log.warning("the autotuned algorithms in %s cannot be %s: %s", path, kind, problem)

    def read(self) -> Findings:
        path = tuning_file()
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.warn("read", path, error)
            return {}
        try:
            return _parse(text)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.warn("used and will be measured again", path, error or type(error).__name__)
            return {}

    def add(self, key: Key, name: str) -> None:
        self.own[key] = name
        path = tuning_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")), replacing(path) as new:
                document = {
                    "environment": _environment(),
                    "algorithms": [[*k, v] for k, v in sorted({**self.read(), **self.own}.items())],
                }
                new.write_text(json.dumps(document).replace("], [", "],\n["))
        except OSError as error:
            self.warn("written", path, error)


def _parse(text: bytes) -> Findings:
    document = json.loads(text)
    if document["environment"] != _environment():
        raise ValueError("it belongs to another processor or version")
    found: Findings = {}
    for *key, name in document["algorithms"]:
        numbers = all(type(number) is int and 0 <= number < 2**63 for number in key)
        if len(key) != len(FIELDS) or not numbers or type(name) is not str:
            raise ValueError("an entry is not what it should be")
        found[tuple(key)] = name
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out, so that nobody's findings get lost; without locks the last writer wins."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        # Some network file systems have no locks.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


_file = _File()


def _found(key: list[int], name: str) -> None:
    try:
        _file.add(tuple(key), name)
    except Exception as error:  # the convolution in whose midst this is has its result
        _file.warn("written", tuning_file(), error)


def enable(enabled: bool) -> None:
    """Measure from now on, starting with what the file knows, or go back to the table."""
    extension = _extension.load()
    if enabled and not extension.tuning_enabled():
        assert extension.tuning_fields == len(FIELDS)
        for key, name in _file.read().items():
            extension.add_tuning(key, name)
        extension.on_tuning(_found)
    extension.enable_tuning(enabled)
