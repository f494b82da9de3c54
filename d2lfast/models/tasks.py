"""What the networks are trained for: the loss of each task, and random batches for it."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import d2lfast.nn


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


def squared_loss(outputs: Tensor, target: Tensor, layers: Any = d2lfast.nn) -> Tensor:
    """Half the mean squared error (book, 3.1)."""
    return F.mse_loss(outputs, target) / 2


def cross_entropy(
    logits: Tensor, target: Tensor, layers: Any = d2lfast.nn, *, ignore_index: int = -100
) -> Tensor:
    """Mean cross-entropy of logits [..., classes] and class numbers [...] (book, 4.1).

    `layers` is the namespace whose function computes it. As in the book, torch's is given one leading axis,
    for which logits of swapped axes are copied; d2lfast's reads them where they are.
    """
    if layers is d2lfast.nn and logits.dim() > 2:
        logits = logits.movedim(-1, 1)
    else:
        logits, target = logits.flatten(0, -2), target.flatten()
    return layers.functional.cross_entropy(logits, target, ignore_index=ignore_index)


def masked_cross_entropy(
    logits: Tensor, target: Tensor, layers: Any = d2lfast.nn, *, padding: int = PADDING
) -> Tensor:
    """`cross_entropy` over the targets that are not `padding` (book, 10.7)."""
    return cross_entropy(logits, target, layers, ignore_index=padding)


def binary_cross_entropy(logits: Tensor, target: Tensor, layers: Any = d2lfast.nn) -> Tensor:
    """Mean cross-entropy of logits and targets of 0 and 1."""
    return F.binary_cross_entropy_with_logits(logits, target)


# Of outputs, target, and the namespace that is to compute it, `d2lfast.nn` or `torch.nn`.
LOSSES: dict[Task, Callable[[Tensor, Tensor, Any], Tensor]] = {
    Task.REGRESSION: squared_loss,
    Task.BINARY: binary_cross_entropy,
    Task.CLASSIFICATION: cross_entropy,
    Task.LANGUAGE_MODEL: cross_entropy,
    Task.NAMES: cross_entropy,
    Task.TRANSLATION: masked_cross_entropy,
}


def example(
    task: Task, shape: tuple[int, ...], batch_size: int, input_tokens: int, outputs: int, seed: int = 0
) -> Example:
    """Draw a batch: uniform images and tokens, normal features. The same numbers on every default device.

    Args:
        task: what the batch is for.
        shape: of one input, [C, H, W], [T] or [features].
        batch_size: examples.
        input_tokens: size of the input's vocabulary, for sequences.
        outputs: classes or size of the output's vocabulary.
        seed: of the numbers.
    """
    generator, device = torch.Generator().manual_seed(seed), torch.get_default_device()

    def numbers(*size: int, below: int) -> Tensor:
        return torch.randint(below, size, generator=generator, device="cpu").to(device)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cpu").to(device)

    if task is Task.REGRESSION:
        features = normal(batch_size, *shape)
        return Example((features,), features.sum(1, keepdim=True) / shape[0] ** 0.5)
    if task is Task.BINARY:
        features = normal(batch_size, *shape)
        return Example((features,), (features.sum(1, keepdim=True) > 0).to(features.dtype))
    if task is Task.CLASSIFICATION:
        images = torch.rand(batch_size, *shape, generator=generator, device="cpu").to(device)
        return Example((images,), numbers(batch_size, below=outputs))
    tokens = numbers(batch_size, *shape, below=input_tokens)
    if task is Task.LANGUAGE_MODEL:
        return Example((tokens,), tokens.roll(-1, 1))
    lengths = numbers(batch_size, below=shape[0]) + 1
    if task is Task.NAMES:
        return Example((tokens, lengths), numbers(batch_size, below=outputs))
    target = numbers(batch_size, *shape, below=outputs)
    return Example((tokens, target.roll(1, 1), lengths), target)
