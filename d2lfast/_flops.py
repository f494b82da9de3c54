"""Floating-point operations of the operators, for `torch.utils.flop_counter.FlopCounterMode`.

As torch counts them: two for each product that is added, of convolutions and matrix products alone.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_ops: Any = torch.ops.d2lfast
Shape = Sequence[int]


def _products(rows: int, weights: Iterable[Shape]) -> int:
    return 2 * rows * sum(prod(weight) for weight in weights)


@register_flop_formula(_ops.conv2d)
def _conv2d(input: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


@register_flop_formula(_ops._conv2d_backward)
def _conv2d_backward(grad: Shape, input: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    output_mask = rest[-1]
    return 2 * prod(grad) * prod(weight[1:]) * sum(output_mask[:2])


@register_flop_formula(_ops._linear)
def _linear(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _products(prod(input[:-1]), [weight])


@register_flop_formula(_ops._linear_backward)
def _linear_backward(grad: Shape, input: Shape, weight: Shape, output_mask: Sequence[bool], **_: Any) -> int:
    return _products(prod(input[:-1]), [weight] * sum(output_mask[:2]))


@register_flop_formula([_ops.rnn_cell, _ops.gru_cell, _ops._gru_cell_forward])
def _cell(input: Shape, hx: Shape, w_ih: Shape, w_hh: Shape, *_: Any, **__: Any) -> int:
    return _products(input[0], [w_ih, w_hh])


@register_flop_formula([_ops.lstm_cell, _ops._lstm_cell_forward])
def _lstm_cell(input: Shape, hx: Shape, cx: Shape, *weights: Any, **_: Any) -> int:
    return _products(input[0], weights[:2])


def _cell_gradients(input: Shape, w_ih: Shape, w_hh: Shape, mask: Sequence[bool], weights: int) -> int:
    """`mask`: of the gradients, input and state first, w_ih and w_hh from `weights` on."""
    wanted = [(w_ih, mask[0]), (w_hh, mask[1]), (w_ih, mask[weights]), (w_hh, mask[weights + 1])]
    return _products(input[0], [weight for weight, wants in wanted if wants])


@register_flop_formula([_ops._rnn_cell_backward, _ops._gru_cell_backward])
def _cell_backward(
    grad: Shape, input: Shape, hx: Shape, w_ih: Shape, w_hh: Shape, *rest: Any, **_: Any
) -> int:
    return _cell_gradients(input, w_ih, w_hh, rest[-1], 2)


@register_flop_formula(_ops._lstm_cell_backward)
def _lstm_cell_backward(
    grad: Any,
    grad_cell: Any,
    input: Shape,
    hx: Shape,
    cx: Shape,
    w_ih: Shape,
    w_hh: Shape,
    *rest: Any,
    **_: Any,
) -> int:
    return _cell_gradients(input, w_ih, w_hh, rest[-1], 3)


def _steps(input: Shape, batch_sizes: Any, weights: Sequence[Shape]) -> tuple[int, bool, list[Shape]]:
    """The rows of a layer's input, whether they are tokens, and its matrices, that of the input first."""
    tokens = len(input) == (1 if batch_sizes is not None else 2)
    return prod(input if tokens else input[:-1]), tokens, [w for w in weights if len(w) == 2]


@register_flop_formula([_ops._recurrent_layer, _ops._recurrent_layer_forward])
def _layer(
    input: Shape, batch_sizes: Any, hx: Shape, cx: Any, weights: Sequence[Shape], *_: Any, **__: Any
) -> int:
    rows, tokens, matrices = _steps(input, batch_sizes, weights)
    # Tokens take rows of the first.
    return _products(rows, matrices[tokens:])


@register_flop_formula(_ops._recurrent_layer_backward)
def _layer_backward(
    grad: Any,
    grad_h: Any,
    grad_c: Any,
    input: Shape,
    batch_sizes: Any,
    hx: Shape,
    cx: Any,
    weights: Sequence[Shape],
    *rest: Any,
    **_: Any,
) -> int:
    wants_input, wants_state, _, wants_weights = rest[-1]
    rows, tokens, matrices = _steps(input, batch_sizes, weights)
    w_ih, w_hh, *projection = matrices
    of_weights = matrices[tokens:] if wants_weights else []
    of_input = [w_ih] if wants_input and not tokens else []
    # Of the state before the first step only where it is wanted.
    of_states = _products(rows if wants_state else rows - hx[-2], [w_hh])
    return of_states + _products(rows, [*of_weights, *of_input, *projection])
