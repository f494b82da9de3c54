"""The course's first recurrent networks: learn to answer "hello" with "ohlol"."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import d2lfast.nn

SYMBOLS = "ehlo"


def hello_example() -> tuple[Tensor, Tensor]:
    """Return the tokens [1, 5] of "hello" and of its target "ohlol", as numbers in `SYMBOLS`."""
    words = ("hello", "ohlol")
    inputs, target = (torch.tensor([[SYMBOLS.index(symbol) for symbol in word]]) for word in words)
    return inputs, target


class HelloCell(nn.Module):
    """An RNN cell over one-hot symbols, whose state scores the next symbol; 40 parameters for four symbols.

    Args:
        vocab_size: number of symbols, and size of the state.
        layers: namespace that the cell is taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, T] tokens -> [N, T, vocab_size], logits.
    """

    def __init__(self, vocab_size: int = 4, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.cell = layers.RNNCell(vocab_size, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        state = None
        states = []
        for x in F.one_hot(tokens.T, self.vocab_size).to(self.cell.weight_ih.dtype):
            state = self.cell(x, state)
            states.append(state)
        return torch.stack(states, 1)


class HelloRNN(nn.Module):
    """`HelloCell` with the loop inside an RNN layer. Arguments and shapes as there."""

    def __init__(self, vocab_size: int = 4, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.rnn = layers.RNN(vocab_size, vocab_size, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        return self.rnn(F.one_hot(tokens, self.vocab_size).to(self.rnn.weight_ih_l0.dtype))[0]


class HelloEmbedding(nn.Module):
    """An embedding in place of one-hot symbols, an RNN and a linear layer.

    Args:
        vocab_size: number of symbols.
        embed_size, num_hiddens: sizes of an embedded symbol and of the state.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, T] tokens -> [N, T, vocab_size], logits.
    """

    def __init__(
        self, vocab_size: int = 4, embed_size: int = 5, num_hiddens: int = 8, *, layers: Any = d2lfast.nn
    ) -> None:
        super().__init__()
        self.embedding = layers.Embedding(vocab_size, embed_size)
        self.rnn = layers.RNN(embed_size, num_hiddens, batch_first=True)
        self.linear = layers.Linear(num_hiddens, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        return self.linear(self.rnn(self.embedding(tokens))[0])
