"""Character language models on one-hot tokens (book, 9.5 and 9.6)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import d2lfast.nn


class RNNLM(nn.Module):
    """A recurrent layer and a linear layer that scores the next token.

    Args:
        rnn: (inputs [T, N, vocab_size], state) -> (outputs [T, N, rnn.num_hiddens], state), such as
            `d2lfast.models.GRU`.
        vocab_size: number of tokens.
        layers: namespace that the linear layer is taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, T] token ids -> [N, T, vocab_size], logits of the next token.
    """

    def __init__(self, rnn: nn.Module, vocab_size: int, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.rnn = rnn
        num_hiddens: Any = rnn.num_hiddens
        self.linear = layers.Linear(num_hiddens, vocab_size)

    def one_hot(self, tokens: Tensor) -> Tensor:
        """Return [T, N, vocab_size] in the dtype of the parameters for token ids [N, T]."""
        return F.one_hot(tokens.T, self.vocab_size).to(self.linear.weight.dtype)

    def output_layer(self, outputs: Tensor) -> Tensor:
        """Return the logits [N, T, vocab_size] for outputs [T, N, num_hiddens] of the recurrent layer."""
        return self.linear(outputs).swapaxes(0, 1)

    def forward(self, tokens: Tensor, state: Any = None) -> Tensor:
        """Return the logits of the next token after every token."""
        outputs, _ = self.rnn(self.one_hot(tokens), state)
        return self.output_layer(outputs)
