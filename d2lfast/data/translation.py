"""English-French sentence pairs (book, 10.5)."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from d2lfast.data.files import book_file, find_file
from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule
from d2lfast.data.text import read_text
from d2lfast.data.vocab import Vocab, truncate_pad

__all__ = ["MTFraEng"]

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


class MTFraEng(DataModule):
    """The shortest sentence pairs of Tatoeba as manythings.org publishes them.

    Args:
        batch_size: pairs per batch.
        num_steps: tokens per sentence; longer ones are cut, shorter ones filled up with `<pad>`.
        num_train, num_val: pairs; exactly so many, where the book's class has one more for validation.
        root: folder with `fra-eng.zip`, or with `fra.txt`; default D2LFAST_DATA, else the download.

    Attributes:
        arrays: source [pairs, num_steps], decoder input [pairs, num_steps] (beginning with `<bos>`), valid
            lengths of the sources [pairs], labels [pairs, num_steps].
        src_vocab, tgt_vocab: words that occur at least twice.

    Raises:
        OSError: the file is not there and cannot be downloaded; the message says where to put it.
        ValueError: the file is damaged, or holds no pairs.
    """

    def __init__(
        self,
        batch_size: int,
        num_steps: int = 9,
        num_train: int = 512,
        num_val: int = 128,
        *,
        root: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["root"])
        self.arrays, self.src_vocab, self.tgt_vocab = self._build_arrays(self._download(root))

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of the four arrays."""
        indices = slice(0, self.num_train) if train else slice(self.num_train, None)
        return self.get_tensorloader(self.arrays, train, indices)

    def build(self, src_sentences: Sequence[str], tgt_sentences: Sequence[str]) -> Arrays:
        """Return the arrays of other pairs of sentences, by these vocabularies."""
        text = "\n".join(f"{src}\t{tgt}" for src, tgt in zip(src_sentences, tgt_sentences, strict=True))
        return self._build_arrays(text, self.src_vocab, self.tgt_vocab)[0]

    def _download(self, root: str | Path | None = None) -> str:
        path = find_file("fra.txt", "fra-eng", root) or book_file("fra-eng.zip", "fra-eng", root)
        return read_pairs(path)

    def _build_arrays(
        self, raw_text: str, src_vocab: Vocab | None = None, tgt_vocab: Vocab | None = None
    ) -> tuple[Arrays, Vocab, Vocab]:
        # The book's loop reads one pair too many, which decides on one French word: the vocabularies are to
        # be the book's, the pairs those that were asked for.
        count = self.num_train + self.num_val if src_vocab is None else None
        src, tgt = tokenize_pairs(raw_text, None if count is None else count + 1)
        if not src:
            raise ValueError("there is no pair of sentences, English and French with a tab between")
        src_array, src_vocab = _array(src, src_vocab, self.num_steps)
        tgt_array, tgt_vocab = _array(tgt, tgt_vocab, self.num_steps, begin=["<bos>"])
        src_array, tgt_array = src_array[:count], tgt_array[:count]
        valid_len = (src_array != src_vocab["<pad>"]).sum(1)
        return (src_array, tgt_array[:, :-1], valid_len, tgt_array[:, 1:]), src_vocab, tgt_vocab


def read_pairs(path: Path) -> str:
    """Read `fra.txt`, or the one inside a zip.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    if path.suffix != ".zip":
        return read_text(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("fra.txt")), None)
            if name is None:
                raise ValueError(f"{path} holds no fra.txt")
            return archive.read(name).decode("utf-8")
    except (zipfile.BadZipFile, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def preprocess(text: str) -> str:
    """Lower case, plain spaces, and a space before every mark of punctuation that has none."""
    text = text.replace("\u202f", " ").replace("\xa0", " ").lower()
    return re.sub(r"(?<=[^ ])([,.!?])", r" \1", text)


def tokenize_pairs(text: str, max_examples: int | None = None) -> tuple[list[list[str]], list[list[str]]]:
    """Split lines `source TAB target` into words, each sentence with `<eos>` at its end.

    Of more than two columns, as newer files have them, the first two count.
    """
    src: list[list[str]] = []
    tgt: list[list[str]] = []
    for line in text.splitlines():
        if max_examples is not None and len(src) >= max_examples:
            break
        parts = preprocess(line).split("\t")
        if len(parts) >= 2:
            src.append([*parts[0].split(), "<eos>"])
            tgt.append([*parts[1].split(), "<eos>"])
    return src, tgt


def _array(
    sentences: Sequence[Sequence[str]], vocab: Vocab | None, num_steps: int, begin: Sequence[str] = ()
) -> tuple[Tensor, Vocab]:
    padded = [[*begin, *truncate_pad(sentence, num_steps, "<pad>")] for sentence in sentences]
    if vocab is None:
        vocab = Vocab(padded, min_freq=2)
    return torch.tensor([vocab[sentence] for sentence in padded]), vocab
