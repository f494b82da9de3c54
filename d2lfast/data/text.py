"""Texts as windows of characters (book, 9.2 and 9.3)."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from d2lfast.data.files import book_file
from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule
from d2lfast.data.vocab import Vocab, letters

__all__ = ["TextData", "TimeMachine", "english_text", "windows"]

_log = logging.getLogger(__name__)


class TextData(DataModule):
    """Overlapping windows of a text's characters, and the same windows one character later.

    Args:
        text: letters count, in lower case; everything between them is one space.
        batch_size: windows per batch.
        num_steps: characters per window.
        num_train: the first windows, for training.
        num_val: the next ones, for validation.

    Attributes:
        X, Y: [windows, num_steps] int64; views of `corpus`.
        vocab: the `Vocab`.
        corpus: [characters] int64.

    Raises:
        ValueError: the text has fewer letters than a window; batch size or steps are not positive.
    """

    def __init__(
        self, text: str, batch_size: int, num_steps: int, num_train: int = 10000, num_val: int = 5000
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["text"])
        if num_steps < 1:
            raise ValueError(f"num_steps must be positive, got {num_steps}")
        corpus, self.vocab = self.build(text)
        self.corpus = torch.tensor(corpus, dtype=torch.int64)
        if len(self.corpus) <= num_steps:
            raise ValueError(
                f"the text has {len(self.corpus)} characters (letters and single spaces); windows of "
                f"{num_steps} need at least {num_steps + 1}"
            )
        array = windows(self.corpus, num_steps)
        self.X, self.Y = array[:, :-1], array[:, 1:]

    def build(self, raw_text: str, vocab: Vocab | None = None) -> tuple[list[int], Vocab]:
        """Return the numbers of a text's characters, and the vocabulary."""
        tokens = self._tokenize(self._preprocess(raw_text))
        vocab = Vocab(tokens) if vocab is None else vocab
        return vocab[tokens], vocab

    def _preprocess(self, text: str) -> str:
        return letters(text)

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of X and Y."""
        begin, end = (0, self.num_train) if train else (self.num_train, self.num_train + self.num_val)
        if not train and begin >= len(self.X):
            # A short text has no further windows: the last ones are taken, which the training saw too.
            begin, end = max(0, len(self.X) - self.num_val), len(self.X)
        return self.get_tensorloader((self.X, self.Y), train, slice(begin, end))


class TimeMachine(TextData):
    """The Time Machine by H. G. Wells, 173,428 characters of 27 kinds (book, 9.2).

    Args:
        batch_size, num_steps, num_train, num_val: as for `TextData`.
        root: folder with `timemachine.txt`; default D2LFAST_DATA, else the download.

    Raises:
        OSError: the file is not there and cannot be downloaded; the message says where to put it.
        ValueError: the file is not text.
    """

    def __init__(
        self,
        batch_size: int,
        num_steps: int,
        num_train: int = 10000,
        num_val: int = 5000,
        *,
        root: str | Path | None = None,
    ) -> None:
        super().__init__(self._download(root), batch_size, num_steps, num_train, num_val)

    def _download(self, root: str | Path | None = None) -> str:
        return read_text(book_file("timemachine.txt", "timemachine", root))


def windows(corpus: Tensor, num_steps: int) -> Tensor:
    """Return all windows of `num_steps` tokens and the one after them, [len - num_steps, num_steps + 1].

    A view: memory does not grow with the number of steps.
    """
    return corpus.unfold(0, num_steps + 1, 1)


def read_text(path: Path) -> str:
    """Read a file of UTF-8.

    Raises:
        ValueError: it is something else, or empty; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def english_text(root: str | Path | None = None) -> tuple[str, str]:
    """Return a long English text and its name: The Time Machine, or, offline, Python's reference manual.

    Raises:
        ValueError: the file in the data folder is not text, or empty.
    """
    try:
        path = book_file("timemachine.txt", "timemachine", root)
    except OSError as error:
        _log.warning("%s; using the reference manual that ships with Python instead", error)
        from pydoc_data.topics import topics

        return " ".join(topics.values()), "the reference manual of Python"
    return read_text(path), f"The Time Machine from {path}"
