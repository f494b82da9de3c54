"""`d2lfast selftest`: checks the operators of this installation on this machine."""

import time

import typer
from rich.table import Table

from d2lfast.commands.console import console
from d2lfast.selftest import run_selftest


def command() -> None:
    """Check every operator on every device against native float64 PyTorch, forward and gradients."""
    start = time.perf_counter()
    rows = run_selftest()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("operator", "device", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("cases", "forward", "gradient", "allowed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for row in rows:
        numbers = [""] * 4
        if row.cases:
            errors = (row.forward_error, row.gradient_error)
            numbers = [str(row.cases), *(f"{error:.1e}" for error in errors), f"{row.tolerance:.0e}"]
        style = {"ok": "green", "skipped": "yellow"}.get(row.status, "bold red")
        table.add_row(row.operator, row.device, row.dtype, *numbers, f"[{style}]{row.status}")
    console.print(table, highlight=False)
    for row in rows:
        if row.reason:
            place = " ".join(filter(None, (row.operator, row.device, row.dtype)))
            typer.echo(f"{place}: {row.status}: {row.reason}")
    failed = sum(row.status == "failed" for row in rows)
    seconds = time.perf_counter() - start
    typer.echo(
        f"{failed} of {len(rows)} checks failed."
        if failed
        else f"All is well ({len(rows)} checks, {seconds:.0f} s)."
    )
    raise typer.Exit(1 if failed else 0)
