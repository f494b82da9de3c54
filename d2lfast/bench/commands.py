"""`d2lfast bench`: its commands, and `kernels`, the operators against native PyTorch."""

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from d2lfast.bench import memory_commands, network_commands, registry, scaling_commands
from d2lfast.bench.allocator import keep_memory
from d2lfast.bench.case import Case
from d2lfast.bench.machine import machine
from d2lfast.bench.report import header, write_csv, write_json
from d2lfast.bench.roofline import measure_roofline
from d2lfast.bench.runner import DOUBTFUL_LOAD, Outcome, run_case
from d2lfast.bench.table import LEGEND, failure_lines, header_lines, list_table, results_table, summary_lines
from d2lfast.bench.timing import foreign_load

app = typer.Typer(
    help="Measure operators and networks against native PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

WIDTH = 150


class DType(StrEnum):
    """Types that the operators support."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


app.command("networks")(network_commands.networks)
app.command("memory")(memory_commands.command)
app.command("scaling")(scaling_commands.scaling)


def _choose(pattern: str, suite: registry.Suite) -> list[Case]:
    try:
        chosen = registry.cases(pattern, suite)
    except re.error as error:
        raise typer.BadParameter(f"no regular expression: {error}", param_hint="--filter") from None
    if not chosen:
        raise typer.BadParameter(f"no case matches {pattern!r}; --list shows them", param_hint="--filter")
    return chosen


def _run(
    chosen: list[Case], console: Console, dtype: torch.dtype, seconds: float, compiled: bool
) -> list[Outcome]:
    """Run the cases and print each family as soon as it is complete."""
    roofline = measure_roofline(dtype)
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("", total=len(chosen))
        for family in dict.fromkeys(case.family for case in chosen):
            done = []
            for case in (case for case in chosen if case.family == family):
                progress.update(task, description=case.name)
                done.append(run_case(case, dtype, seconds, compiled, roofline))
                progress.advance(task)
            rows = [row for outcome in done for row in outcome.rows]
            if rows:
                console.print(results_table(family, rows))
            for outcome in done:
                for line in failure_lines(outcome):
                    console.print(line, highlight=False, soft_wrap=True)
                for note in outcome.notes:
                    console.print(f"{outcome.case}: {note}", markup=False, highlight=False, soft_wrap=True)
            console.print()
            outcomes += done
    return outcomes


@app.command()
def kernels(
    pattern: Annotated[str, typer.Option("--filter", help="Only cases whose name matches this regex.")] = "",
    suite: Annotated[
        registry.Suite, typer.Option(help="book: every convolution of the book's networks.")
    ] = registry.Suite.DEFAULT,
    list_cases: Annotated[bool, typer.Option("--list", help="Show the cases and end.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="For each case and pass, all contenders.")] = 0.5,
    dtype: Annotated[DType, typer.Option(help="Of inputs and parameters.")] = DType.float32,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's own number.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Add native through torch.compile.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep-memory", help="Let malloc keep freed blocks, for both sides.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results here as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows here as CSV.")] = None,
) -> None:
    """Time every operator, forward and with backward, against native eager PyTorch in one interleaved run.

    Each case must first agree with native PyTorch in float64; otherwise its failure is printed instead of
    its speed, and the exit status is 1.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    chosen = _choose(pattern, suite)
    if list_cases:
        console.print(list_table(chosen), highlight=False)
        return
    for path in (json, csv):
        if path is not None and not path.resolve().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}", param_hint="--json/--csv")
    if threads is not None:
        torch.set_num_threads(threads)
    if keep and not keep_memory():
        raise typer.BadParameter("this C library has no mallopt that does it", param_hint="--keep-memory")
    load = foreign_load()
    torch_dtype = getattr(torch, dtype)
    facts = header(machine(), measure_roofline(torch_dtype))
    for line in header_lines(facts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if load is not None and load > DOUBTFUL_LOAD:
        console.print(f"[yellow]Other processes keep {load:.1f} cores busy: the figures will suffer.[/]")
    console.print()
    outcomes = _run(chosen, console, torch_dtype, seconds, compiled)
    for line in summary_lines(outcomes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    loads = [row.foreign_load for outcome in outcomes for row in outcome.rows if row.foreign_load is not None]
    if loads and max(loads) > DOUBTFUL_LOAD:
        doubtful = sum(load > DOUBTFUL_LOAD for load in loads)
        console.print(
            f"[yellow]* {doubtful} of {len(loads)} rows were measured while other processes kept up to "
            f"{max(loads):.1f} cores busy.[/]"
        )
    if loads:
        console.print(LEGEND, style="dim", highlight=False)
    settings = {
        "dtype": str(dtype), "seconds": seconds, "suite": str(suite), "filter": pattern, "compile": compiled,
        "keep_memory": keep,
    }  # fmt: skip
    if json is not None:
        write_json(json, facts, settings, outcomes)
    if csv is not None:
        write_csv(csv, facts, outcomes)
    red = [outcome.case for outcome in outcomes if outcome.failures]
    if red:
        console.print(f"[bold red]{len(red)} of {len(outcomes)} cases are wrong and were not timed.[/]")
        raise typer.Exit(1)
