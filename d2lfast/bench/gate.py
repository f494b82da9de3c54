"""No speed without correctness: our side against native PyTorch in float64, before anything is timed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2lfast.bench.case import Case, Layout, Sample, as_tuple, make_sample


def tolerance(dtype: torch.dtype, terms: int) -> float:
    """Largest error allowed, relative to the largest value, for sums of `terms` products in `dtype`.

    Rounding of the result, plus the random walk of an accumulation in float32 or better.
    """
    accumulator = torch.promote_types(dtype, torch.float32)
    return 4 * torch.finfo(dtype).eps + 4 * torch.finfo(accumulator).eps * terms**0.5


def _compare(name: str, ours: Tensor, reference: Tensor, dtype: torch.dtype, allowed: float) -> str | None:
    if ours.shape != reference.shape:
        return f"{name} has shape {tuple(ours.shape)} instead of {tuple(reference.shape)}"
    if ours.dtype != dtype:
        return f"{name} has dtype {ours.dtype} instead of {dtype}"
    if not reference.numel():
        return None
    scale = max(reference.abs().max().item(), torch.finfo(torch.float32).tiny)
    error = (ours.to(torch.float64) - reference).abs().max().item() / scale
    # A NaN compares false and is refused.
    return None if error <= allowed else f"{name} is off by {error:.1e} of its maximum, allowed {allowed:.1e}"


@dataclass
class _Run:
    """Our forward pass in one layout, with and without autograd."""

    layout: Layout
    sample: Sample
    buffers: list[Tensor]
    plain: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def _run(case: Case, dtype: torch.dtype, layout: Layout) -> _Run:
    sample = make_sample(case, dtype, layout)
    buffers = [buffer.clone() for buffer in sample.buffers]
    with torch.no_grad():
        plain = as_tuple(sample.function(case.ours)(*sample.inputs))
    return _Run(
        layout, sample, buffers, plain, as_tuple(case.ours(sample.parameters, buffers)(*sample.inputs))
    )


def _gradients(outputs: tuple[Tensor, ...], sample: Sample, grads: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, sample.wanted, [g.to(o.dtype) for g, o in zip(grads, outputs)])


def _grad_outputs(
    case: Case, dtype: torch.dtype, runs: list[_Run], references: tuple[Tensor, ...]
) -> list[Tensor]:
    """Draw gradients that both dtypes hold exactly, zero where rounding decides the side of a ReLU."""
    generator = torch.Generator().manual_seed(1)
    grads = []
    for index, reference in enumerate(references):
        grad = torch.randn(reference.shape, generator=generator).to(dtype).to(torch.float64)
        if case.relu:
            small = tolerance(dtype, case.reductions.output) * reference.detach().abs().max()
            for values in (reference.detach(), *(run.outputs[index].detach() for run in runs)):
                grad[(values > 0) & (values < small)] = 0
        grads.append(grad)
    return grads


def _problems(
    case: Case,
    dtype: torch.dtype,
    run: _Run,
    references: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
    exact: Sample,
    grads: list[Tensor],
) -> list[str]:
    terms = case.reductions
    found = [
        _compare(f"output {i}{how}", output, reference, dtype, tolerance(dtype, terms.output))
        for how, outputs in ((" without autograd", run.plain), ("", run.outputs))
        for i, (output, reference) in enumerate(zip(outputs, references))
    ]
    inputs = len(run.sample.inputs) if case.input_grad else 0
    for i, (ours, reference) in enumerate(zip(_gradients(run.outputs, run.sample, grads), gradients)):
        kind, index = ("input", i) if i < inputs else ("parameter", i - inputs)
        length = terms.grad_input if i < inputs else terms.grad_parameter
        # Gradients of float32 parameters, too, come from inputs and outputs that were rounded to `dtype`.
        allowed = tolerance(dtype, length)
        wanted = run.sample.wanted[i].dtype
        found.append(_compare(f"gradient of {kind} {index}", ours, reference, wanted, allowed))
    for i, (ours, reference) in enumerate(zip(run.buffers, exact.buffers)):
        allowed = tolerance(ours.dtype, terms.output)
        found.append(_compare(f"buffer {i}", ours, reference, ours.dtype, allowed))
    return [problem for problem in found if problem]


@torch.enable_grad()
def check(case: Case, dtype: torch.dtype, layouts: Sequence[Layout] = ()) -> list[str]:
    """Compare outputs, gradients and updated buffers of a case with native float64 on the same numbers.

    Args:
        case: from the registry.
        dtype: in which our side runs.
        layouts: all that the case has, if none is named.

    Returns:
        What is wrong, in sentences; an empty list is a green gate.
    """
    exact = make_sample(case, dtype, Layout.NCHW).to(torch.float64)
    references = as_tuple(case.native(exact.parameters, exact.buffers)(*exact.inputs))
    shapes = [reference.shape for reference in references]
    found = []
    runs = []
    for layout in layouts or case.layouts:
        try:
            run = _run(case, dtype, layout)
        except Exception as error:
            found.append(f"{layout}: raised {type(error).__name__}: {error}")
            continue
        wrong = [o for o in (run.plain, run.outputs) if [output.shape for output in o] != shapes]
        if wrong:
            found.append(f"{layout}: outputs have shapes {[tuple(output.shape) for output in wrong[0]]}")
        else:
            runs.append(run)
    grads = _grad_outputs(case, dtype, runs, references)
    gradients = _gradients(references, exact, grads)
    for run in runs:
        try:
            problems = _problems(case, dtype, run, references, gradients, exact, grads)
        except Exception as error:
            problems = [f"backward raised {type(error).__name__}: {error}"]
        found += [f"{run.layout}: {problem}" for problem in problems]
    return found
