"""`d2lfast bench networks`: whole networks against their native twins."""

import re
import sys
from math import exp, log
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from d2lfast.bench.allocator import keep_memory
from d2lfast.bench.machine import machine
from d2lfast.bench.networks import DEFAULT, PASSES, NetworkOutcome, NetworkRow, run_network
from d2lfast.bench.report import header, write_rows
from d2lfast.bench.roofline import measure_roofline
from d2lfast.bench.runner import DOUBTFUL_LOAD
from d2lfast.bench.table import header_lines
from d2lfast.bench.timing import foreign_load
from d2lfast.models.registry import NETWORKS

WIDTH = 150


def networks(
    pattern: Annotated[
        str, typer.Option("--filter", help="Networks whose name matches this regex. Default: a choice.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0, help="For each network and pass, all contenders.")] = 2.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: the book's, or less.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's own number.")] = None,
    device: Annotated[str, typer.Option(help="Where both sides run, such as cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Add native through torch.compile.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep-memory", help="Let malloc keep freed blocks, for both sides.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the rows here as CSV.")] = None,
) -> None:
    """Time a training step and inference of whole networks, ours and native, in one interleaved run.

    A training step is forward, backward and SGD. Each network must first agree with its native twin in
    every layout; otherwise its failure is printed instead of its speed, and the exit status is 1.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    chosen = _choose(pattern)
    if csv is not None and not csv.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {csv.parent}", param_hint="--csv")
    if threads is not None:
        torch.set_num_threads(threads)
    if keep and not keep_memory():
        raise typer.BadParameter("this C library has no mallopt that does it", param_hint="--keep-memory")
    where = _device(device)
    load = foreign_load()
    facts = {**header(machine(), measure_roofline(torch.float32)), "device": _device_name(where)}
    for line in header_lines(facts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if load is not None and load > DOUBTFUL_LOAD:
        console.print(f"[yellow]Other processes keep {load:.1f} cores busy: the figures will suffer.[/]")
    console.print()
    outcomes = _run(chosen, seconds, batch_size, compiled, where)
    rows = [row for outcome in outcomes for row in outcome.rows]
    if rows:
        console.print(_table(rows, markdown), highlight=False)
    for outcome in outcomes:
        for problem in outcome.failures:
            console.print(f"GATE RED {outcome.network}: {problem}; not timed", style="red", markup=False)
        for note in outcome.notes:
            console.print(f"{outcome.network}: {note}", markup=False, highlight=False, soft_wrap=True)
    for line in _summary(rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if csv is not None:
        write_rows(csv, facts, NetworkRow, rows)
    red = [outcome.network for outcome in outcomes if outcome.failures]
    if red:
        console.print(f"[bold red]{len(red)} of {len(outcomes)} networks are wrong and were not timed.[/]")
        raise typer.Exit(1)


def _choose(pattern: str) -> list[str]:
    if not pattern:
        return list(DEFAULT)
    try:
        chosen = [name for name in NETWORKS if re.search(pattern, name)]
    except re.error as error:
        raise typer.BadParameter(f"no regular expression: {error}", param_hint="--filter") from None
    if not chosen:
        raise typer.BadParameter(f"no network matches {pattern!r}", param_hint="--filter")
    return chosen


def _device(name: str) -> torch.device:
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(str(error).splitlines()[0], param_hint="--device") from None
    if device.type == "cuda":
        # Products of ten bits would hide the errors that the gate looks for.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _run(
    chosen: list[str], seconds: float, batch_size: int | None, compiled: bool, device: torch.device
) -> list[NetworkOutcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    outcomes = []
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("", total=len(chosen))
        for name in chosen:
            progress.update(task, description=name)
            outcomes.append(run_network(name, seconds, batch_size, compiled, device=device))
            progress.advance(task)
    return outcomes


def _table(rows: list[NetworkRow], markdown: bool) -> Table:
    table = Table(box=box.MARKDOWN if markdown else None, pad_edge=markdown, header_style="bold")
    table.add_column("network", no_wrap=True)
    for heading in ("parameters", "MMACs", "batch"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("pass", no_wrap=True)
    compiled = any(row.compile_ms is not None for row in rows)
    numbers = ["native", "native ch.last", *(["compile"] if compiled else []), "ours", "ours ch.last"]
    for heading in (*numbers, "x same", "x best"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        doubtful = row.foreign_load is not None and row.foreign_load > DOUBTFUL_LOAD
        times = [row.native_ms, row.native_channels_last_ms, *([row.compile_ms] if compiled else [])]
        times += [row.ours_ms, row.ours_channels_last_ms]
        table.add_row(
            row.network,
            f"{row.parameters:,}",
            f"{row.macs * 1e-6:,.3g}",
            str(row.batch_size),
            row.what + ("*" if doubtful else ""),
            *("" if time is None else f"{time:.4g}" for time in times),
            f"{row.speedup_same_layout:.2f}",
            f"{row.speedup_best:.2f}",
        )
    return table


def _summary(rows: list[NetworkRow]) -> list[str]:
    lines = []
    if rows:
        lines.append("Milliseconds a batch, float32. x same: native over ours, NCHW; x best: best over best.")
    if any(row.foreign_load is not None and row.foreign_load > DOUBTFUL_LOAD for row in rows):
        lines.append("* measured beside a busy process")
    for what in PASSES:
        values = [row for row in rows if row.what == what]
        if values:
            mean = exp(sum(log(row.speedup_best) for row in values) / len(values))
            worst = min(values, key=lambda row: row.speedup_best)
            lines.append(
                f"{what}: {mean:.2f} times the best native configuration (geometric mean of {len(values)}), "
                f"lowest {worst.speedup_best:.2f} ({worst.network})"
            )
    return lines
