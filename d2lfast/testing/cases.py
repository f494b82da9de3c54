"""One call of an operator, as data."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from d2lfast.testing.layouts import in_layout
from d2lfast.testing.operators import OPERATORS, Tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        operator: key of `OPERATORS`.
        shapes: shape of each tensor argument; None or absent: the argument is None.
        options: the other arguments.
        dtype: of the tensors, unless `dtypes` names another one.
        layouts: layout of each argument, and of the output gradients under "grad_output".
        differentiable: arguments that require a gradient; None: all that can.
        used: outputs that the gradient flows back from; None: all.
        values: "normal", "ties" for small integers, or "trained": normal, but weights such that the errors of
            a recurrent layer do not grow from step to step.
        seed: of the values.
    """

    operator: str
    shapes: Mapping[str, Sequence[int] | None]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    dtypes: Mapping[str, torch.dtype] = dataclasses.field(default_factory=dict)
    layouts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    differentiable: tuple[str, ...] | None = None
    used: tuple[int, ...] | None = None
    values: str = "normal"
    seed: int = 0

    def replace(self, **changes: Any) -> "Case":
        """This case with other attributes."""
        return dataclasses.replace(self, **changes)

    def gradients(self) -> tuple[str, ...]:
        """The arguments that require a gradient."""
        known = OPERATORS[self.operator].differentiable
        wanted = known if self.differentiable is None else self.differentiable
        return tuple(name for name in known if name in wanted and self.shapes.get(name) is not None)


@dataclasses.dataclass
class Result:
    """Outputs of an operator, and the gradients of its arguments."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def _values(shape: Sequence[int], values: str, generator: torch.Generator) -> Tensor:
    if values == "ties":
        return torch.randint(-2, 3, tuple(shape), generator=generator, device="cpu").double()
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")


# Where the tests' tensors are, unless a call says otherwise (`make gpu-check` sets "cuda").
DEVICE = os.environ.get("D2LFAST_TEST_DEVICE", "cpu")


def inputs_of(case: Case, device: str = DEVICE) -> Tensors:
    """The tensor arguments of a case: the same values at each call, in fresh memory."""
    generator = torch.Generator().manual_seed(case.seed)
    tensors: Tensors = {}
    for name in OPERATORS[case.operator].tensors:
        shape = case.shapes.get(name)
        if shape is None:
            tensors[name] = None
            continue
        value = _values(shape, case.values, generator)
        if name == "running_var":
            value = value.abs() + 0.5
        if case.values == "trained" and name.startswith("w_"):
            value *= shape[1] ** -0.5
        value = value.to(device, case.dtypes.get(name, case.dtype))
        tensors[name] = in_layout(value, case.layouts.get(name, "contiguous"))
    return tensors


def _exactly(tensor: Tensor | None) -> Tensor | None:
    """The same values in float64, contiguous."""
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.double().contiguous()


def run(case: Case, function: Callable, inputs: Tensors, exact: bool = False) -> Result:
    """Calls `function(tensors, options)` and differentiates its outputs.

    `exact` computes in float64, from the same values as in the dtype of the case.
    """
    names = case.gradients()
    leaves: Tensors = {}
    for name, value in inputs.items():
        tensor = _exactly(value) if exact else value
        leaves[name] = tensor if tensor is None else tensor.detach().requires_grad_(name in names)
    outputs = function(leaves, dict(case.options))
    generator = torch.Generator().manual_seed(case.seed + 1)
    used, grads = [], []
    for i, output in enumerate(outputs):
        if not output.is_floating_point():
            continue
        values = _values(output.shape, "normal", generator)
        if output.requires_grad and (case.used is None or i in case.used):
            # Rounded to the dtype of the case also where the computation is exact.
            values = values.to(output.device, case.dtype).to(output.dtype)
            grads.append(in_layout(values, case.layouts.get("grad_output", "contiguous")))
            used.append(output)
    gradients: dict[str, Tensor] = {}
    if used and names:
        found = torch.autograd.grad(used, [leaves[name] for name in names], grads, allow_unused=True)
        gradients = {name: grad for name, grad in zip(names, found) if grad is not None}
    return Result(tuple(output.detach() for output in outputs), gradients)
