"""Shape functions of the recurrent cells."""

import torch
from torch import Tensor

from d2lfast._fake.devices import check_same_device


def _check(gates: int, input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor) -> None:
    torch._check(input.dim() == 2, lambda: f"Expected input to be 2D, got {input.dim()}D instead")
    torch._check(hx.dim() == 2, lambda: f"Expected hidden to be 2D, got {hx.dim()}D instead")
    torch._check(
        input.shape[1] == w_ih.shape[1],
        lambda: f"input has inconsistent input_size: got {input.shape[1]} expected {w_ih.shape[1]}",
    )
    torch._check(
        input.shape[0] == hx.shape[0],
        lambda: f"Input batch size {input.shape[0]} doesn't match hidden0 batch size {hx.shape[0]}",
    )
    torch._check(
        hx.shape[1] == w_hh.shape[1],
        lambda: f"hidden0 has inconsistent hidden_size: got {hx.shape[1]}, expected {w_hh.shape[1]}",
    )
    rows = gates * w_hh.shape[1]
    torch._check(
        w_ih.shape[0] == rows and w_hh.shape[0] == rows,
        lambda: f"expected weights of {rows} rows, but got {w_ih.shape[0]} and {w_hh.shape[0]}",
    )
    torch._check(
        hx.dtype == w_ih.dtype == w_hh.dtype == input.dtype,
        lambda: f"expected one dtype, but got {input.dtype}, {hx.dtype}, {w_ih.dtype} and {w_hh.dtype}",
    )


def _state(input: Tensor, w_hh: Tensor) -> Tensor:
    return input.new_empty([input.shape[0], w_hh.shape[1]])


def _state_in_order_of(hx: Tensor) -> Tensor:
    """As csrc/ops/recurrent_cell.h: torch's result on the CPU has columns where the state has."""
    rows, columns = hx.shape
    if hx.device.type in ("cpu", "meta") and rows > 1 and 0 < hx.stride(0) < hx.stride(1):
        return hx.new_empty([columns, rows]).t()
    return hx.new_empty([rows, columns])


@torch.library.register_fake("d2lfast::rnn_cell")
def _rnn_cell(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity):
    check_same_device(input, hx, w_ih, w_hh, b_ih, b_hh)
    _check(1, input, hx, w_ih, w_hh)
    return _state(input, w_hh)


@torch.library.register_fake("d2lfast::gru_cell")
def _gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh):
    check_same_device(input, hx, w_ih, w_hh, b_ih, b_hh)
    _check(3, input, hx, w_ih, w_hh)
    return _state_in_order_of(hx)


@torch.library.register_fake("d2lfast::lstm_cell")
def _lstm_cell(input, hx, cx, w_ih, w_hh, b_ih, b_hh):
    check_same_device(input, hx, cx, w_ih, w_hh, b_ih, b_hh)
    _check(4, input, hx, w_ih, w_hh)
    _check(4, input, cx, w_ih, w_hh)
    return _state(input, w_hh), _state(input, w_hh)


@torch.library.register_fake("d2lfast::_gru_cell_forward")
def _gru_cell_forward(input, hx, w_ih, w_hh, b_ih, b_hh):
    _check(3, input, hx, w_ih, w_hh)
    gates = input.new_empty([input.shape[0], w_hh.shape[0]])
    return _state_in_order_of(hx), gates, _state(input, w_hh)


@torch.library.register_fake("d2lfast::_lstm_cell_forward")
def _lstm_cell_forward(input, hx, cx, w_ih, w_hh, b_ih, b_hh):
    _check(4, input, hx, w_ih, w_hh)
    _check(4, input, cx, w_ih, w_hh)
    return _state(input, w_hh), _state(input, w_hh), input.new_empty([input.shape[0], w_hh.shape[0]])


def _gradients(output_mask, input, states, w_ih, w_hh):
    bias = [w_hh.shape[0]]
    shapes = [input.shape, *(state.shape for state in states), w_ih.shape, w_hh.shape, bias, bias]
    return tuple(input.new_empty(shape if wanted else [0]) for shape, wanted in zip(shapes, output_mask))


@torch.library.register_fake("d2lfast::_rnn_cell_backward")
def _rnn_cell_backward(grad_output, input, hx, w_ih, w_hh, output, nonlinearity, output_mask):
    return _gradients(output_mask, input, [hx], w_ih, w_hh)


@torch.library.register_fake("d2lfast::_gru_cell_backward")
def _gru_cell_backward(grad_output, input, hx, w_ih, w_hh, gates, candidate, output_mask):
    return _gradients(output_mask, input, [hx], w_ih, w_hh)


@torch.library.register_fake("d2lfast::_lstm_cell_backward")
def _lstm_cell_backward(grad_output, grad_cell, input, hx, cx, w_ih, w_hh, gates, cell, output_mask):
    return _gradients(output_mask, input, [hx, cx], w_ih, w_hh)
