"""Pooling: the memory-bound sizes, LeNet's, GoogLeNet's, and adaptive windows."""

from math import ceil, floor, prod
from typing import Any

from torch.nn import functional as native_functional

from d2lfast.bench.case import Case, Maker, Reductions, Shape, Work
from d2lfast.nn import functional as our_functional

_BLOCK = (64, 64, 56, 56)


def _maker(functional: Any, operator: str, *arguments: int) -> Maker:
    # The attribute is looked up when the side is built: functions fall through to torch.nn.functional.
    def make(parameters, buffers):
        pool = getattr(functional, operator)
        return lambda x: pool(x, *arguments)

    return make


def _case(
    name: str, operator: str, shape: Shape, outputs: int, taps: int, window: int, arguments: tuple[int, ...]
) -> Case:
    """Build a case from the outputs and the taps (inputs of all windows together, padding included)."""
    inputs = prod(shape)
    maximum = "max" in operator
    # Max pooling keeps the position of the maximum, one byte where the window has at most 256 places.
    position = outputs * (1 if window <= 256 else 4) if maximum else 0
    forward = Work(taps - outputs if maximum else taps, inputs + outputs)
    return Case(
        name=f"pool2d/{name}",
        family="pool2d",
        operator=operator,
        inputs=(shape,),
        native=_maker(native_functional, operator, *arguments),
        ours=_maker(our_functional, operator, *arguments),
        forward=forward,
        both=Work(
            forward.flops + (outputs if maximum else outputs + taps), 2 * (inputs + outputs), 2 * position
        ),
        reductions=Reductions(output=1 if maximum else window, grad_input=window),
    )


def pool2d_case(name: str, kind: str, shape: Shape, kernel: int, stride: int, padding: int = 0) -> Case:
    """A pooling layer with one window size; `kind` is "max" or "avg"."""
    n, c, h, w = shape
    outputs = n * c * prod((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
    window = kernel * kernel
    arguments = (kernel, stride, padding)
    return _case(name, f"{kind}_pool2d", shape, outputs, outputs * window, window, arguments)


def adaptive_case(name: str, kind: str, shape: Shape, size: int) -> Case:
    """A pooling layer with a given output size; windows may overlap. `kind` is "max" or "avg"."""
    n, c, h, w = shape

    def windows(extent: int) -> list[int]:
        return [ceil((i + 1) * extent / size) - floor(i * extent / size) for i in range(size)]

    taps = n * c * sum(windows(h)) * sum(windows(w))
    window = max(windows(h)) * max(windows(w))
    operator = f"adaptive_{kind}_pool2d"
    return _case(name, operator, shape, n * c * size * size, taps, window, (size,))


CASES = [
    pool2d_case(f"{kind}-{kernel}-{stride}-{padding}", kind, _BLOCK, kernel, stride, padding)
    for kind in ("max", "avg")
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1))
] + [
    pool2d_case("avg-lenet-1", "avg", (256, 6, 28, 28), 2, 2),
    pool2d_case("avg-lenet-2", "avg", (256, 16, 10, 10), 2, 2),
    pool2d_case("max-googlenet", "max", (128, 192, 12, 12), 3, 1, 1),
    pool2d_case("max-stem", "max", (16, 64, 112, 112), 3, 2, 1),
    adaptive_case("adaptive-avg-1-resnet", "avg", (16, 512, 7, 7), 1),
    adaptive_case("adaptive-avg-1-block", "avg", _BLOCK, 1),
    adaptive_case("adaptive-avg-7-block", "avg", _BLOCK, 7),
    adaptive_case("adaptive-avg-6-overlapping", "avg", (16, 256, 13, 13), 6),
    adaptive_case("adaptive-max-1-block", "max", _BLOCK, 1),
    adaptive_case("adaptive-max-7-block", "max", _BLOCK, 7),
]
