"""Continuing a text with a language model (book, 9.5.4)."""

from typing import Any

import torch

from d2lfast.data.vocab import letters

__all__ = ["generate"]


@torch.no_grad()
def generate(model: Any, tokens: list[str], prefix: str, count: int) -> str:
    """Return `prefix` and the `count` characters that `model` holds most likely to follow, one by one.

    Args:
        model: a `d2lfast.models.LanguageModel`.
        tokens: the vocabulary in the order of its numbers.
        prefix: letters count, in lower case; an empty one begins with a space.
        count: characters to add.

    Raises:
        ValueError: the prefix has no letter that the model knows.
    """
    numbers = {token: index for index, token in enumerate(tokens)}
    text = letters(prefix)
    if prefix.strip() and not text.strip():
        raise ValueError(f"the prefix {prefix!r} has no letter from a to z, all that the model knows")
    text = "".join(character for character in text or " " if character in numbers)
    if not text:
        raise ValueError(f"the model knows none of the letters of the prefix {prefix!r}")
    training = model.training
    model.eval()
    try:
        ids = torch.tensor([[numbers[character] for character in text]])
        written = model.generate(ids.to(next(model.parameters()).device), count)
    finally:
        model.train(training)
    return "".join(tokens[number] for number in written[0].tolist())
