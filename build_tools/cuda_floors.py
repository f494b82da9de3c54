"""Write the computed tables of CUDA: kernels, floors of the benchmark's cases and of the book's layers.

A floor is the time that an H200 needs for the bytes that a pass must move at the measured copy rate, or for
its operations at the rate of bfloat16 products, whichever is longer. The kernels' registers are those that
ptxas printed in the last `make cuda-compile`. Prints the tables; `--write` puts the floors into
docs/cuda-floors.md.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cuda-floors.md"
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "build_tools"))

import cuda_compile  # noqa: E402
from cuda_toolkit import find_toolkit  # noqa: E402

import d2lfast  # noqa: E402
from d2lfast.bench.case import Case, Pass  # noqa: E402
from d2lfast.bench.cases_batch_norm import batch_norm_case  # noqa: E402
from d2lfast.bench.cases_book import Convolution, convolutions  # noqa: E402
from d2lfast.bench.cases_conv2d import conv2d_case  # noqa: E402
from d2lfast.bench.cases_pool2d import adaptive_case, pool2d_case  # noqa: E402
from d2lfast.bench.gpu import H200  # noqa: E402
from d2lfast.bench.registry import cases  # noqa: E402
from d2lfast.models.registry import NETWORKS  # noqa: E402

CROSS_ENTROPY_BLOCK = 2048  # classes from which on a block takes a row
# Forward / backward.
BATCH_NORM = "reduce, finish_moments, normalize / reduce, finish_gradient_sums, gradient"


def kernels_of(case: Case) -> str:
    """What runs a case on CUDA: of a convolution the table's algorithm, by passes where they differ."""
    if case.convolution is not None:
        names = d2lfast.explain(
            "conv2d", case.inputs[0], case.parameters[0], dtype=torch.bfloat16, device="cuda",
            **case.convolution,
        )  # fmt: skip
        passes = [name for key, name in names.items() if case.input_grad or key != "grad_input"]
        return passes[0] if len(set(passes)) == 1 else "/".join(passes)
    if case.family == "batch_norm":
        return BATCH_NORM
    if case.family == "pool2d":
        name = case.operator.replace("adaptive_avg", "average").replace("avg", "average")
        return f"{name} / {name}_backward"
    if case.family == "loss":
        lanes = case.inputs[0][1] < CROSS_ENTROPY_BLOCK
        return f"cross_entropy_{'lanes' if lanes else 'blocks'}, cross_entropy_sum / cross_entropy_gradient"
    kind, _, unit = case.operator.partition("_")
    if unit == "cell":
        return f"{kind}_forward / {kind}_backward"
    name = "recurrent_cluster_tensor_core" if case.sequences[1][1] <= 256 else "recurrent_grid"
    return f"{name} / {name}_backward"


def floor_rows(named: Iterable[tuple[str, Case]]) -> Iterator[str]:
    """Name, kernels, Mflop, megabytes, microseconds and bound in bfloat16: forward / with backward."""
    for name, case in named:
        works = [case.work(what) for what in Pass]
        moved = [work.bytes(torch.bfloat16) for work in works]
        times = [(size / H200.copied, work.flops / H200.products) for size, work in zip(moved, works)]

        def pair(values):
            return " / ".join(f"{value:.3g}" for value in values)

        bound = " / ".join("memory" if memory > math else "arithmetic" for memory, math in times)
        numbers = [
            pair(work.flops / 1e6 for work in works),
            pair(size / 1e6 for size in moved),
            pair(1e6 * max(both) for both in times),
        ]
        yield f"| {name} | {kernels_of(case)} | {' | '.join(numbers)} | {bound} |"


def floors(named: Iterable[tuple[str, Case]]) -> str:
    """A table of floors."""
    head = "| case | kernels | Mflop | MB | floor us | bound by |"
    return "\n".join([head, "| --- | --- | ---: | ---: | ---: | --- |", *floor_rows(named)])


def book_layers(name: str) -> dict[str, Case]:
    """The convolutions, poolings and batch norms of a network at the book's batch, each shape once."""
    network = NETWORKS[name]
    with torch.device("meta"):
        model = network.build(layers=nn, **network.sizes_for(network.shape))
        image = torch.empty(1, *network.shape)
    batch = network.batch_size
    found: dict[str, Case] = {}

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        shape = (batch, *args[0].shape[1:])
        size = "x".join(map(str, shape[1:]))
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            kind = "max" if isinstance(module, nn.MaxPool2d) else "avg"
            settings = (module.kernel_size, module.stride, module.padding)
            window = [value if isinstance(value, int) else value[0] for value in settings]
            label = f"{kind} pool {size}, {'-'.join(map(str, window))}"
            found[label] = pool2d_case(label, kind, shape, *window)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            label = f"mean {size}"
            found[label] = adaptive_case(label, "avg", shape, 1)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            found[f"batch norm {size}"] = batch_norm_case(shape, True)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    layers: list[Convolution] = convolutions(model, image)
    for hook in hooks:
        hook.remove()
    of_layers = {
        f"conv {each.label}": conv2d_case(
            each.label, (batch, *each.shape), each.weight[0], each.weight[2], each.stride, each.padding,
            each.groups, each.bias, not each.first, each.activation,
        )
        for each in layers
    }  # fmt: skip
    return of_layers | found


def book() -> Iterator[tuple[str, Case]]:
    """The layers of every network with images, under the first network that has them."""
    known = set()
    for name, network in NETWORKS.items():
        if len(network.shape) != 3:
            continue
        for label, case in book_layers(name).items():
            key = (label, network.batch_size)
            if key not in known:
                known.add(key)
                yield f"{name}, {network.batch_size}: {label}", case


def kernels() -> str:
    """Kernels by their names without template arguments: variants, registers, shared memory, spills."""
    toolkit = find_toolkit()
    assert toolkit is not None
    rows: dict[tuple[str, str], list[cuda_compile.Kernel]] = {}
    for unit in cuda_compile.kernel_units(toolkit):
        arch = "sm_90a" if cuda_compile.has_warpgroups(unit.source) else "sm_90"
        log = json.loads(unit.target.with_suffix(".json").read_text())["log"]
        found = [kernel for kernel in cuda_compile.parse_ptxas(log) if kernel.arch == arch]
        names = cuda_compile.demangle([kernel.name for kernel in found], toolkit)
        for kernel, name in zip(found, names):
            short = re.sub(r"<.*", "", cuda_compile.shorten(name))
            rows.setdefault((unit.source.stem, short), []).append(kernel)
    lines = ["| file | kernel | variants | registers | static shared bytes | spilled bytes |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for (file, name), variants in rows.items():

        def span(values):
            return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

        fields = [span([getattr(v, field) for v in variants]) for field in ("registers", "shared", "spill")]
        lines.append(f"| {file} | {name} | {len(variants)} | {' | '.join(fields)} |")
    return "\n".join(lines)


def page() -> str:
    """docs/cuda-floors.md without the table of kernels, which needs nvcc."""
    return f"""# CUDA: computed floors of the book's layers

Written by `python build_tools/cuda_floors.py --write`; nothing here is measured. The time that an H200 needs
for the bytes that a pass has to move at 4.3 TB/s, or for its operations at 790 TFLOP/s, whichever is longer:
bfloat16, the book's batch (after the network's name), forward / forward and backward. `kernels`: of a
convolution the algorithm that the table takes, by passes where they differ, of which `direct` is the kernels
`depthwise_*`, in 16 bits `tile_products` and `weight_products`, elsewhere `direct_tiles` and `direct_weight`;
dense layers that are `aten` have `implicit_gemm` by name, and 3x3 ones in float32 `winograd`. Registers,
shared memory and spills of each kernel, and the recurrent layers, are in
[performance.md](performance.md#cuda-computed-floors).

{floors(book())}

## Cases of the benchmark

{floors((case.name, case) for case in cases())}
"""


def main() -> None:
    """Print the tables, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="docs/cuda-floors.md")
    parser.add_argument("--check", action="store_true", help="whether it is what would be written")
    options = parser.parse_args()
    if options.check:
        current = PAGE.read_text() == page()
        raise SystemExit(0 if current else f"{PAGE} is out of date: run {sys.argv[0]} --write")
    if options.write:
        PAGE.write_text(page())
    else:
        print(f"{kernels()}\n\n{page()}")


if __name__ == "__main__":
    main()
