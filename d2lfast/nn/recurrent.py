"""Recurrent cells and the sequence layers that are loops over them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from d2lfast._support import supported

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

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
        if not supported(input, "lstm_cell"):
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


def _rnn_step(
    module: Any, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Any]
) -> tuple[Tensor, ...]:
    return (_rnn_cell(x, state[0], *weights, module.nonlinearity),)


def _gru_step(
    module: Any, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Any]
) -> tuple[Tensor, ...]:
    return (_gru_cell(x, state[0], *weights),)


def _lstm_step(
    module: Any, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Any]
) -> tuple[Tensor, ...]:
    return _lstm_cell(x, state[0], state[1], *weights)


def _one_direction(
    module: Any,
    step: Any,
    steps: Sequence[Tensor],
    state: tuple[Tensor, ...],
    weights: Sequence[Any],
    reverse: bool,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Outputs and final state of one layer in one direction over `steps`, of [N_t,I] each.

    N_t may shrink from step to step (a PackedSequence): sequences that end leave the batch from behind, and
    in the reverse direction join it there with their initial state.
    """
    outputs: list[Tensor] = []
    initial, ended = state, []
    batch = steps[-1].size(0) if reverse else steps[0].size(0)
    if reverse:
        state = tuple(s[:batch] for s in initial)
    for x in reversed(steps) if reverse else steps:
        size = x.size(0)
        if size < batch:
            ended.append(tuple(s[size:] for s in state))
            state = tuple(s[:size] for s in state)
        elif size > batch:
            state = tuple(torch.cat([s, first[batch:size]]) for s, first in zip(state, initial, strict=True))
        batch = size
        state = step(module, x, state, weights)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return outputs[::-1] if reverse else outputs, state


def _layers(
    module: Any, step: Any, input: Tensor, batch_sizes: Tensor | None, states: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All layers over `input`, [T,N,I] or with `batch_sizes` packed [sum(N_t),I], from `states` [L*D,N,H]."""
    directions = 2 if module.bidirectional else 1
    count = 4 if module.bias else 2
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    if not (input.size(0) if sizes is None else sizes):
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    initial = list(zip(*(state.unbind(0) for state in states), strict=True))
    final: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        steps = input.unbind(0) if sizes is None else input.split(sizes)
        results = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = module._flat_weights[index * count : (index + 1) * count]
            outputs, state = _one_direction(
                module,
                step,
                steps,
                initial[index],
                weights if module.bias else (*weights, None, None),
                direction == 1,
            )
            results.append(torch.stack(outputs) if sizes is None else torch.cat(outputs))
            final.append(state)
        input = results[0] if directions == 1 else torch.cat(results, -1)
        if module.dropout and module.training and layer < module.num_layers - 1:
            input = F.dropout(input, module.dropout, True)
    return input, tuple(torch.stack(parts) for parts in zip(*final, strict=True))


def _zero_states(module: Any, input: Tensor, batch: int, count: int) -> tuple[Tensor, ...]:
    layers = module.num_layers * (2 if module.bidirectional else 1)
    return (input.new_zeros(layers, batch, module.hidden_size),) * count


def _packed(
    module: Any, step: Any, packed: PackedSequence, hx: Any, count: int
) -> tuple[PackedSequence, Any]:
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if hx is None:
        states = _zero_states(module, data, int(batch_sizes[0]), count)
    else:
        hx = module.permute_hidden(hx, sorted_indices)
        states = hx if count == 2 else (hx,)
    module.check_forward_args(data, states if count == 2 else states[0], batch_sizes)
    output, states = _layers(module, step, data, batch_sizes, states)
    final = module.permute_hidden(states if count == 2 else states[0], unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), final


def _sequence(
    module: Any, step: Any, input: Tensor, states: Any, count: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs on a dense `input`, [T,N,I], [N,T,I] (batch_first) or [T,I], from `states`, a tuple or None."""
    batched = input.dim() == 3
    if not batched:
        input = input.unsqueeze(0 if module.batch_first else 1)
        states = states and tuple(state.unsqueeze(1) for state in states)
    if states is None:
        states = _zero_states(module, input, input.size(0 if module.batch_first else 1), count)
    module.check_forward_args(input, states if count == 2 else states[0], None)
    output, states = _layers(
        module, step, input.transpose(0, 1) if module.batch_first else input, None, states
    )
    if not batched:
        return output.squeeze(1), tuple(state.squeeze(1) for state in states)
    return output.transpose(0, 1) if module.batch_first else output, states


def _one_state_forward(module: Any, step: Any, name: str, tail: str, input: Any, hx: Tensor | None) -> Any:
    module._update_flat_weights()
    if isinstance(input, PackedSequence):
        return _packed(module, step, input, hx, 1)
    if input.dim() not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{tail} instead")
    if hx is not None and hx.dim() != input.dim():
        kind = (
            "batched 3-D input, hx should also be 3-D"
            if input.dim() == 3
            else ("unbatched 2-D input, hx should also be 2-D")
        )
        raise RuntimeError(f"For {kind} but got {hx.dim()}-D tensor")
    output, states = _sequence(module, step, input, None if hx is None else (hx,), 1)
    return output, states[0]


def _data(input: Any) -> Tensor:
    return input.data if isinstance(input, PackedSequence) else input


class RNN(torch.nn.RNN):
    """`torch.nn.RNN` as a loop over d2lfast's `rnn_cell`: same parameters and errors.

    Shapes and PackedSequence as in `torch.nn.RNN`. float32, float64, bfloat16 and float16; for other tensors
    (`d2lfast._support.supported`) `torch.nn.RNN` computes.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        """Same as the forward of `torch.nn.RNN`."""
        if not supported(_data(input)):
            return super().forward(input, hx)
        return _one_state_forward(self, _rnn_step, "RNN", " tensor", input, hx)


class GRU(torch.nn.GRU):
    """`torch.nn.GRU` as a loop over d2lfast's `gru_cell`: same parameters and errors.

    Shapes and PackedSequence as in `torch.nn.GRU`. float32, float64, bfloat16 and float16; for other tensors
    (`d2lfast._support.supported`) `torch.nn.GRU` computes.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        """Same as the forward of `torch.nn.GRU`."""
        if not supported(_data(input)):
            return super().forward(input, hx)
        return _one_state_forward(self, _gru_step, "GRU", "", input, hx)


class LSTM(torch.nn.LSTM):
    """`torch.nn.LSTM` as a loop over d2lfast's `lstm_cell`: same parameters and errors.

    Shapes and PackedSequence as in `torch.nn.LSTM`. float32, float64, bfloat16 and float16; with
    proj_size > 0, and for other tensors (`d2lfast._support.supported`), `torch.nn.LSTM` computes.
    """

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:  # type: ignore[override]
        """Same as the forward of `torch.nn.LSTM`."""
        if self.proj_size > 0 or not supported(_data(input)):
            return super().forward(input, hx)
        self._update_flat_weights()
        if isinstance(input, PackedSequence):
            return _packed(self, _lstm_step, input, hx, 2)
        dims = input.dim()
        if dims not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {dims}D instead")
        if hx is not None and (hx[0].dim() != dims or hx[1].dim() != dims):
            kind = "batched" if dims == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dims}-D input, hx and cx should also be {dims}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        return _sequence(self, _lstm_step, input, hx, 2)
