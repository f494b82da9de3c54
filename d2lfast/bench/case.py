"""What a benchmark case is: tensors, the two sides that are compared, and the work they cannot avoid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import d2lfast

Function = Callable[..., Tensor | tuple[Tensor, ...]]
# (parameters, buffers) -> function of the inputs.
Maker = Callable[[Sequence[torch.nn.Parameter], Sequence[Tensor]], Function]
Shape = tuple[int, ...]

# What native runs for an epilogue that is fused on our side.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "sigmoid": functional.sigmoid,
    "tanh": functional.tanh,
}


class Layout(StrEnum):
    """Memory layout of four-dimensional inputs and weights; other tensors are contiguous."""

    NCHW = "NCHW"
    CHANNELS_LAST = "channels_last"

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as torch names it."""
        return torch.contiguous_format if self is Layout.NCHW else torch.channels_last


class Pass(StrEnum):
    """What is timed: forward alone runs without autograd, as in inference."""

    FORWARD = "forward"
    BOTH = "forward+backward"


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic that a pass cannot avoid.

    Attributes:
        flops: additions, multiplications and comparisons; a multiply-add counts twice, padding counts too.
        values: numbers of the case's dtype that are read or written, each tensor once.
        extra_bytes: traffic of other types, such as window positions.
    """

    flops: int
    values: int
    extra_bytes: int = 0

    def bytes(self, dtype: torch.dtype) -> int:
        """Least traffic in bytes when the case runs in `dtype`."""
        return self.values * dtype.itemsize + self.extra_bytes


@dataclass(frozen=True)
class Reductions:
    """How many terms are added for one value of each kind; the gate's tolerance grows with it."""

    output: int = 1
    grad_input: int = 1
    grad_parameter: int = 1


@dataclass(frozen=True)
class Case:
    """One row of the registry.

    Attributes:
        name: "<family>/<what>", unique.
        family: "conv2d", "pool2d", "batch_norm", "recurrent" or "loss".
        operator: name in `torch.ops.d2lfast` that `ours` ends in.
        inputs, parameters, buffers: shapes; see `make_sample` for their values.
        native, ours: build the two sides, which run on the same tensors.
        forward, both: work of the forward pass, and of forward and backward together.
        reductions: lengths of the sums, for the tolerance of the gate.
        input_grad: False for the first layer of a network.
        relu: the output goes through a ReLU, whose gradient jumps at zero.
        parameter_scale: standard deviation of the parameters.
        float32_parameters: parameters and buffers stay float32 beside 16-bit inputs.
        convolution: weight shape and keyword arguments that name the algorithm, for convolutions.
        sequences: shapes of the input [T,N,I] and of w_hh that name the algorithm, for recurrent layers.
    """

    name: str
    family: str
    operator: str
    inputs: tuple[Shape, ...]
    native: Maker
    ours: Maker
    forward: Work
    both: Work
    parameters: tuple[Shape, ...] = ()
    buffers: tuple[Shape, ...] = ()
    reductions: Reductions = field(default_factory=Reductions)
    input_grad: bool = True
    relu: bool = False
    parameter_scale: float = 1.0
    float32_parameters: bool = False
    convolution: dict[str, int] | None = None
    sequences: tuple[Shape, Shape] | None = None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts that differ for this case."""
        images = any(len(shape) == 4 for shape in self.inputs)
        return (Layout.NCHW, Layout.CHANNELS_LAST) if images else (Layout.NCHW,)

    @property
    def shapes(self) -> str:
        """Shapes of inputs and parameters, for people."""
        text = " ".join("x".join(map(str, shape)) for shape in self.inputs)
        weights = " ".join("x".join(map(str, shape)) for shape in self.parameters)
        return f"{text} | {weights}" if weights else text

    def work(self, what: Pass) -> Work:
        """The unavoidable work of a pass."""
        return self.forward if what is Pass.FORWARD else self.both

    def algorithm(self, what: Pass, layout: Layout, dtype: torch.dtype, device: str = "cpu") -> str:
        """What runs on our side: an algorithm for each pass, or "native" while there is no operator."""
        if not hasattr(torch.ops.d2lfast, self.operator):
            return "native"
        if d2lfast.explain is None:
            return "-"
        if self.sequences is not None:
            names = d2lfast.explain(self.operator, *self.sequences, dtype=dtype, device=device)
        elif self.convolution is None:
            names = d2lfast.explain(self.operator, *self.inputs)
        else:
            settings: dict[str, Any] = dict(self.convolution)
            names = d2lfast.explain(
                self.operator, self.inputs[0], self.parameters[0], dtype=dtype,
                channels_last=layout is Layout.CHANNELS_LAST, device=device, **settings,
            )  # fmt: skip
        if what is Pass.FORWARD:
            return names["forward"]
        if self.sequences is not None:
            return names["backward"]
        passes = [name for key, name in names.items() if self.input_grad or key != "grad_input"]
        return passes[0] if len(set(passes)) == 1 else "/".join(passes)


@dataclass
class Sample:
    """Tensors of a case in one layout and dtype."""

    inputs: list[Tensor]
    parameters: list[torch.nn.Parameter]
    buffers: list[Tensor]
    input_grad: bool

    @property
    def wanted(self) -> list[Tensor]:
        """The tensors that gradients are taken for."""
        return [*(self.inputs if self.input_grad else ()), *self.parameters]

    def function(self, maker: Maker) -> Function:
        """One side of the case on these tensors, with buffers of its own."""
        return maker(self.parameters, [buffer.clone() for buffer in self.buffers])

    def to(self, dtype: torch.dtype, layout: Layout = Layout.NCHW) -> "Sample":
        """The same numbers in another dtype; all tensors, whatever their dtype was."""

        def move(tensor: Tensor) -> Tensor:
            memory_format = layout.memory_format if tensor.dim() == 4 else torch.contiguous_format
            return tensor.detach().to(dtype, copy=True).contiguous(memory_format=memory_format)

        return Sample(
            [move(tensor).requires_grad_(self.input_grad) for tensor in self.inputs],
            [torch.nn.Parameter(move(tensor)) for tensor in self.parameters],
            [move(tensor) for tensor in self.buffers],
            self.input_grad,
        )


def make_sample(case: Case, dtype: torch.dtype, layout: Layout, seed: int = 0) -> Sample:
    """Draw a case's tensors: unit-normal inputs, normal parameters, buffers uniform in [0.5, 1.5).

    The same seed gives the same numbers in every layout.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = case.float32_parameters and dtype.itemsize < 4
    parameter_dtype = torch.float32 if keep else dtype

    def draw(shape: Shape, scale: float, dtype: torch.dtype) -> Tensor:
        values = (torch.randn(shape, generator=generator) * scale).to(dtype)
        return values.contiguous(memory_format=layout.memory_format) if len(shape) == 4 else values

    return Sample(
        [draw(shape, 1.0, dtype).requires_grad_(case.input_grad) for shape in case.inputs],
        [torch.nn.Parameter(draw(shape, case.parameter_scale, parameter_dtype)) for shape in case.parameters],
        [(torch.rand(shape, generator=generator) + 0.5).to(parameter_dtype) for shape in case.buffers],
        case.input_grad,
    )


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a function as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
