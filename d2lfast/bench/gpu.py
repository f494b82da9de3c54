"""Native and d2lfast on a CUDA device: `python -m d2lfast.bench.gpu --out FILE.csv`.

Times of kernels are of CUDA graph replays, so that neither side pays for launches from Python; every call's
inputs are larger than the caches only where the case is. A case that cannot be captured is timed eagerly.
Convolutions take the algorithm that autotuning finds. Networks take training steps, ours also as a graph.
"""

import argparse
import csv
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import d2lfast
from d2lfast.bench.case import Case, Pass, Sample, make_sample
from d2lfast.bench.networks import Contender
from d2lfast.bench.registry import cases
from d2lfast.bench.runner import call_for, grads_for
from d2lfast.models.registry import NETWORKS

Call = Callable[[], object]
# Networks whose time is the launching of their kernels.
LAUNCH_BOUND = ("lenet", "rnn")


@dataclass(frozen=True)
class Rates:
    """What a device does in a second; the floor column holds against it."""

    copied: float = 4.3e12  # bytes read and written, of a copy
    products: float = 790e12  # operations of a bfloat16 product
    floats: float = 60e12  # of a float32 product

    def of(self, dtype: torch.dtype) -> float:
        """Operations in a second for tensors of a dtype."""
        return self.products if dtype.itemsize == 2 else self.floats


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


H200 = Rates()


def measured_rates() -> Rates:
    """Of the current device: a copy of 2 GiB, and products of 8192 x 8192 matrices."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    (copy,) = cuda_milliseconds([lambda: target.copy_(source)])
    operations = []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
        (product,) = cuda_milliseconds([lambda a=a, b=b: a @ b], rounds=3)  # type: ignore[misc]
        operations.append(2e3 * 8192**3 / product)
    return Rates(2e3 * source.numel() * source.itemsize / copy, *operations)


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
    rates: Rates = H200,
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
        floor = 1e3 * max(work.bytes(dtype) / rates.copied, work.flops / rates.of(dtype))
        best = min(times["native", layout] for layout in case.layouts)
        for layout in case.layouts:
            ours, native = times["ours", layout], times["native", layout]
            yield GpuRow(
                case=case.name,
                what=str(what),
                layout=str(layout) if len(case.layouts) > 1 else "-",
                dtype=str(dtype).removeprefix("torch."),
                algorithm=case.algorithm(what, layout, dtype, "cuda"),
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


def wall_milliseconds(calls: Sequence[Call], rounds: int = 15) -> list[float]:
    """Medians of the calls, which wait for the device themselves and run in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for taken, call in zip(times, calls):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    return [median(taken) for taken in times]


def network_rows(
    name: str,
    device: str = "cuda",
    milliseconds: Callable[[Sequence[Call]], list[float]] = wall_milliseconds,
    graph: Callable[..., object] = d2lfast.cuda_graph,
) -> Iterable[GpuRow]:
    """A training step at the book's batch: native and ours launched kernel by kernel, and ours as a graph."""
    network = NETWORKS[name]
    example = network.example(network.batch_size, network.shape)
    inputs, target = tuple(x.to(device) for x in example.inputs), example.target.to(device)

    def contender(layers: Any) -> Contender:
        model = network.build(seed=0, layers=layers, **network.sizes_for(network.shape))
        return Contender(model.to(device).train(), inputs, target, network, layers)

    native, ours = contender(torch.nn), contender(d2lfast.nn)
    graphed = Contender(deepcopy(ours.model), inputs, target, network, d2lfast.nn)
    graph(graphed.model, *inputs)
    steps = [native.train, ours.train, graphed.train]
    for step in steps:
        for _ in range(3):
            step()
    of_native, *of_ours = milliseconds(steps)
    for algorithm, taken in zip(("launched", "cuda_graph"), of_ours):
        case, speedup, unknown = f"network {name}, {network.batch_size}", of_native / taken, float("nan")
        yield GpuRow(
            case, "training step", "-", "float32", algorithm, of_native, of_native, taken, speedup, speedup,
            unknown, unknown, unknown, unknown,
        )  # fmt: skip


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
    d2lfast.backends.conv2d.autotune = True
    rates = measured_rates()
    header = {**machine(), **{name: f"{rate:.4g}" for name, rate in asdict(rates).items()}}
    work = [(name, partial(network_rows, name)) for name in LAUNCH_BOUND]
    for case in cases():
        for dtype in (torch.float32, torch.bfloat16):
            work.append((f"{case.name}, {dtype}", partial(rows_of, case, dtype, rates=rates)))
    rows: list[GpuRow] = []
    failures, skipped = [], 0
    print(
        f"{'case':44} {'pass':16} {'layout':13} {'dtype':8} {'ours ms':>9} {'x same':>6} {'x best':>6} floor"
    )
    for name, measure in work:
        if time.monotonic() > deadline:
            skipped += 1
            continue
        try:
            made = list(measure())
        except (RuntimeError, NotImplementedError) as error:
            failures.append(f"{name}: {str(error).partition(chr(10))[0]}")
            continue
        for row in made:
            print(
                f"{row.case:44} {row.what:16} {row.layout:13} {row.dtype:8} {row.ours_ms:9.4f} "
                f"{row.speedup_same_layout:6.2f} {row.speedup_best_native:6.2f} {row.share_of_floor:5.0%}",
                flush=True,
            )
        rows += made
        write(options.out, rows, header)  # each time: what ends this early leaves the rest
    for failure in failures:
        print(f"failed: {failure}")
    if skipped:
        print(f"{skipped} cases were not run: the time was over.")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
