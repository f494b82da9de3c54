"""No speed without correctness: our side against native PyTorch in float64, before anything is timed."""

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


def _gradients(outputs: tuple[Tensor, ...], sample: Sample, grads: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, sample.wanted, [g.to(o.dtype) for g, o in zip(grads, outputs)])


def _grad_outputs(case: Case, ours: tuple[Tensor, ...], references: tuple[Tensor, ...]) -> list[Tensor]:
    """Draw gradients that both dtypes hold exactly, zero where rounding decides the side of a ReLU."""
    generator = torch.Generator().manual_seed(1)
    grads = []
    for output, reference in zip(ours, references):
        grad = torch.randn(reference.shape, generator=generator).to(output.dtype).to(torch.float64)
        if case.relu:
            small = tolerance(output.dtype, case.reductions.output) * reference.abs().max()
            for values in (output.detach(), reference.detach()):
                grad[(values > 0) & (values < small)] = 0
        grads.append(grad)
    return grads


@torch.enable_grad()
def check(case: Case, dtype: torch.dtype, layout: Layout) -> list[str]:
    """Compare outputs, gradients and updated buffers of a case with native float64 on the same numbers.

    Returns:
        What is wrong, in sentences; an empty list is a green gate.
    """
    sample = make_sample(case, dtype, layout)
    exact = sample.to(torch.float64)
    buffers = [buffer.clone() for buffer in sample.buffers]
    references = as_tuple(case.native(exact.parameters, exact.buffers)(*exact.inputs))
    try:
        with torch.no_grad():
            plain = as_tuple(sample.function(case.ours)(*sample.inputs))
        ours = as_tuple(case.ours(sample.parameters, buffers)(*sample.inputs))
        for outputs in (plain, ours):
            if [output.shape for output in outputs] != [reference.shape for reference in references]:
                return [f"outputs have shapes {[tuple(output.shape) for output in outputs]}"]
        grads = _grad_outputs(case, ours, references)
        our_gradients = _gradients(ours, sample, grads)
    except Exception as error:
        return [f"raised {type(error).__name__}: {error}"]
    terms = case.reductions
    inputs = sample.inputs if case.input_grad else []
    names = [f"gradient of input {i}" for i in range(len(inputs))]
    names += [f"gradient of parameter {i}" for i in range(len(sample.parameters))]
    lengths = [terms.grad_input] * len(inputs) + [terms.grad_parameter] * len(sample.parameters)
    found = [
        _compare(f"output {i}{how}", output, reference, dtype, tolerance(dtype, terms.output))
        for how, outputs in ((" without autograd", plain), ("", ours))
        for i, (output, reference) in enumerate(zip(outputs, references))
    ]
    found += [
        # Gradients of float32 parameters, too, come from inputs and outputs that were rounded to `dtype`.
        _compare(name, gradient, reference, wanted.dtype, tolerance(dtype, length))
        for name, gradient, reference, wanted, length in zip(
            names, our_gradients, _gradients(references, exact, grads), sample.wanted, lengths
        )
    ]
    found += [
        _compare(f"buffer {i}", buffer, reference, buffer.dtype, tolerance(buffer.dtype, terms.output))
        for i, (buffer, reference) in enumerate(zip(buffers, exact.buffers))
    ]
    return [problem for problem in found if problem]
