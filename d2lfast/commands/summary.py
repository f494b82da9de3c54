"""`d2lfast summary`: a network layer by layer."""

from typing import Annotated

import torch
import typer
from rich.table import Table

from d2lfast.commands.console import console, fail, usage_error
from d2lfast.models.registry import NETWORKS, Network
from d2lfast.models.registry import network as find
from d2lfast.summary import Summary, summarize


def command(
    network: Annotated[str, typer.Argument(help="The network; `d2lfast summary list` describes them all.")],
    input: Annotated[
        str, typer.Option(metavar="NxCxHxW", help="Shape of the input. Default: one example of the book's.")
    ] = "",
) -> None:
    """Print each layer's output shape, parameters, multiply-adds, bytes, receptive field and algorithm.

    Bytes are those of input, parameters and output. The receptive field is what one value sees of the image.
    """
    if network == "list":
        console.print(_networks(), highlight=False)
        return
    try:
        entry = find(network)
    except ValueError as error:
        usage_error(str(error))
    batch, *shape = _shape(input, entry)
    try:
        model = entry.build(seed=0, **entry.sizes_for(tuple(shape)))
        summary = summarize(model, *entry.example(batch, tuple(shape)).inputs)
    except (RuntimeError, ValueError) as error:
        size = "x".join(map(str, (batch, *shape)))
        fail(f"{network} does not take an input of {size}: {str(error).splitlines()[0]}")
    console.print(_table(summary), highlight=False)
    console.print(
        f"{summary.parameters:,} parameters, {summary.macs:,} multiply-adds, "
        f"{summary.bytes / 2**20:,.2f} MiB moved by a forward pass in float32, layer by layer",
        highlight=False,
        soft_wrap=True,
    )


def _shape(text: str, entry: Network) -> list[int]:
    if not text:
        return [1, *entry.shape]
    try:
        shape = [int(size) for size in text.lower().split("x")]
    except ValueError:
        shape = []
    if len(shape) != len(entry.shape) + 1 or min(shape) < 1:
        example = "x".join(map(str, (1, *entry.shape)))
        usage_error(f"--input must be positive numbers such as {example}, but got {text!r}")
    return shape


def _table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "type", "output"):
        table.add_column(heading, overflow="fold")
    for heading in ("parameters", "multiply-adds", "KiB", "sees"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("algorithm", overflow="fold")
    for layer in summary:
        field = layer.receptive_field
        table.add_row(
            layer.path or "(the network)",
            layer.type + (f" ({layer.calls} times)" if layer.calls > 1 else ""),
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            f"{layer.bytes / 1024:,.1f}",
            f"{field[0]}x{field[1]}" if field else "",
            layer.algorithm,
        )
    return table


def _networks() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("network", "book", "task", "data", "input"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "lr", "batch", "epochs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in NETWORKS.values():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in entry.builder(layers=torch.nn).parameters())
        table.add_row(
            entry.name,
            entry.section,
            entry.task,
            entry.data,
            "x".join(map(str, entry.shape)),
            f"{parameters:,}",
            f"{entry.lr:g}",
            str(entry.batch_size),
            str(entry.epochs),
        )
    return table
