"""Runs cases: gate, then forward, then forward and backward, native and ours in one interleaved run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from d2lfast.bench.case import Case, Function, Layout, Pass, Sample, as_tuple, make_sample
from d2lfast.bench.gate import check
from d2lfast.bench.roofline import Roofline, measure_roofline
from d2lfast.bench.timing import LoadMeter, Timing, interleave

# Another process on more than this share of a core makes a measurement doubtful.
DOUBTFUL_LOAD = 0.2


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, None where a contender did not run."""

    case: str
    family: str
    shapes: str
    what: str
    layout: str
    dtype: str
    algorithm: str
    native_nchw_ms: float
    native_channels_last_ms: float | None
    compile_ms: float | None
    ours_ms: float
    ours_p20_ms: float
    ours_p80_ms: float
    speedup_same_layout: float
    speedup_best_native: float
    gflops: float
    gbytes: float
    memory_bound: bool
    floor_ms: float
    share_of_floor: float
    samples: int
    foreign_load: float | None


@dataclass
class Outcome:
    """Rows of a case, or the reasons why there are none."""

    case: str
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def call_for(
    function: Function, sample: Sample, what: Pass, grads: list[torch.Tensor]
) -> Callable[[], object]:
    """The call that is timed: forward, or forward and the gradients of all that needs one.

    Args:
        function: one side of the case.
        sample: its tensors.
        what: forward alone has to be called under `torch.no_grad()`.
        grads: of the outputs, for the backward pass.
    """
    inputs, wanted = sample.inputs, sample.wanted
    if what is Pass.FORWARD:
        return lambda: function(*inputs)
    return lambda: torch.autograd.grad(as_tuple(function(*inputs)), wanted, grads)


def grads_for(case: Case, sample: Sample) -> list[torch.Tensor]:
    """Gradients of the outputs, in the layout of the native outputs."""
    with torch.no_grad():
        outputs = as_tuple(sample.function(case.native)(*sample.inputs))
    return [torch.randn_like(output) for output in outputs]


def _compiled(case: Case, sample: Sample) -> Function:
    return torch.compile(sample.function(case.native))


def run_case(
    case: Case,
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.5,
    compiled: bool = False,
    roofline: Roofline | None = None,
) -> Outcome:
    """Check a case in every layout and, if the gate is green, time it.

    Args:
        case: from the registry.
        dtype: of inputs and parameters.
        seconds: for each pass, all contenders together.
        compiled: native through torch.compile runs too.
        roofline: of this machine; measured if not given.
    """
    outcome = Outcome(case.name, failures=check(case, dtype))
    if outcome.failures:
        return outcome
    roofline = roofline or measure_roofline(dtype)
    if compiled:
        # All cases share the code objects of their family: without a reset dynamo's recompile limit is hit.
        torch.compiler.reset()
    for what in Pass:
        _time(case, what, dtype, seconds, compiled, roofline, outcome)
    return outcome


def _time(
    case: Case,
    what: Pass,
    dtype: torch.dtype,
    seconds: float,
    compiled: bool,
    roofline: Roofline,
    outcome: Outcome,
) -> None:
    calls: dict[tuple[str, Layout], Callable[[], object]] = {}
    samples = {layout: make_sample(case, dtype, layout) for layout in case.layouts}
    with torch.set_grad_enabled(what is Pass.BOTH):
        for side in ("native", "compile", "ours"):
            if side == "compile" and not compiled:
                continue
            for layout, sample in samples.items():
                if side == "compile":
                    function = _compiled(case, sample)
                else:
                    function = sample.function(case.native if side == "native" else case.ours)
                call = call_for(function, sample, what, grads_for(case, sample))
                if side == "compile":
                    try:
                        call()
                    except Exception as error:
                        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                        outcome.notes.append(f"torch.compile, {what}, {layout}: {reason}")
                        continue
                calls[side, layout] = call
        with LoadMeter() as meter:
            timings = interleave(calls, seconds)
    outcome.rows += [
        _row(case, what, layout, dtype, timings, roofline, meter.foreign) for layout in case.layouts
    ]


def _row(
    case: Case,
    what: Pass,
    layout: Layout,
    dtype: torch.dtype,
    timings: dict[tuple[str, Layout], Timing],
    roofline: Roofline,
    foreign: float | None,
) -> Row:
    def milliseconds(side: str, layout: Layout) -> float | None:
        timing = timings.get((side, layout))
        return timing.median * 1e3 if timing else None

    ours = timings["ours", layout]
    native = [timings["native", other].median for other in case.layouts]
    work = case.work(what)
    floor = roofline.floor(work, dtype)
    return Row(
        case=case.name,
        family=case.family,
        shapes=case.shapes,
        what=str(what),
        layout=str(layout) if len(case.layouts) > 1 else "-",
        dtype=str(dtype).removeprefix("torch."),
        algorithm=case.algorithm(what, layout, dtype),
        native_nchw_ms=timings["native", Layout.NCHW].median * 1e3,
        native_channels_last_ms=milliseconds("native", Layout.CHANNELS_LAST),
        compile_ms=milliseconds("compile", layout),
        ours_ms=ours.median * 1e3,
        ours_p20_ms=ours.p20 * 1e3,
        ours_p80_ms=ours.p80 * 1e3,
        speedup_same_layout=timings["native", layout].median / ours.median,
        speedup_best_native=min(native) / ours.median,
        gflops=work.flops / ours.median * 1e-9,
        gbytes=work.bytes(dtype) / ours.median * 1e-9,
        memory_bound=roofline.memory_bound(work, dtype),
        floor_ms=floor * 1e3,
        share_of_floor=floor / ours.median,
        samples=ours.samples,
        foreign_load=foreign,
    )
