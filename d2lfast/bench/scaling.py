"""How time grows: along one size of a convolution or a recurrent layer, and from one thread to all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from d2lfast.bench.case import Case, Layout, Pass, make_sample
from d2lfast.bench.cases_conv2d import conv2d_case
from d2lfast.bench.cases_recurrent import layer_case
from d2lfast.bench.gate import check
from d2lfast.bench.runner import call_for, grads_for
from d2lfast.bench.timing import interleave


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one size.

    Attributes:
        name: "<family>/<size>".
        text: what stays the same.
        points: value of the size and its case.
    """

    name: str
    text: str
    points: tuple[tuple[int, Case], ...]


@dataclass(frozen=True)
class Point:
    """Milliseconds at one value of a sweep's size: native and ours, forward and forward+backward."""

    value: int
    algorithm: str
    native_forward: float
    ours_forward: float
    native_both: float
    ours_both: float


@dataclass(frozen=True)
class ThreadPoint:
    """Milliseconds of one thread over those of all, forward and forward+backward."""

    case: str
    algorithm: str
    native_forward: float
    ours_forward: float
    native_both: float
    ours_both: float


def _conv(value: int, *sizes: int, batch: int = 16, groups: int = 1) -> Case:
    channels, side = sizes
    return conv2d_case(
        f"scaling/{value}", (batch, channels, side, side), channels, 3, padding=1, groups=groups
    )


def sweeps() -> tuple[Sweep, ...]:
    """All sweeps, in the order of the tables."""
    sides, batches, steps, widths = (7, 14, 28, 56, 112), (1, 2, 4, 8, 16, 32, 64), (1, 4, 16, 64), (32, 64)
    found = [
        Sweep("conv2d/groups", "[16, 128, 28, 28] to 128, 3x3", tuple(
            (1 << i, _conv(1 << i, 128, 28, groups=1 << i)) for i in range(8))),
        Sweep("conv2d/batch", "[N, 64, 28, 28] to 64, 3x3", tuple(
            (n, _conv(n, 64, 28, batch=n)) for n in batches)),
        Sweep("conv2d/size", "[16, 64, H, H] to 64, 3x3", tuple((h, _conv(h, 64, h)) for h in sides)),
    ]  # fmt: skip
    for kind in ("gru", "lstm"):
        for size, text, points in (
            ("steps", "T steps of 32 x 256, 256 units", [(t, (t, 32, 256, 256)) for t in (*steps, 256)]),
            ("batch", "32 steps of N x 256, 256 units", [(n, (32, n, 256, 256)) for n in (*steps, 256)]),
            ("units", "32 steps of 32 x H, H units", [(h, (32, 32, h, h)) for h in (*widths, 128, 256, 512)]),
        ):
            cases = tuple((value, layer_case(kind, *sizes)) for value, sizes in points)
            found.append(Sweep(f"{kind}_layer/{size}", text, cases))
    return tuple(found)


def thread_cases() -> tuple[Case, ...]:
    """Cases whose time is compared between one thread and all."""
    return (
        conv2d_case("lenet-1", (256, 1, 28, 28), 6, 5, padding=2, bias=True, input_grad=False),
        conv2d_case("alexnet-stem", (16, 3, 224, 224), 96, 11, stride=4, padding=1, input_grad=False),
        conv2d_case("3x3-64", (16, 64, 56, 56), 64, 3, padding=1),
        conv2d_case("3x3-512", (16, 512, 7, 7), 512, 3, padding=1),
        conv2d_case("1x1-64", (16, 64, 56, 56), 64, 1),
        conv2d_case("g32-128", (16, 128, 56, 56), 128, 3, padding=1, groups=32),
        conv2d_case("depthwise-128", (16, 128, 56, 56), 128, 3, padding=1, groups=128),
        *(layer_case(kind, 35, 32, 256, 256) for kind in ("rnn", "gru", "lstm")),
        layer_case("gru", 35, 1024, 28, 32),
    )


def _times(case: Case, dtype: torch.dtype, seconds: float) -> Iterator[tuple[float, float]]:
    """Native and ours in ms, NCHW: forward, then forward and backward."""
    sample = make_sample(case, dtype, Layout.NCHW)
    for what in Pass:
        with torch.set_grad_enabled(what is Pass.BOTH):
            grads = grads_for(case, sample)
            calls = {
                side: call_for(sample.function(maker), sample, what, grads)
                for side, maker in (("native", case.native), ("ours", case.ours))
            }
            timings = interleave(calls, seconds)
        yield timings["native"].median * 1e3, timings["ours"].median * 1e3


def _gate(case: Case, dtype: torch.dtype) -> None:
    problems = check(case, dtype, [Layout.NCHW])
    if problems:
        raise RuntimeError(f"{case.name} is wrong and is not timed: {problems[0]}")


def run_sweep(sweep: Sweep, dtype: torch.dtype, seconds: float) -> list[Point]:
    """Check and time every point; `seconds` for each pass of a point.

    Raises:
        RuntimeError: a case does not agree with native float64.
    """
    points = []
    for value, case in sweep.points:
        _gate(case, dtype)
        forward, both = _times(case, dtype, seconds)
        points.append(Point(value, case.algorithm(Pass.BOTH, Layout.NCHW, dtype), *forward, *both))
    return points


def run_threads(cases: Sequence[Case], dtype: torch.dtype, seconds: float) -> list[ThreadPoint]:
    """Check the cases and time them with one thread and with all that torch has now.

    Raises:
        RuntimeError: a case does not agree with native float64.
    """
    threads = torch.get_num_threads()
    points = []
    for case in cases:
        _gate(case, dtype)
        algorithm = case.algorithm(Pass.BOTH, Layout.NCHW, dtype)
        try:
            torch.set_num_threads(1)
            alone = [*_times(case, dtype, seconds)]
        finally:
            torch.set_num_threads(threads)
        together = [*_times(case, dtype, seconds)]
        ratios = [one / all_ for before, after in zip(alone, together) for one, all_ in zip(before, after)]
        points.append(ThreadPoint(case.name, algorithm, *ratios))
    return points


def sweep_lines(sweep: Sweep, points: Sequence[Point]) -> list[str]:
    """A sweep as a Markdown table."""
    size = sweep.name.partition("/")[2]
    lines = [
        f"{sweep.name}: {sweep.text}",
        "",
        f"| {size} | algorithm | native forward | ours | ratio | native with backward | ours | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in points:
        lines.append(
            f"| {p.value} | {p.algorithm} | {p.native_forward:.3g} | {p.ours_forward:.3g} "
            f"| {p.native_forward / p.ours_forward:.2f} | {p.native_both:.3g} | {p.ours_both:.3g} "
            f"| {p.native_both / p.ours_both:.2f} |"
        )
    return [*lines, ""]


def thread_lines(points: Sequence[ThreadPoint], threads: int) -> list[str]:
    """The speed-ups by threads as a Markdown table."""
    lines = [
        f"threads 1 to {threads}: time of one over time of {threads}",
        "",
        "| case | algorithm | native forward | ours | native with backward | ours |",
        "|---|---|---|---|---|---|",
    ]
    for p in points:
        figures = (p.native_forward, p.ours_forward, p.native_both, p.ours_both)
        lines.append(f"| {p.case} | {p.algorithm} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return [*lines, ""]
