"""The cases of `d2lfast bench kernels` under pytest-benchmark; see benchmarks/README.md."""

from types import MappingProxyType

import pytest
import torch

from d2lfast.bench import registry
from d2lfast.bench.case import Layout, Pass, make_sample
from d2lfast.bench.gate import check
from d2lfast.bench.runner import call_for, grads_for

CASES = MappingProxyType({case.name: case for case in registry.cases()})


@pytest.fixture(scope="module")
def gate():
    verdicts = {}

    def require(case, layout):
        key = case.name, layout
        if key not in verdicts:
            verdicts[key] = check(case, torch.float32, [layout])
        if verdicts[key]:
            pytest.fail("; ".join(verdicts[key]))

    return require


@pytest.mark.parametrize("side", ["native", "ours"])
@pytest.mark.parametrize("what", list(Pass), ids=str)
@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name, case in CASES.items() for layout in case.layouts],
    ids=lambda value: str(value),
)
def test_kernel(benchmark, gate, name, layout: Layout, what, side):
    case = CASES[name]
    gate(case, layout)
    sample = make_sample(case, torch.float32, layout)
    function = sample.function(case.native if side == "native" else case.ours)
    benchmark.group = f"{name} {layout} {what}"
    benchmark.extra_info.update(
        case=name,
        side=side,
        algorithm=case.algorithm(what, layout, torch.float32) if side == "ours" else "native",
        flops=case.work(what).flops,
        bytes=case.work(what).bytes(torch.float32),
        threads=torch.get_num_threads(),
    )
    with torch.set_grad_enabled(what is Pass.BOTH):
        benchmark(call_for(function, sample, what, grads_for(case, sample)))
