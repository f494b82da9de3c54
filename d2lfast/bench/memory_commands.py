"""`d2lfast bench memory`: what training keeps for backward, and what `d2lfast.memory` saves."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import d2lfast.nn
from d2lfast import memory, models
from d2lfast.bench.machine import machine
from d2lfast.bench.saved import Saved, saved_bytes
from d2lfast.bench.step_worker import step_times
from d2lfast.bench.timing import interleave

MIB = 2**20
_FILLED = 51 * MIB
# Network, shape of a batch.
_NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "bn-lenet": (models.BNLeNet, (256, 1, 28, 28)),
    "resnet18": (models.ResNet18, (32, 3, 96, 96)),
}


def measure_saved(network: str, layers: Any, layout: torch.memory_format) -> Saved:
    """The bytes of one training step of a network built from `layers`, on random images."""
    build, shape = _NETWORKS[network]
    torch.manual_seed(0)
    model = build(10, shape[1], layers=layers).to(memory_format=layout)
    images = torch.randn(shape).to(memory_format=layout)
    labels = torch.randint(10, shape[:1])
    return saved_bytes(model, lambda: F.cross_entropy(model(images), labels))


def measure_fill(seconds: float) -> dict[str, float]:
    """Seconds to fill 51 MiB: an old tensor, and a new one with and without the cache."""
    old = torch.empty(_FILLED // 4)

    def new() -> None:
        torch.empty(_FILLED // 4).fill_(1)

    with memory.enabled():
        cached = interleave({"fill": lambda: old.fill_(1), "cached": new}, seconds / 2)
    before = memory.stats().enabled
    memory.disable()
    plain = interleave({"fill": lambda: old.fill_(1), "malloc": new}, seconds / 2)
    if before:
        memory.enable()
    return {
        "fill": min(cached["fill"].median, plain["fill"].median),
        "cached": cached["cached"].median,
        "malloc": plain["malloc"].median,
    }


def _saved_table(results: dict[str, Saved]) -> Table:
    table = Table(title="training step, MiB", title_justify="left", box=None, header_style="bold")
    table.add_column("network", no_wrap=True)
    for name in ("saved", "of native", "by norm, act, pool", "of native", "peak", "of native"):
        table.add_column(name, justify="right")
    for key in [key for key in results if key.endswith("ours")]:
        ours, native = results[key], results[key.removesuffix("ours") + "native"]
        cells = []
        for a, b in zip(asdict(ours).values(), asdict(native).values(), strict=True):
            cells += [f"{a / MIB:.1f}", f"{a / b:.2f}"]
        table.add_row(key.removesuffix(" ours"), *cells)
    return table


def command(
    seconds: Annotated[float, typer.Option(min=0, help="For the ResNet-18 steps of each layout.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's own number.")] = None,
    skip_steps: Annotated[bool, typer.Option("--skip-steps", help="Leave the ResNet-18 steps out.")] = False,
    path: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Measure bytes kept for backward, ours against native, and the cache of d2lfast.memory.

    Bytes are those of distinct storages without parameters, with the share of native; "by norm, act, pool"
    are those that batch norms, activations and pooling keep. The steps are of native ResNet-18, 32 images of
    96x96, in two fresh processes that take turns: malloc's default against d2lfast.memory.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    if threads is not None:
        torch.set_num_threads(threads)
    layouts = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    saved = {
        f"{network} {layout} {side}": measure_saved(network, layers, layouts[layout])
        for network in _NETWORKS
        for layout in layouts
        for side, layers in (("ours", d2lfast.nn), ("native", nn))
    }
    console.print(_saved_table(saved), highlight=False)
    fill = measure_fill(min(seconds, 2))
    console.print(
        f"\nfill of {_FILLED // MIB} MiB: {fill['fill'] * 1e3:.2f} ms; allocated and filled: "
        f"{fill['cached'] * 1e3:.2f} ms with the cache ({fill['fill'] / fill['cached']:.0%} of its speed), "
        f"{fill['malloc'] * 1e3:.2f} ms with malloc ({fill['fill'] / fill['malloc']:.0%})",
        highlight=False,
    )
    steps = {}
    for layout in () if skip_steps else layouts:
        times = step_times(seconds, channels_last=layout == "channels_last")
        steps[layout] = {name: median(values) for name, values in times.items()}
        plain, cached = steps[layout]["plain"], steps[layout]["cached"]
        console.print(
            f"native ResNet-18 step, {layout}: malloc {plain * 1e3:.1f} ms, cached {cached * 1e3:.1f} ms, "
            f"{plain / cached:.2f} times as fast ({len(times['plain'])} steps each)",
            highlight=False,
        )
    if path is not None:
        document = {
            "machine": machine(),
            "saved": {name: asdict(value) for name, value in saved.items()},
            "fill_seconds": fill,
            "step_seconds": steps,
        }
        path.write_text(json.dumps(document, indent=2) + "\n")
