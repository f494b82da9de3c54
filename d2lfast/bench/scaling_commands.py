"""`d2lfast bench scaling`: time along one size after the other."""

import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from d2lfast.bench.allocator import keep_memory
from d2lfast.bench.machine import machine
from d2lfast.bench.report import header
from d2lfast.bench.roofline import measure_roofline
from d2lfast.bench.scaling import run_sweep, run_threads, sweep_lines, sweeps, thread_cases, thread_lines
from d2lfast.bench.table import header_lines


def scaling(
    pattern: Annotated[
        str,
        typer.Option("--filter", help="Only sweeps whose name matches this regex, such as conv2d|threads."),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0, help="For each point and pass, both sides.")] = 0.2,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Instead of float32.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep-memory", help="Let malloc keep freed blocks, for both sides.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the tables here too.")] = None,
) -> None:
    """Time convolutions by groups, batch and image size, recurrent layers by steps, batch and units.

    Both with one thread and with all. Ours beside native in one interleaved run, NCHW, as Markdown tables;
    milliseconds. Every point must first agree with native float64.
    """
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    try:
        chosen = [sweep for sweep in sweeps() if re.search(pattern, sweep.name)]
        cases = [case for case in thread_cases() if re.search(pattern, f"threads/{case.name}")]
    except re.error as error:
        raise typer.BadParameter(f"no regular expression: {error}", param_hint="--filter") from None
    if not chosen and not cases:
        raise typer.BadParameter(f"no sweep matches {pattern!r}", param_hint="--filter")
    if output is not None and not output.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    if keep and not keep_memory():
        raise typer.BadParameter("this C library has no mallopt that does it", param_hint="--keep-memory")
    written: list[str] = []

    def say(lines: list[str]) -> None:
        written.extend(lines)
        for line in lines:
            typer.echo(line)

    say([*header_lines(header(machine(), measure_roofline(dtype))), ""])
    for sweep in chosen:
        say(sweep_lines(sweep, run_sweep(sweep, dtype, seconds)))
    if cases and torch.get_num_threads() > 1:
        say(thread_lines(run_threads(cases, dtype, seconds), torch.get_num_threads()))
    if output is not None:
        output.write_text("\n".join(written))
