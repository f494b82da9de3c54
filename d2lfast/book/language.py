"""Language models that know how they are trained (book, 9.5, 9.6, 10.1 to 10.4)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2lfast.models import recurrent
from d2lfast.training import Classifier

__all__ = ["RNNLM", "RNNLMScratch"]


class RNNLMScratch(Classifier):
    """A recurrent layer on one-hot tokens, and an output layer from scratch.

    Args:
        rnn: (inputs [T, N, vocab_size], state) -> (T outputs [N, rnn.num_hiddens], state).
        vocab_size: number of tokens.
        lr: learning rate of SGD.
    """

    def __init__(self, rnn: nn.Module, vocab_size: int, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["rnn"])
        self.rnn = rnn
        self.init_params()

    def init_params(self) -> None:
        """Make the parameters of the output layer."""
        rnn: Any = self.rnn
        self.W_hq = nn.Parameter(torch.randn(rnn.num_hiddens, self.vocab_size) * rnn.sigma)
        self.b_q = nn.Parameter(torch.zeros(self.vocab_size))

    def training_step(self, batch: Any) -> Tensor:
        """Return the loss of a batch; the perplexity is drawn."""
        return self._step(batch, train=True)

    def validation_step(self, batch: Any) -> None:
        """Draw the perplexity of a batch."""
        self._step(batch, train=False)

    def _step(self, batch: Any, train: bool) -> Tensor:
        loss = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("ppl", torch.exp(loss.detach()), train)
        trainer = self.__dict__.get("trainer")
        if trainer is not None:
            trainer.record("loss", loss, train)
        return loss

    def one_hot(self, X: Tensor) -> Tensor:
        """Return [T, N, vocab_size] float32 for tokens [N, T]."""
        return F.one_hot(X.T, self.vocab_size).to(torch.float32)

    def output_layer(self, rnn_outputs: Any) -> Tensor:
        """Return the logits [N, T, vocab_size]."""
        outputs = rnn_outputs if isinstance(rnn_outputs, Tensor) else torch.stack(list(rnn_outputs))
        return (outputs @ self.W_hq + self.b_q).swapaxes(0, 1)

    def forward(self, X: Tensor, state: Any = None) -> Tensor:
        """Return the logits of the next token after every token [N, T]."""
        rnn_outputs, _ = self.rnn(self._rnn_inputs(X), state)
        return self.output_layer(rnn_outputs)

    def _rnn_inputs(self, X: Tensor) -> Tensor:
        """One-hot tokens; layers of the library take the tokens themselves and look their rows up."""
        layers = (recurrent.RNN, recurrent.LSTM, recurrent.GRU, recurrent.BiGRU)
        if isinstance(self.rnn, layers) and type(self).one_hot is RNNLMScratch.one_hot:
            return X.T
        return self.one_hot(X)

    @torch.no_grad()
    def predict(self, prefix: Any, num_preds: int, vocab: Any, device: Any = None) -> str:
        """Return `prefix` and the `num_preds` tokens that most likely follow, one by one."""
        tokens = [vocab[token] for token in prefix]
        if not tokens:
            raise ValueError("the prefix is empty")
        X = torch.tensor([tokens], device=device)
        state = None
        for _ in range(num_preds):
            rnn_outputs, state = self.rnn(self._rnn_inputs(X), state)
            X = self.output_layer(rnn_outputs)[:, -1:].argmax(2)
            tokens.append(int(X))
        return "".join(vocab.idx_to_token[token] for token in tokens)


class RNNLM(RNNLMScratch):
    """With a linear layer as the output layer."""

    def init_params(self) -> None:
        """Make the output layer; it takes its size from the first outputs, as those of two directions."""
        self.linear = nn.LazyLinear(self.vocab_size)

    def output_layer(self, rnn_outputs: Any) -> Tensor:
        """Return the logits [N, T, vocab_size]."""
        return self.linear(rnn_outputs).swapaxes(0, 1)
