"""`d2lfast bench`: hands over to the benchmarks."""

import importlib

import typer

from d2lfast.commands.console import fail


def command(context: typer.Context) -> None:
    """Measure operators and networks against native PyTorch: d2lfast bench --help."""
    bench = importlib.import_module("d2lfast.bench")
    app = getattr(bench, "app", None)
    if app is None:
        fail("This build of d2lfast has no benchmarks.")
    app(args=context.args, prog_name="d2lfast bench")
