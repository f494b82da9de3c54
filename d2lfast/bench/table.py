"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from math import exp, log

import torch
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from d2lfast.bench.case import Case, Pass
from d2lfast.bench.runner import DOUBTFUL_LOAD, Outcome, Row

LEGEND = (
    "Times are medians in ms; forward runs without autograd. x same: over native in the same layout; x best: "
    "over the faster native layout. Rate: what bounds the floor. Floor: the share of the time below which "
    "unavoidable FLOPs or bytes cannot fall; above 100 % data stayed in the caches, or the algorithm saves "
    "multiplications."
)


def header_lines(facts: Mapping[str, str | int | float]) -> list[str]:
    """The machine in three lines."""
    return [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}, {facts['threads']} threads; "
        f"peak {facts['peak_gflops']} GFLOP/s, copy {facts['copy_gbytes']} GB/s",
        f"torch {facts['torch']}, d2lfast {facts['d2lfast']}, {facts['date']}",
        f"malloc: {facts['malloc']}",
    ]


def _time(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.4g}"


def _speedup(value: float) -> Text:
    return Text(f"{value:.2f}", style="red" if value < 0.95 else "green" if value > 1.05 else "")


def results_table(family: str, rows: Sequence[Row]) -> Table:
    """The rows of a family; a `*` marks rows that were measured beside a busy process."""
    compiled = any(row.compile_ms is not None for row in rows)
    table = Table(title=family, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("case", overflow="fold")
    table.add_column("pass")
    table.add_column("layout", no_wrap=True)
    table.add_column("algorithm", overflow="fold")
    numbers = ["native NCHW", "native ch.last", *(["compile"] if compiled else [])]
    for name in (*numbers, "ours", "x same", "x best", "rate", "floor"):
        table.add_column(name, justify="right", no_wrap=name not in numbers)
    for row in rows:
        doubtful = row.foreign_load is not None and row.foreign_load > DOUBTFUL_LOAD
        rate = f"{row.gbytes:.1f} GB/s" if row.memory_bound else f"{row.gflops:.1f} GFLOP/s"
        table.add_row(
            row.case.partition("/")[2] if row.case.startswith(f"{family}/") else row.case,
            "fwd" if row.what == Pass.FORWARD else "fwd+bwd",
            row.layout,
            row.algorithm,
            _time(row.native_nchw_ms),
            _time(row.native_channels_last_ms),
            *([_time(row.compile_ms)] if compiled else []),
            _time(row.ours_ms) + ("*" if doubtful else ""),
            _speedup(row.speedup_same_layout),
            _speedup(row.speedup_best_native),
            rate,
            f"{row.share_of_floor:.0%}",
            style="dim" if row.algorithm == "native" else "",
        )
    return table


def summary_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """For each family and pass the geometric mean of the speed-ups in the same layout, and the lowest."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    lines = []
    for family in dict.fromkeys(row.family for row in rows):
        for what in Pass:
            chosen = [row for row in rows if row.family == family and row.what == what]
            mean = exp(sum(log(row.speedup_same_layout) for row in chosen) / len(chosen))
            worst = min(chosen, key=lambda row: row.speedup_same_layout)
            lines.append(
                f"{family} {what}: {mean:.2f} times native in the same layout (geometric mean of "
                f"{len(chosen)}), lowest {worst.speedup_same_layout:.2f} ({worst.case}, {worst.layout})"
            )
    return lines


def failure_lines(outcome: Outcome) -> list[str]:
    """What the gate found, as markup."""
    return [
        f"[bold red]GATE RED[/] {escape(outcome.case)}: {escape(problem)}; not timed"
        for problem in outcome.failures
    ]


def list_table(chosen: Sequence[Case]) -> Table:
    """The registry: shapes and work of every case (bytes for float32)."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", overflow="fold")
    table.add_column("inputs | parameters", overflow="fold")
    for name in ("MFLOP fwd", "MFLOP fwd+bwd", "MB fwd", "MB fwd+bwd"):
        table.add_column(name, justify="right")
    for case in chosen:
        works = (case.forward, case.both)
        table.add_row(
            case.name,
            case.shapes,
            *(f"{work.flops * 1e-6:.4g}" for work in works),
            *(f"{work.bytes(torch.float32) * 1e-6:.4g}" for work in works),
        )
    return table
