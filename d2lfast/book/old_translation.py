"""Translation as earlier editions of the book have it; names that its module still has."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2lfast.book.plotting import Animator
from d2lfast.book.utilities import Accumulator, Timer
from d2lfast.data import MTFraEng, TensorLoader, Vocab, truncate_pad
from d2lfast.data.translation import preprocess, tokenize_pairs
from d2lfast.models.init import init_seq2seq
from d2lfast.training import Trainer

__all__ = [
    "MaskedSoftmaxCELoss", "build_array_nmt", "load_data_nmt", "predict_seq2seq", "preprocess_nmt",
    "read_data_nmt", "sequence_mask", "tokenize_nmt", "train_seq2seq",
]  # fmt: skip


def sequence_mask(X: Tensor, valid_len: Tensor, value: float = 0) -> Tensor:
    """Return X [N, T, ...] with `value` from step valid_len[n] on; X itself stays as it is."""
    mask = torch.arange(X.size(1), device=X.device)[None, :] < valid_len[:, None]
    return torch.where(mask.reshape(mask.shape + (1,) * (X.dim() - 2)), X, torch.as_tensor(value).to(X))


class MaskedSoftmaxCELoss(nn.CrossEntropyLoss):
    """The cross-entropy of the first steps of every sequence, averaged over all of its steps."""

    def forward(self, pred: Tensor, label: Tensor, valid_len: Tensor) -> Tensor:  # type: ignore[override]
        """Return [N] for pred [N, T, vocabulary], label [N, T] and valid_len [N]."""
        weights = sequence_mask(torch.ones_like(label, dtype=pred.dtype), valid_len)
        each = nn.functional.cross_entropy(pred.permute(0, 2, 1), label, reduction="none")
        return (each * weights).mean(1)


def read_data_nmt() -> str:
    """Return the English-French pairs as text."""
    return MTFraEng._download(MTFraEng.__new__(MTFraEng))


def preprocess_nmt(text: str) -> str:
    """Lower case, and spaces before punctuation."""
    return "\n".join(preprocess(line) for line in text.split("\n"))


def tokenize_nmt(text: str, num_examples: int | None = None) -> tuple[list[list[str]], list[list[str]]]:
    """Split into words, without the `<eos>` that newer editions add."""
    source, target = tokenize_pairs(text, num_examples)
    return [line[:-1] for line in source], [line[:-1] for line in target]


def build_array_nmt(lines: Sequence[Sequence[str]], vocab: Vocab, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return sentences with `<eos>` as numbers [N, num_steps], and their lengths [N]."""
    rows = [truncate_pad([*vocab[list(line)], vocab["<eos>"]], num_steps, vocab["<pad>"]) for line in lines]
    array = torch.tensor(rows)
    return array, (array != vocab["<pad>"]).sum(1)


def load_data_nmt(
    batch_size: int, num_steps: int, num_examples: int = 600
) -> tuple[TensorLoader, Vocab, Vocab]:
    """Return batches (source, its lengths, target, its lengths) and both vocabularies."""
    source, target = tokenize_nmt(read_data_nmt(), num_examples)
    reserved = ["<pad>", "<bos>", "<eos>"]
    src_vocab, tgt_vocab = (Vocab(lines, 2, reserved) for lines in (source, target))
    arrays = (*build_array_nmt(source, src_vocab, num_steps), *build_array_nmt(target, tgt_vocab, num_steps))
    return TensorLoader(*arrays, batch_size=batch_size, shuffle=True), src_vocab, tgt_vocab


def train_seq2seq(
    net: nn.Module, data_iter: Any, lr: float, num_epochs: int, tgt_vocab: Vocab, device: Any
) -> Animator:
    """Train an encoder-decoder on the batches of `load_data_nmt`; print loss and speed, return the curve."""
    net.apply(init_seq2seq)
    net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    loss = MaskedSoftmaxCELoss()
    clip = Trainer(num_epochs).clip_gradients
    net.train()
    animator = Animator("epoch", "loss", xlim=(10, num_epochs))
    for epoch in range(num_epochs):
        timer, metric = Timer(), Accumulator(2)
        for batch in data_iter:
            X, X_valid_len, Y, Y_valid_len = (tensor.to(device) for tensor in batch)
            bos = torch.full((len(Y), 1), tgt_vocab["<bos>"], device=device)
            out = net(X, torch.cat([bos, Y[:, :-1]], 1), X_valid_len)
            # Earlier decoders give their state too.
            Y_hat = out[0] if isinstance(out, tuple) else out
            each = loss(Y_hat, Y, Y_valid_len)
            optimizer.zero_grad()
            each.sum().backward()
            clip(1, net)
            optimizer.step()
            metric.add(each.sum(), Y_valid_len.sum())
        if (epoch + 1) % 10 == 0 or epoch == num_epochs - 1:
            animator.add(epoch + 1, metric[0] / metric[1])
    speed = metric[1] / timer.stop()
    print(f"loss {metric[0] / metric[1]:.3f}, {speed:.1f} tokens/sec on {device}")
    return animator


@torch.no_grad()
def predict_seq2seq(
    net: Any,
    src_sentence: str,
    src_vocab: Vocab,
    tgt_vocab: Vocab,
    num_steps: int,
    device: Any,
    save_attention_weights: bool = False,
) -> tuple[str, list[Any]]:
    """Translate a sentence by taking the most likely word at every step."""
    net.eval()
    words = [*src_vocab[src_sentence.lower().split(" ")], src_vocab["<eos>"]]
    length = torch.tensor([min(len(words), num_steps)], device=device)
    X = torch.tensor([truncate_pad(words, num_steps, src_vocab["<pad>"])], device=device)
    state = net.decoder.init_state(net.encoder(X, length), length)
    token = torch.tensor([[tgt_vocab["<bos>"]]], device=device)
    output, weights = [], []
    for _ in range(num_steps):
        Y, state = net.decoder(token, state)
        token = Y.argmax(2)
        if save_attention_weights:
            weights.append(net.decoder.attention_weights)
        if int(token) == tgt_vocab["<eos>"]:
            break
        output.append(int(token))
    return " ".join(tgt_vocab.to_tokens(output)), weights
