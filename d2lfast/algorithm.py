"""Choice of the convolution algorithm, and the explanation of every layer's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from d2lfast import _extension
from d2lfast.recurrent_algorithm import recurrent_algorithm

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
        module_or_op: a `Conv2d`, `RNN`, `GRU` or `LSTM`; "conv2d", "rnn_layer", "gru_layer", "lstm_layer" or
            the operator of `torch.ops.d2lfast`; or any other layer or operator.
        shapes: of the input [N,C,H,W] and, for an operator, of the weight [O,C/groups,KH,KW]; of a recurrent
            layer's input [T,N,I] (a module's as it takes it) and, for an operator, of w_hh [G*H,H].
        stride, padding, dilation, groups: of the operator; a module has its own.
        dtype: of the input.
        channels_last: layout of the input.
        device: "cpu" or "cuda".

    Returns:
        `{"forward": ..., "grad_input": ..., "grad_weight": ...}` for convolutions. For recurrent layers
        `{"forward": ..., "backward": ...}` with the names of `d2lfast.recurrent_algorithm`; forward is that
        without gradients. Every other operator has one algorithm of its own, and
        `{"forward": "direct", "backward": "direct"}` says so.

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
    elif isinstance(module_or_op, torch.nn.RNNBase) or any(
        f"{name}_layer" in str(module_or_op) for name in ("rnn", "gru", "lstm")
    ):
        return _explain_recurrent(module_or_op, shapes, dtype, device)
    else:
        return {"forward": "direct", "backward": "direct"}

    def pair(value: int | Sequence[int]) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    # What was measured belongs to a model of GPU; the table holds for all of them.
    current_model: Any = getattr(torch.ops.d2lfast, "_cuda_model", None)
    measured = device == "cuda" and current_model is not None and _extension.load().tuning_enabled()
    model = current_model() if measured else int(device == "cuda")
    cudnn: Any = torch.backends.cudnn
    tf32 = device == "cuda" and cudnn.conv.fp32_precision == "tf32"
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
        model,
        tf32 and dtype == torch.float32,
    )
    return dict(zip(("forward", "grad_input", "grad_weight"), names))


def _explain_recurrent(
    module_or_op: Any, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: str
) -> dict[str, str]:
    if isinstance(module_or_op, torch.nn.RNNBase):
        layer = module_or_op
        if len(shapes) < 1:
            raise ValueError("explain needs the shape of the input")
        # Tokens lack the last axis, single sequences the batch's.
        axis = 0 if layer.batch_first else 1
        shape = shapes[0]
        batch = shape[axis] if len(shape) == 3 or (len(shape) == 2 and shape[1] != layer.input_size) else 1
        kind, inputs, hidden, projection = layer.mode, layer.input_size, layer.hidden_size, layer.proj_size
        directions = 2 if layer.bidirectional else 1
        weight: Any = layer.weight_hh_l0
        dtype, device = weight.dtype, weight.device.type
    else:
        if len(shapes) < 2:
            raise ValueError("explain needs the shapes of the input and of the recurrent weight")
        (_, batch, inputs), (rows, state) = shapes[0], shapes[1]
        kind = next(name for name in ("rnn", "gru", "lstm") if f"{name}_layer" in str(module_or_op))
        hidden = rows // {"rnn": 1, "gru": 3, "lstm": 4}[kind]
        projection, directions = (0 if state == hidden else state), 1
    mode = {"rnn_tanh": "tanh", "rnn_relu": "relu", "rnn": "tanh"}.get(kind.lower(), kind.lower())
    forward, backward = (
        recurrent_algorithm(
            mode, batch, inputs, hidden, projection=projection, directions=directions, dtype=dtype,
            device=device, training=training,
        )
        for training in (False, True)
    )  # fmt: skip
    return {"forward": forward, "backward": backward}
