"""Character language models on one-hot tokens (book, 9.5 and 9.6)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import d2lfast.nn
from d2lfast.nn import functional


class LanguageModel(nn.Module):
    """A recurrent layer under an output layer: [N, T] token ids -> [N, T, vocab_size], logits of the next.

    Args:
        rnn: (T inputs [N, vocab_size], state) -> (T outputs [N, rnn.num_hiddens], state).
        vocab_size: number of tokens.
    """

    def __init__(self, rnn: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.rnn = rnn

    def one_hot(self, tokens: Tensor) -> Tensor:
        """Return [T, N, vocab_size] in the dtype of the parameters for token ids [N, T]."""
        return F.one_hot(tokens.T, self.vocab_size).to(next(self.parameters()).dtype)

    def rnn_inputs(self, tokens: Tensor) -> Tensor:
        """Return what the recurrent layer is given for token ids [N, T]."""
        return self.one_hot(tokens)

    def output_layer(self, rnn_outputs: Any) -> Tensor:
        """Return the logits [N, T, vocab_size] for T outputs [N, num_hiddens] of the recurrent layer."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, state: Any = None) -> Tensor:
        """Return the logits of the next token after every token."""
        rnn_outputs, _ = self.rnn(self.rnn_inputs(tokens), state)
        return self.output_layer(rnn_outputs)

    @torch.no_grad()
    def generate(self, prefix: Tensor, num_preds: int) -> Tensor:
        """Continue each row of `prefix` [N, T] by the most probable tokens; return [N, T + num_preds].

        Raises:
            ValueError: the prefix is empty.
        """
        if prefix.shape[1] == 0:
            raise ValueError("the prefix must hold a token")
        written, state, new = prefix, None, prefix
        for _ in range(num_preds):
            rnn_outputs, state = self.rnn(self.rnn_inputs(new), state)
            new = self.output_layer(rnn_outputs)[:, -1:].argmax(2)
            written = torch.cat((written, new), 1)
        return written


class RNNLMScratch(LanguageModel):
    """A language model with the output H W_hq + b_q: W_hq from N(0, rnn.sigma^2), b_q zero.

    Args:
        rnn: one of `d2lfast.models.recurrent_scratch`, or like them.
        vocab_size: number of tokens.
    """

    def __init__(self, rnn: nn.Module, vocab_size: int) -> None:
        super().__init__(rnn, vocab_size)
        made: Any = rnn
        self.W_hq = nn.Parameter(torch.randn(made.num_hiddens, vocab_size) * made.sigma)
        self.b_q = nn.Parameter(torch.zeros(vocab_size))

    def output_layer(self, rnn_outputs: Any) -> Tensor:
        """Return the logits [N, T, vocab_size] for T outputs [N, num_hiddens] of the recurrent layer."""
        outputs = rnn_outputs if isinstance(rnn_outputs, Tensor) else torch.stack(rnn_outputs)
        return (outputs @ self.W_hq + self.b_q).swapaxes(0, 1)


class _Output(nn.Linear):
    """A linear layer that d2lfast computes."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class RNNLM(LanguageModel):
    """A language model with a linear layer as output.

    Args:
        rnn: one of `d2lfast.models.recurrent`, or like them; it is given tokens [T, N].
        vocab_size: number of tokens.
        layers: namespace that the linear layer is taken from, `d2lfast.nn` or `torch.nn`.
    """

    def __init__(self, rnn: nn.Module, vocab_size: int, *, layers: Any = d2lfast.nn) -> None:
        super().__init__(rnn, vocab_size)
        made: Any = rnn
        kind = _Output if layers is d2lfast.nn else layers.Linear
        self.linear = kind(made.num_hiddens, vocab_size)

    def rnn_inputs(self, tokens: Tensor) -> Tensor:
        """Return the tokens [T, N] as they are: d2lfast's layers look their rows up."""
        return tokens.T

    def output_layer(self, rnn_outputs: Tensor) -> Tensor:
        """Return the logits [N, T, vocab_size] for outputs [T, N, num_hiddens] of the recurrent layer."""
        return self.linear(rnn_outputs).swapaxes(0, 1)
