"""The course's classifier of names by country."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import d2lfast.nn


class NameClassifier(nn.Module):
    """Embedding, GRU over the letters of each name, a linear layer on the last state.

    Args:
        num_symbols: letters; ASCII in the course.
        num_classes: countries.
        num_hiddens: size of an embedded letter and of the state.
        num_layers: of the GRU.
        bidirectional: the GRU reads both ways, and both last states are classified.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: tokens [N, T], padded behind, and lengths [N] -> [N, num_classes], logits.
    """

    def __init__(
        self,
        num_symbols: int = 128,
        num_classes: int = 18,
        num_hiddens: int = 100,
        num_layers: int = 2,
        bidirectional: bool = False,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.embedding = layers.Embedding(num_symbols, num_hiddens)
        self.gru = layers.GRU(num_hiddens, num_hiddens, num_layers, bidirectional=bidirectional)
        self.directions = 2 if bidirectional else 1
        self.linear = layers.Linear(self.directions * num_hiddens, num_classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits; what lies behind the end of a name does not count."""
        embedded = self.embedding(tokens.T)
        packed = pack_padded_sequence(embedded, lengths.cpu(), enforce_sorted=False)
        _, states = self.gru(packed)
        return self.linear(torch.cat(tuple(states[-self.directions :]), 1))
