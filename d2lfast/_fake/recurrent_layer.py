"""Shape functions of the recurrent layers over whole sequences."""

import torch
from torch import Tensor

from d2lfast._fake.devices import check_same_device

_GATES = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}


def _check(input, batch_sizes, hx, cx, weights, mode, bias, projected):
    check_same_device(input, hx, cx, *weights)
    each = 2 + 2 * bias + projected
    torch._check(len(weights) in (each, 2 * each), lambda: f"expected {each} weights a direction")
    tokens = input.dtype == torch.int64
    dims = (3 if batch_sizes is None else 2) - tokens
    torch._check(input.dim() == dims, lambda: f"input must have {dims} dimensions, got {input.dim()}")
    w_ih, w_hh = weights[:2]
    torch._check(
        tokens or input.shape[-1] == w_ih.shape[1],
        lambda: (
            f"input.size(-1) must be equal to input_size. Expected {w_ih.shape[1]}, got {input.shape[-1]}"
        ),
    )
    torch._check(
        w_ih.shape[0] == w_hh.shape[0], lambda: "expected input and recurrent weights of as many rows"
    )
    torch._check(
        hx.dim() == 3 and hx.shape[0] == len(weights) // each and hx.shape[2] == w_hh.shape[1],
        lambda: f"Expected hidden of size [{len(weights) // each}, N, {w_hh.shape[1]}], got {list(hx.shape)}",
    )
    if batch_sizes is None:
        torch._check(
            input.shape[1] == hx.shape[1],
            lambda: f"Expected hidden batch size {input.shape[1]}, got {hx.shape[1]}",
        )
    torch._check(
        all(x.dtype == hx.dtype for x in weights) and (tokens or input.dtype == hx.dtype),
        lambda: "expected tensors of one dtype",
    )


def _shapes(input, hx, cx, weights, mode, bias, projected):
    directions = hx.shape[0]
    hidden = weights[1].shape[0] // _GATES[mode]
    axes = input.shape if input.dtype == torch.int64 else input.shape[:-1]
    output = hx.new_empty([*axes, directions * hx.shape[2]])
    c_n = hx.new_empty([directions, hx.shape[1], hidden] if mode == "lstm" else [0])
    return output, hx.new_empty(hx.shape), c_n, hidden


@torch.library.register_fake("d2lfast::_recurrent_layer")
def _recurrent_layer(
    input: Tensor, batch_sizes, hx, cx, weights, mode, bias, projected, reverse
) -> tuple[Tensor, Tensor, Tensor]:
    _check(input, batch_sizes, hx, cx, weights, mode, bias, projected)
    output, h_n, c_n, _ = _shapes(input, hx, cx, weights, mode, bias, projected)
    return output, h_n, c_n


@torch.library.register_fake("d2lfast::_recurrent_layer_forward")
def _recurrent_layer_forward(
    input: Tensor, batch_sizes, hx, cx, weights, mode, bias, projected, reverse, save
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(input, batch_sizes, hx, cx, weights, mode, bias, projected)
    output, h_n, c_n, hidden = _shapes(input, hx, cx, weights, mode, bias, projected)
    rows = output.shape[0] if batch_sizes is not None else output.shape[0] * output.shape[1]
    width = 0 if _GATES[mode] == 1 else 4 * hidden
    saved = hx.new_empty([hx.shape[0], rows, width] if save else [0])
    cells = hx.new_empty([hx.shape[0], rows, hidden] if save and mode == "lstm" else [0])
    return output, h_n, c_n, saved, cells


@torch.library.register_fake("d2lfast::_recurrent_layer_backward")
def _recurrent_layer_backward(
    grad_output, grad_h, grad_c, input, batch_sizes, hx, cx, weights, output, saved, cells,
    mode, bias, projected, reverse, output_mask,
):  # fmt: skip
    wanted = output_mask[0] and input.dtype != torch.int64
    grad_input = hx.new_empty(input.shape if wanted else [0])
    grad_cx = hx.new_empty(cx.shape if mode == "lstm" else [0])
    gradients = [hx.new_empty(weight.shape) for weight in weights] if output_mask[3] else []
    return grad_input, hx.new_empty(hx.shape), grad_cx, gradients
