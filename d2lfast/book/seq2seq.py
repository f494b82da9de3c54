"""Encoder and decoder that know how they are trained (book, 10.6 and 10.7)."""

from typing import Any

import torch
from torch import Tensor

from d2lfast.models import Decoder, Encoder
from d2lfast.training import Classifier

__all__ = ["EncoderDecoder", "Seq2Seq"]


class EncoderDecoder(Classifier):
    """Feeds the encoder's outputs to the decoder, and the right answer in training."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, enc_X: Tensor, dec_X: Any, *args: Any) -> Tensor:  # type: ignore[override]
        """Return the logits [N, T, vocabulary] behind every token of dec_X."""
        enc_all_outputs = self.encoder(enc_X, *args)
        return self.decoder(dec_X, self.decoder.init_state(enc_all_outputs, *args))[0]

    @torch.no_grad()
    def predict_step(
        self, batch: Any, device: Any, num_steps: int, save_attention_weights: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Translate a batch by taking the most likely token at every step.

        The book leaves dropout as it is; here it is off.
        """
        src, tgt, src_valid_len, _ = (tensor.to(device) for tensor in batch)
        training = self.training
        self.eval()
        try:
            enc_all_outputs = self.encoder(src, src_valid_len)
            state = self.decoder.init_state(enc_all_outputs, src_valid_len)
            token, written, attention_weights = tgt[:, :1], [], []
            for _ in range(num_steps):
                Y, state = self.decoder(token, state)
                token = Y.argmax(2)
                written.append(token)
                if save_attention_weights:
                    attention_weights.append(self.decoder.attention_weights)
        finally:
            self.train(training)
        return torch.cat(written, 1), attention_weights


class Seq2Seq(EncoderDecoder):
    """Trained by Adam on the cross-entropy of what is not padding.

    Args:
        encoder, decoder: the two halves.
        tgt_pad: the padding token of the target language.
        lr: learning rate.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, tgt_pad: int, lr: float) -> None:
        super().__init__(encoder, decoder)
        self.save_hyperparameters(ignore=["encoder", "decoder"])

    def validation_step(self, batch: Any) -> None:
        """Plot the loss of a batch."""
        self.plot("loss", self.loss(self(*batch[:-1]), batch[-1]), train=False)

    def training_step(self, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        loss = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("loss", loss, train=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def loss(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:
        """Return the mean cross-entropy of the labels that are not padding, or that of each label."""
        each = super().loss(Y_hat, Y, averaged=False)
        mask = (Y.reshape(-1) != self.tgt_pad).to(each.dtype)
        return (each * mask).sum() / mask.sum() if averaged else each * mask
