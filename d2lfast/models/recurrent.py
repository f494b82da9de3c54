"""Recurrent layers under the book's names (9.6, 10.1 to 10.4): time first, the state optional."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import d2lfast.nn
from d2lfast._support import has_kernels


class _Recurrent(nn.Module):
    """Holds a layer of `layers` as `rnn`; `num_hiddens` is the size of its output."""

    rnn: Any
    num_hiddens: int

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs [T, N, num_hiddens] and the last state.

        The inputs are [T, N, num_inputs], or, as int64, tokens [T, N] that stand for one-hot inputs.
        """
        if inputs.dtype is torch.int64 and not self._takes_tokens(inputs):
            inputs = F.one_hot(inputs, self.rnn.input_size).to(self.rnn.weight_ih_l0.dtype)
        return self.rnn(inputs, state)

    def _takes_tokens(self, tokens: Tensor) -> bool:
        ours = (d2lfast.nn.RNN, d2lfast.nn.GRU, d2lfast.nn.LSTM)
        return isinstance(self.rnn, ours) and has_kernels("gru_layer", tokens.device.type)


class _Stacked(_Recurrent):
    """Layers of `kind`, a name in `layers`, in one direction."""

    kind: str

    def __init__(
        self,
        num_inputs: int,
        num_hiddens: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.num_hiddens = num_hiddens
        self.rnn = getattr(layers, self.kind)(num_inputs, num_hiddens, num_layers, dropout=dropout)


class RNN(_Stacked):
    """Recurrent layers with tanh.

    Args:
        num_inputs, num_hiddens: sizes of an input and of the state.
        num_layers: how many.
        dropout: probability of dropping an output between layers.
        layers: namespace that the layer is taken from, `d2lfast.nn` or `torch.nn`.
    """

    kind = "RNN"


class LSTM(_Stacked):
    """LSTM layers (Hochreiter and Schmidhuber, 1997); the state is a pair. Arguments as for `RNN`."""

    kind = "LSTM"


class GRU(_Stacked):
    """GRU layers (Cho et al., 2014). Arguments as for `RNN`."""

    kind = "GRU"


class BiGRU(_Recurrent):
    """One GRU layer in both directions, whose outputs are twice as wide as the state.

    Args:
        num_inputs, num_hiddens: sizes of an input and of the state.
        layers: namespace that the layer is taken from, `d2lfast.nn` or `torch.nn`.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.num_hiddens = 2 * num_hiddens
        self.rnn = layers.GRU(num_inputs, num_hiddens, bidirectional=True)
