"""Benchmarks of the operators against native PyTorch: registry of cases, gate, timing, roofline, tables.

`app` is the command line (`d2lfast bench`, or `python -m d2lfast.bench`); it needs the extra `cli`.
"""

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # Lazy: the registry is usable (pytest-benchmark, scripts) without typer and rich.
    if name == "app":
        from d2lfast.bench.commands import app

        return app
    raise AttributeError(f"module 'd2lfast.bench' has no attribute '{name}'")
