"""Recurrent cells; whole sequences are in `recurrent_layers`."""

import torch
from torch import Tensor

from d2lfast._support import supported
from d2lfast._symbolic import Proxy, record_layer

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_rnn_cell = torch.ops.d2lfast.rnn_cell.default
_gru_cell = torch.ops.d2lfast.gru_cell.default
_lstm_cell = torch.ops.d2lfast.lstm_cell.default


def _check_input(name: str, input: Tensor) -> None:
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")


def _check_hidden(name: str, hx: Tensor, what: str = "hidden") -> None:
    if hx.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {hx.dim()}D instead")


class RNNCell(torch.nn.RNNCell):
    """`torch.nn.RNNCell` on d2lfast's kernels: same constructor, parameters, `state_dict` and errors.

    Shapes: input [N,I] or [I] and hx [N,H] or [H] (zeros if None) to [N,H] or [H]. float32, float64,
    bfloat16 and float16; for other tensors (`d2lfast._support.supported`) `torch.nn.RNNCell` computes.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Same as the forward of `torch.nn.RNNCell`."""
        if not supported(input, "rnn_cell"):
            if isinstance(input, Proxy):
                return record_layer(self, input, hx)
            return super().forward(input, hx)
        _check_input("RNNCell", input)
        if hx is not None:
            _check_hidden("RNNCell", hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
        if hx is None:
            hx = input.new_zeros(input.size(0), self.hidden_size)
        elif not batched:
            hx = hx.unsqueeze(0)
        output = _rnn_cell(
            input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.nonlinearity
        )
        return output if batched else output.squeeze(0)


class GRUCell(torch.nn.GRUCell):
    """`torch.nn.GRUCell` on d2lfast's kernels: same constructor, parameters, `state_dict` and errors.

    Shapes: input [N,I] or [I] and hx [N,H] or [H] (zeros if None) to [N,H] or [H]. float32, float64,
    bfloat16 and float16; for other tensors (`d2lfast._support.supported`) `torch.nn.GRUCell` computes.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Same as the forward of `torch.nn.GRUCell`."""
        if not supported(input, "gru_cell"):
            if isinstance(input, Proxy):
                return record_layer(self, input, hx)
            return super().forward(input, hx)
        _check_input("GRUCell", input)
        if hx is not None:
            _check_hidden("GRUCell", hx)
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
        if hx is None:
            hx = input.new_zeros(input.size(0), self.hidden_size)
        elif not batched:
            hx = hx.unsqueeze(0)
        output = _gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return output if batched else output.squeeze(0)


class LSTMCell(torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` on d2lfast's kernels: same constructor, parameters, `state_dict` and errors.

    Shapes: input [N,I] or [I] and hx = (h, c), each [N,H] or [H] (zeros if None), to (h, c) of the same
    shapes. float32, float64, bfloat16 and float16; for other tensors (`d2lfast._support.supported`), and for
    a cell state of another dtype than the input's outside autocast, `torch.nn.LSTMCell` computes.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Same as the forward of `torch.nn.LSTMCell`."""
        if not supported(input, "lstm_cell") or isinstance(hx, Tensor):
            if isinstance(input, Proxy):
                return record_layer(self, input, hx)
            return super().forward(input, hx)
        _check_input("LSTMCell", input)
        if hx is not None:
            for index, value in enumerate(hx):
                _check_hidden("LSTMCell", value, f"hx[{index}]")
            if hx[1].dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
                return super().forward(input, hx)
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
        if hx is None:
            h = c = input.new_zeros(input.size(0), self.hidden_size)
        elif batched:
            h, c = hx[0], hx[1]
        else:
            h, c = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
        h, c = _lstm_cell(input, h, c, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))
