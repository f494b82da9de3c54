"""The book's recurrent layers from scratch (9.5, 10.1 to 10.4): weights are (in, out), with one bias a gate.

Unlike the book's, the state keeps its own shape at every batch size, and may be handed on.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RNNScratch(nn.Module):
    """H' = tanh(X W_xh + H W_hh + b_h).

    Args:
        num_inputs, num_hiddens: sizes of an input and of the state.
        sigma: standard deviation of the initial weights; biases are zero.

    Shapes: T inputs [N, num_inputs] -> a list of T outputs [N, num_hiddens], and the last state.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.num_inputs, self.num_hiddens, self.sigma = num_inputs, num_hiddens, sigma
        self.W_xh, self.W_hh, self.b_h = _gate(num_inputs, num_hiddens, sigma)

    def forward(self, inputs: Iterable[Tensor], state: Tensor | None = None) -> tuple[list[Tensor], Any]:
        """Return the outputs and the last state."""
        outputs = []
        for X in inputs:
            H = X.new_zeros(len(X), self.num_hiddens) if state is None else state
            state = torch.tanh(X @ self.W_xh + H @ self.W_hh + self.b_h)
            outputs.append(state)
        return outputs, state


class LSTMScratch(nn.Module):
    """C' = F C + I tanh(X W_xc + H W_hc + b_c) and H' = O tanh(C'), with gates I, F and O.

    Arguments and shapes as for `RNNScratch`; the state is the pair (H, C).
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.num_inputs, self.num_hiddens, self.sigma = num_inputs, num_hiddens, sigma
        self.W_xi, self.W_hi, self.b_i = _gate(num_inputs, num_hiddens, sigma)
        self.W_xf, self.W_hf, self.b_f = _gate(num_inputs, num_hiddens, sigma)
        self.W_xo, self.W_ho, self.b_o = _gate(num_inputs, num_hiddens, sigma)
        self.W_xc, self.W_hc, self.b_c = _gate(num_inputs, num_hiddens, sigma)

    def forward(
        self, inputs: Iterable[Tensor], H_C: tuple[Tensor, Tensor] | None = None
    ) -> tuple[list[Tensor], Any]:
        """Return the outputs and the last state."""
        outputs = []
        for X in inputs:
            zeros = X.new_zeros(len(X), self.num_hiddens)
            H, C = (zeros, zeros) if H_C is None else H_C
            I = torch.sigmoid(X @ self.W_xi + H @ self.W_hi + self.b_i)
            F = torch.sigmoid(X @ self.W_xf + H @ self.W_hf + self.b_f)
            O = torch.sigmoid(X @ self.W_xo + H @ self.W_ho + self.b_o)
            C = F * C + I * torch.tanh(X @ self.W_xc + H @ self.W_hc + self.b_c)
            H = O * torch.tanh(C)
            H_C = (H, C)
            outputs.append(H)
        return outputs, H_C


class GRUScratch(nn.Module):
    """H' = Z H + (1 - Z) tanh(X W_xh + (R H) W_hh + b_h), with gates Z and R.

    The reset gate acts before the product with W_hh, in torch's GRU behind it: the two differ. Arguments and
    shapes as for `RNNScratch`.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.num_inputs, self.num_hiddens, self.sigma = num_inputs, num_hiddens, sigma
        self.W_xz, self.W_hz, self.b_z = _gate(num_inputs, num_hiddens, sigma)
        self.W_xr, self.W_hr, self.b_r = _gate(num_inputs, num_hiddens, sigma)
        self.W_xh, self.W_hh, self.b_h = _gate(num_inputs, num_hiddens, sigma)

    def forward(self, inputs: Iterable[Tensor], H: Tensor | None = None) -> tuple[list[Tensor], Any]:
        """Return the outputs and the last state."""
        outputs = []
        for X in inputs:
            H = X.new_zeros(len(X), self.num_hiddens) if H is None else H
            Z = torch.sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)
            R = torch.sigmoid(X @ self.W_xr + H @ self.W_hr + self.b_r)
            candidate = torch.tanh(X @ self.W_xh + (R * H) @ self.W_hh + self.b_h)
            H = Z * H + (1 - Z) * candidate
            outputs.append(H)
        return outputs, H


class StackedRNNScratch(nn.Module):
    """`RNNScratch` layers, each on the outputs of the one below (book, 10.3).

    Args:
        num_inputs, num_hiddens, sigma: as for `RNNScratch`.
        num_layers: how many.

    Shapes: T inputs [N, num_inputs] -> [T, N, num_hiddens], and a list of the layers' last states.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, num_layers: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.num_inputs, self.num_hiddens, self.sigma = num_inputs, num_hiddens, sigma
        self.num_layers = num_layers
        self.rnns = nn.Sequential(
            *(RNNScratch(num_hiddens if i else num_inputs, num_hiddens, sigma) for i in range(num_layers))
        )

    def forward(
        self, inputs: Iterable[Tensor], Hs: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the top layer's outputs and the last states."""
        states = []
        outputs = inputs
        for rnn, H in zip(self.rnns, Hs or [None] * self.num_layers, strict=True):
            outputs, state = rnn(outputs, H)
            states.append(state)
        return torch.stack(list(outputs)), states


class BiRNNScratch(nn.Module):
    """Two `RNNScratch`, one on the reversed inputs; their outputs are concatenated (book, 10.4).

    Arguments as for `RNNScratch`; `num_hiddens` becomes twice as large, the size of an output.

    Shapes: T inputs [N, num_inputs] -> a list of T outputs [N, 2 num_hiddens], and the pair of last states.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.num_inputs, self.num_hiddens, self.sigma = num_inputs, 2 * num_hiddens, sigma
        self.f_rnn = RNNScratch(num_inputs, num_hiddens, sigma)
        self.b_rnn = RNNScratch(num_inputs, num_hiddens, sigma)

    def forward(
        self, inputs: Sequence[Tensor] | Tensor, Hs: tuple[Tensor, Tensor] | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Return the outputs and the last states of both directions."""
        f_H, b_H = (None, None) if Hs is None else Hs
        f_outputs, f_H = self.f_rnn(inputs, f_H)
        b_outputs, b_H = self.b_rnn(list(inputs)[::-1], b_H)
        pairs = zip(f_outputs, reversed(b_outputs), strict=True)
        return [torch.cat(pair, -1) for pair in pairs], (f_H, b_H)


def _gate(num_inputs: int, num_hiddens: int, sigma: float) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    return (
        nn.Parameter(torch.randn(num_inputs, num_hiddens) * sigma),
        nn.Parameter(torch.randn(num_hiddens, num_hiddens) * sigma),
        nn.Parameter(torch.zeros(num_hiddens)),
    )
