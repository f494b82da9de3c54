"""Print the tables of the section on CUDA in docs/performance.md: floors on an H200, and the kernels.

Floors are from the benchmark registry: bytes that a pass must move over the measured copy rate, or operations
over the rate of bfloat16 products, whichever is longer. The kernels are from the last `make cuda-compile`.
"""

import json
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "build_tools"))

import cuda_compile  # noqa: E402
from cuda_toolkit import find_toolkit  # noqa: E402

from d2lfast.bench.case import Pass  # noqa: E402
from d2lfast.bench.gpu import COPY_RATE, PRODUCT_RATE  # noqa: E402
from d2lfast.bench.registry import cases  # noqa: E402


def floors() -> str:
    """Case, Mflop, megabytes and microseconds in bfloat16: forward, then forward with backward."""
    lines = ["| case | Mflop | MB | floor us | bound by |", "| --- | ---: | ---: | ---: | --- |"]
    for case in cases():
        works = [case.work(what) for what in Pass]
        moved = [work.bytes(torch.bfloat16) for work in works]
        times = [(size / COPY_RATE, work.flops / PRODUCT_RATE) for size, work in zip(moved, works)]

        def pair(values):
            return " / ".join(f"{value:.3g}" for value in values)

        bound = " / ".join("memory" if memory > math else "arithmetic" for memory, math in times)
        numbers = [
            pair(work.flops / 1e6 for work in works),
            pair(size / 1e6 for size in moved),
            pair(1e6 * max(both) for both in times),
        ]
        lines.append(f"| {case.name} | {' | '.join(numbers)} | {bound} |")
    return "\n".join(lines)


def kernels(arch: str = "sm_90") -> str:
    """Kernels by their names without template arguments: variants, registers, shared memory, spills."""
    toolkit = find_toolkit()
    assert toolkit is not None
    rows: dict[tuple[str, str], list[cuda_compile.Kernel]] = {}
    for stamp in sorted((ROOT / "build" / "cuda").glob(f"*.{arch}.json")):
        found = cuda_compile.parse_ptxas(json.loads(stamp.read_text())["log"])
        names = cuda_compile.demangle([kernel.name for kernel in found], toolkit)
        for kernel, name in zip(found, names):
            short = re.sub(r"<.*", "", cuda_compile.shorten(name))
            rows.setdefault((stamp.name.split(".")[0], short), []).append(kernel)
    lines = ["| file | kernel | variants | registers | static shared bytes | spilled bytes |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for (file, name), variants in rows.items():

        def span(values):
            return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

        fields = [span([getattr(v, field) for v in variants]) for field in ("registers", "shared", "spill")]
        lines.append(f"| {file} | {name} | {len(variants)} | {' | '.join(fields)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{kernels()}\n\n{floors()}")
