"""Native and d2lfast on a CUDA device: `python -m d2lfast.bench.gpu --out FILE.csv`.

Times are of CUDA graph replays, so that neither side pays for launches from Python; every call's inputs are
larger than the caches only where the case is. A case that cannot be captured is timed eagerly.
"""

import argparse
import csv
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import torch

import d2lfast
from d2lfast.bench.case import Case, Layout, Pass, Sample, make_sample
from d2lfast.bench.registry import cases
from d2lfast.bench.runner import call_for, grads_for

Call = Callable[[], object]
# Bytes and operations in a second of an H200: a copy, and a bfloat16 product. Of the floor column.
COPY_RATE, PRODUCT_RATE, FLOAT_RATE = 4.3e12, 790e12, 60e12


@dataclass(frozen=True)
class GpuRow:
    """A line of the table; milliseconds."""

    case: str
    what: str
    layout: str
    dtype: str
    algorithm: str
    native_ms: float
    native_best_ms: float
    ours_ms: float
    speedup_same_layout: float
    speedup_best_native: float
    gbytes: float
    tflops: float
    floor_ms: float
    share_of_floor: float


def machine() -> dict[str, str]:
    """Facts for the header of the file."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "tf32": str(torch.backends.cudnn.allow_tf32),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "d2lfast": d2lfast.__version__,
    }


def on_device(sample: Sample, device: str) -> Sample:
    """The sample's tensors on a device."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device)

    return Sample(
        [move(tensor).requires_grad_(sample.input_grad) for tensor in sample.inputs],
        [torch.nn.Parameter(move(tensor)) for tensor in sample.parameters],
        [move(tensor) for tensor in sample.buffers],
        sample.input_grad,
    )


def replayed(call: Call) -> Call:
    """The call as a CUDA graph, or itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def cuda_milliseconds(calls: Sequence[Call], rounds: int = 15) -> list[float]:
    """Medians of the calls, which run in turn."""
    graphs = [replayed(call) for call in calls]
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(rounds):
        for taken, call in zip(times, graphs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(5):
                call()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 5)
    return [median(taken) for taken in times]


def rows_of(
    case: Case,
    dtype: torch.dtype,
    device: str = "cuda",
    milliseconds: Callable[[Sequence[Call]], list[float]] = cuda_milliseconds,
) -> Iterable[GpuRow]:
    """Forward, and forward with backward, of a case in each layout."""
    for what in Pass:
        keys, calls = [], []
        with torch.set_grad_enabled(what is Pass.BOTH):
            for layout in case.layouts:
                sample = on_device(make_sample(case, dtype, layout), device)
                for side, maker in (("native", case.native), ("ours", case.ours)):
                    keys.append((side, layout))
                    calls.append(call_for(sample.function(maker), sample, what, grads_for(case, sample)))
            times = dict(zip(keys, milliseconds(calls)))
        work = case.work(what)
        rate = PRODUCT_RATE if dtype.itemsize == 2 else FLOAT_RATE
        floor = 1e3 * max(work.bytes(dtype) / COPY_RATE, work.flops / rate)
        best = min(times["native", layout] for layout in case.layouts)
        for layout in case.layouts:
            ours, native = times["ours", layout], times["native", layout]
            yield GpuRow(
                case=case.name,
                what=str(what),
                layout=str(layout) if len(case.layouts) > 1 else "-",
                dtype=str(dtype).removeprefix("torch."),
                algorithm=algorithm_of(case, what, layout, dtype),
                native_ms=native,
                native_best_ms=best,
                ours_ms=ours,
                speedup_same_layout=native / ours,
                speedup_best_native=best / ours,
                gbytes=work.bytes(dtype) / ours * 1e-6,
                tflops=work.flops / ours * 1e-9,
                floor_ms=floor,
                share_of_floor=floor / ours,
            )


def algorithm_of(case: Case, what: Pass, layout: Layout, dtype: torch.dtype) -> str:
    """Names of our algorithms on CUDA for convolutions, else a dash."""
    if case.convolution is None:
        return "-"
    names = d2lfast.explain(
        case.operator, case.inputs[0], case.parameters[0], dtype=dtype, device="cuda",
        channels_last=layout is Layout.CHANNELS_LAST, **case.convolution,
    )  # fmt: skip
    return names["forward"] if what is Pass.FORWARD else "/".join(names.values())


def write(path: Path, rows: Sequence[GpuRow], header: dict[str, str]) -> None:
    """One file: a comment line for each fact of the machine, then the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        for name, value in header.items():
            file.write(f"# {name}: {value}\n")
        writer = csv.DictWriter(file, [field.name for field in fields(GpuRow)])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--seconds", type=float, default=75, help="stop beginning new cases after these")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    rows: list[GpuRow] = []
    failures, skipped = [], 0
    print(
        f"{'case':44} {'pass':16} {'layout':13} {'dtype':8} {'ours ms':>9} {'x same':>6} {'x best':>6} floor"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases():
            if time.monotonic() > deadline:
                skipped += 1
                continue
            try:
                made = list(rows_of(case, dtype))
            except (RuntimeError, NotImplementedError) as error:
                failures.append(f"{case.name}, {dtype}: {str(error).partition(chr(10))[0]}")
                continue
            for row in made:
                print(
                    f"{row.case:44} {row.what:16} {row.layout:13} {row.dtype:8} {row.ours_ms:9.4f} "
                    f"{row.speedup_same_layout:6.2f} {row.speedup_best_native:6.2f} {row.share_of_floor:5.0%}"
                )
            rows += made
    write(options.out, rows, machine())
    for failure in failures:
        print(f"failed: {failure}")
    if skipped:
        print(f"{skipped} cases were not run: the time was over.")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
