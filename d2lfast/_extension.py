"""Loads the compiled operators, or says in one sentence why they cannot be loaded and what to do."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_BUILD_INFO = Path(__file__).with_name("_build_info.json")
REBUILD = "pip install --force-reinstall --no-deps --no-build-isolation . (or 'make build' in a checkout)"


def build_info() -> dict[str, Any]:
    """What the installed extension was built with; raises ImportError if there is none."""
    try:
        info: dict[str, Any] = json.loads(_BUILD_INFO.read_text())
    except FileNotFoundError:
        raise ImportError(f"The d2lfast extension has not been built; run: {REBUILD}") from None
    return info


def load() -> ModuleType:
    """Import `d2lfast._C`, which registers the operators of `torch.ops.d2lfast`.

    Raises:
        ImportError: there is no extension, or it was built against another torch.
    """
    info = build_info()
    if info["torch"] != torch.__version__:
        raise ImportError(
            f"d2lfast was built against torch {info['torch']}, but torch {torch.__version__} is installed; "
            f"rebuild it with: {REBUILD}"
        )
    try:
        return importlib.import_module("d2lfast._C")
    except ImportError as error:
        raise ImportError(
            f"The d2lfast extension cannot be loaded ({error}); rebuild it with: {REBUILD}"
        ) from error
