"""Tokens and their numbers (book, 9.2)."""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Vocab", "tokenize", "truncate_pad"]


class Vocab:
    """Numbers tokens in their sorted order.

    Args:
        tokens: a list of tokens, or a list of such lists.
        min_freq: rarer tokens are unknown.
        reserved_tokens: are known in any case.

    Attributes:
        idx_to_token, token_to_idx: both directions.
        token_freqs: pairs of a token and its frequency, the most frequent first.
    """

    def __init__(
        self, tokens: Sequence[Any] = (), min_freq: int = 0, reserved_tokens: Sequence[str] = ()
    ) -> None:
        if tokens and isinstance(tokens[0], (list, tuple)):
            tokens = [token for line in tokens for token in line]
        counter = collections.Counter(tokens)
        self.token_freqs = sorted(counter.items(), key=lambda pair: pair[1], reverse=True)
        known = {token for token, count in self.token_freqs if count >= min_freq}
        self.idx_to_token: list[str] = sorted({"<unk>", *reserved_tokens, *known})
        self.token_to_idx = {token: index for index, token in enumerate(self.idx_to_token)}

    @classmethod
    def of(cls, tokens: Iterable[str]) -> "Vocab":
        """Return a vocabulary of exactly these tokens, as `idx_to_token` of another lists them."""
        vocab = cls(list(tokens))
        vocab.token_freqs = []
        return vocab

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __getitem__(self, tokens: Any) -> Any:
        """The number of a token, or the numbers of a list of them, nested as the list is."""
        if isinstance(tokens, (list, tuple)):
            return [self[token] for token in tokens]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices: Any) -> Any:
        """The token of a number, or the list of tokens of a sequence of them, of one as well."""
        if isinstance(indices, Tensor):
            indices = indices.tolist()
        if hasattr(indices, "__len__"):
            return [self.idx_to_token[int(index)] for index in indices]
        return self.idx_to_token[int(indices)]

    @property
    def unk(self) -> int:
        """The number of the unknown token."""
        return self.token_to_idx["<unk>"]


def tokenize(lines: Sequence[str], token: str = "word") -> list[list[str]]:
    """Split lines into words or characters.

    Raises:
        ValueError: `token` is neither "word" nor "char".
    """
    if token == "word":
        return [line.split() for line in lines]
    if token == "char":
        return [list(line) for line in lines]
    raise ValueError(f"token must be 'word' or 'char', got {token!r}")


def letters(text: str) -> str:
    """The text in lower case with everything but the letters a to z replaced by single spaces."""
    return re.sub("[^A-Za-z]+", " ", text).lower()


def truncate_pad(line: Sequence[Any], num_steps: int, padding_token: Any) -> list[Any]:
    """The first `num_steps` items of a sequence, filled up with `padding_token`."""
    line = list(line[:num_steps])
    return line + [padding_token] * (num_steps - len(line))
