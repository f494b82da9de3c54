"""Choice of the convolution algorithm: the override and its explanation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from d2lfast import _extension

CONV2D_ALGORITHMS = ("auto", *_extension.load().conv2d_algorithm_names())

_requested: ContextVar[str] = ContextVar("d2lfast_conv2d_algorithm", default="auto")


@contextmanager
def conv2d_algorithm(name: str) -> Iterator[None]:
    """Force one algorithm for the convolutions inside a `with` block, their backward passes included.

    Args:
        name: "auto" (the table of csrc/ops/conv2d_algorithm.cpp, the default), "aten" (torch's own
            convolution; on the CPU oneDNN) or one of this library's, all in `CONV2D_ALGORITHMS`. A pass that
            the named algorithm cannot compute is done by the table's; `explain` says which. Three names as
            "forward/grad_input/grad_weight" force one for each pass.

    Raises:
        ValueError: `name` is no algorithm.
    """
    names = name.split("/")
    if len(names) not in (1, 3) or any(each not in CONV2D_ALGORITHMS for each in names):
        raise ValueError(f"algorithm must be one of {', '.join(CONV2D_ALGORITHMS)}, but got {name!r}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def requested_conv2d_algorithm() -> str:
    """The name that the innermost `conv2d_algorithm` block asks for."""
    # Inside torch.compile the context variable would be a graph break; compiled code takes the table.
    return "auto" if torch.compiler.is_compiling() else _requested.get()


def explain(
    module_or_op: Any,
    *shapes: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    device: str = "cpu",
) -> dict[str, str]:
    """Name the algorithm that would run for each pass of a layer or operator.

    Args:
        module_or_op: a `Conv2d`, or `torch.ops.d2lfast.conv2d` / "conv2d", or any other layer or operator.
        shapes: of the input [N,C,H,W] and, for an operator, of the weight [O,C/groups,KH,KW].
        stride, padding, dilation, groups: of the operator; a module has its own.
        dtype: of the input.
        channels_last: layout of the input.
        device: "cpu" or "cuda".

    Returns:
        `{"forward": ..., "grad_input": ..., "grad_weight": ...}` for convolutions. Every other operator has
        one algorithm of its own, and `{"forward": "direct", "backward": "direct"}` says so.

    Raises:
        ValueError: a shape is missing.
    """
    if isinstance(module_or_op, torch.nn.Conv2d):
        conv = module_or_op
        weight_shape: Sequence[int] = conv.weight.shape
        stride, dilation, groups, dtype = conv.stride, conv.dilation, conv.groups, conv.weight.dtype
        if isinstance(conv.padding, str):
            total = [
                d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size)
            ]
            padding = [t // 2 for t in total]
        else:
            padding = conv.padding if conv.padding_mode == "zeros" else 0
        channels_last = channels_last or (
            conv.weight.is_contiguous(memory_format=torch.channels_last) and (not conv.weight.is_contiguous())
        )
        if len(shapes) < 1:
            raise ValueError("explain needs the shape of the input")
    elif "conv2d" in str(module_or_op):
        if len(shapes) < 2:
            raise ValueError("explain needs the shapes of the input and of the weight")
        weight_shape = shapes[1]
    else:
        return {"forward": "direct", "backward": "direct"}

    def pair(value: int | Sequence[int]) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    shape = tuple(shapes[0]) if len(shapes[0]) == 4 else (1, *shapes[0])
    names = _extension.load().conv2d_algorithms(
        shape,
        tuple(weight_shape),
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        str(dtype).removeprefix("torch."),
        channels_last,
        _requested.get(),
        device == "cuda",
    )
    return dict(zip(("forward", "grad_input", "grad_weight"), names))
