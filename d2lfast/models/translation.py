"""Encoder and decoder for translation (Sutskever et al., 2014; Cho et al., 2014; book, 10.6 and 10.7)."""

from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.init import init_seq2seq
from d2lfast.models.recurrent import GRU


class Encoder(nn.Module):
    """Reads a sequence: `forward(X, *args)` returns what the decoder's `init_state` takes."""

    def forward(self, X: Tensor, *args: Any) -> Any:
        """Return the encoding of X."""
        raise NotImplementedError


class Decoder(nn.Module):
    """Writes a sequence, token by token or, in training, all at once."""

    def init_state(self, enc_all_outputs: Any, *args: Any) -> Any:
        """Return the state before the first token."""
        raise NotImplementedError

    def forward(self, X: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits behind the tokens X [N, T], and the new state."""
        raise NotImplementedError

    def select_state(self, state: Any, index: Tensor) -> Any:
        """Return the state of the sequences `index` of the batch; beam search needs it."""
        raise NotImplementedError


class EncoderDecoder(nn.Module):
    """An encoder and a decoder, with the right answer fed in training (teacher forcing)."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, enc_X: Tensor, dec_X: Tensor, *args: Any) -> Tensor:
        """Return the logits behind every token of dec_X.

        Args:
            enc_X: source tokens [N, T].
            dec_X: target tokens [N, S], moved right by one: what comes before each answer.
            args: handed to the encoder and to `init_state`, such as the lengths of the sources.
        """
        enc_all_outputs = self.encoder(enc_X, *args)
        return self.decoder(dec_X, self.decoder.init_state(enc_all_outputs, *args))[0]


class Seq2SeqEncoder(Encoder):
    """Embedding and GRU.

    Args:
        vocab_size: tokens of the source language.
        embed_size, num_hiddens, num_layers: of the embedding and of the GRU.
        dropout: between the layers of the GRU.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, T] tokens -> outputs [T, N, num_hiddens] and state [num_layers, N, num_hiddens].
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int,
        num_hiddens: int,
        num_layers: int,
        dropout: float = 0,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.embedding = layers.Embedding(vocab_size, embed_size)
        self.rnn = GRU(embed_size, num_hiddens, num_layers, dropout, layers=layers)
        self.apply(init_seq2seq)

    def forward(self, X: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Return outputs and state."""
        return self.rnn(self.embedding(X.T.long()))


class Seq2SeqDecoder(Decoder):
    """Embedding and GRU, which sees the encoder's last output at every step; a linear layer on top.

    Args:
        vocab_size: tokens of the target language.
        embed_size, num_hiddens, num_layers, dropout, layers: as for the encoder.

    Shapes: [N, T] tokens -> [N, T, vocab_size], logits, and the new state.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int,
        num_hiddens: int,
        num_layers: int,
        dropout: float = 0,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        super().__init__()
        self.embedding = layers.Embedding(vocab_size, embed_size)
        self.rnn = GRU(embed_size + num_hiddens, num_hiddens, num_layers, dropout, layers=layers)
        self.dense = layers.Linear(num_hiddens, vocab_size)
        self.apply(init_seq2seq)

    def init_state(self, enc_all_outputs: tuple[Tensor, Tensor], *args: Any) -> tuple[Tensor, Tensor]:
        """Return the encoder's last output [N, H] and its state [L, N, H]."""
        outputs, state = enc_all_outputs
        return outputs[-1], state

    def forward(self, X: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the logits behind every token, and the new state."""
        context, hidden = state
        embedded = self.embedding(X.T.long())
        contexts = context.expand(len(embedded), -1, -1)
        outputs, hidden = self.rnn(torch.cat((embedded, contexts), -1), hidden)
        return self.dense(outputs).swapaxes(0, 1), (context, hidden)

    def select_state(self, state: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state of the sequences `index`."""
        context, hidden = state
        return context[index], hidden[:, index]


class Seq2Seq(EncoderDecoder):
    """The book's English-French model; 1,935,062 parameters for its vocabularies.

    Args:
        src_vocab_size, tgt_vocab_size: tokens of the two languages.
        embed_size, num_hiddens, num_layers, dropout: of encoder and decoder.
        layers: namespace that the layers are taken from, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, T] source and [N, S] target tokens -> [N, S, tgt_vocab_size], logits.
    """

    def __init__(
        self,
        src_vocab_size: int = 194,
        tgt_vocab_size: int = 214,
        embed_size: int = 256,
        num_hiddens: int = 256,
        num_layers: int = 2,
        dropout: float = 0.2,
        *,
        layers: Any = d2lfast.nn,
    ) -> None:
        sizes = (embed_size, num_hiddens, num_layers, dropout)
        encoder = Seq2SeqEncoder(src_vocab_size, *sizes, layers=layers)
        super().__init__(encoder, Seq2SeqDecoder(tgt_vocab_size, *sizes, layers=layers))
