"""What the networks are trained for: the loss of each task, and random batches for it."""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Task(StrEnum):
    """What a network is trained for; it fixes the arguments of its builder, its outputs and its loss.

    REGRESSION: `build(num_inputs)`; [N, num_inputs] -> [N, 1]; half the mean squared error.
    BINARY: `build(num_inputs)`; [N, num_inputs] -> logits [N, 1]; cross-entropy with targets of 0 and 1.
    CLASSIFICATION: `build(num_classes, in_channels)`; [N, C, H, W] -> logits [N, num_classes]; cross-entropy.
    LANGUAGE_MODEL: `build(vocab_size)`; tokens [N, T] -> logits [N, T, vocab_size]; cross-entropy.
    NAMES: `build(num_symbols, num_classes)`; tokens [N, T] and lengths [N] -> logits [N, num_classes].
    TRANSLATION: `build(src_vocab_size, tgt_vocab_size)`; tokens [N, T], target tokens [N, S], lengths [N] ->
        logits [N, S, tgt_vocab_size]; cross-entropy over the labels that are not padding.
    """

    REGRESSION = "regression"
    BINARY = "binary"
    CLASSIFICATION = "classification"
    LANGUAGE_MODEL = "language-model"
    NAMES = "names"
    TRANSLATION = "translation"


# The token that fills up short target sentences, as in the book's reserved order <bos>, <eos>, <pad>, <unk>.
PADDING = 2


class Example(NamedTuple):
    """A batch: what the network is called with, and what it should answer."""

    inputs: tuple[Tensor, ...]
    target: Tensor


def squared_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error (book, 3.1)."""
    return F.mse_loss(outputs, target) / 2


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits [..., classes] and class numbers [...] (book, 4.1)."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def masked_cross_entropy(logits: Tensor, target: Tensor, padding: int = PADDING) -> Tensor:
    """`cross_entropy` over the targets that are not `padding` (book, 10.7)."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=padding)


LOSSES: dict[Task, Callable[[Tensor, Tensor], Tensor]] = {
    Task.REGRESSION: squared_loss,
    Task.BINARY: F.binary_cross_entropy_with_logits,
    Task.CLASSIFICATION: cross_entropy,
    Task.LANGUAGE_MODEL: cross_entropy,
    Task.NAMES: cross_entropy,
    Task.TRANSLATION: masked_cross_entropy,
}


def example(
    task: Task, shape: tuple[int, ...], batch_size: int, input_tokens: int, outputs: int, seed: int = 0
) -> Example:
    """Draw a batch: uniform images and tokens, normal features.

    Args:
        task: what the batch is for.
        shape: of one input, [C, H, W], [T] or [features].
        batch_size: examples.
        input_tokens: size of the input's vocabulary, for sequences.
        outputs: classes or size of the output's vocabulary.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbers(*size: int, below: int) -> Tensor:
        return torch.randint(below, size, generator=generator)

    if task is Task.REGRESSION:
        features = torch.randn(batch_size, *shape, generator=generator)
        return Example((features,), features.sum(1, keepdim=True) / shape[0] ** 0.5)
    if task is Task.BINARY:
        features = torch.randn(batch_size, *shape, generator=generator)
        return Example((features,), (features.sum(1, keepdim=True) > 0).to(features.dtype))
    if task is Task.CLASSIFICATION:
        images = torch.rand(batch_size, *shape, generator=generator)
        return Example((images,), numbers(batch_size, below=outputs))
    tokens = numbers(batch_size, *shape, below=input_tokens)
    if task is Task.LANGUAGE_MODEL:
        return Example((tokens,), tokens.roll(-1, 1))
    lengths = numbers(batch_size, below=shape[0]) + 1
    if task is Task.NAMES:
        return Example((tokens, lengths), numbers(batch_size, below=outputs))
    target = numbers(batch_size, *shape, below=outputs)
    return Example((tokens, target.roll(1, 1), lengths), target)
