"""Surnames and the languages they come from."""

import csv
import gzip
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from d2lfast.data.files import data_folder
from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule

__all__ = ["Names", "ascii_name", "encode_names"]

NUM_SYMBOLS = 128
# Letters that have no accent to drop, by their code points.
_LETTERS = {
    0xDF: "ss", 0xF8: "o", 0xD8: "O", 0x142: "l", 0x141: "L", 0x111: "d", 0x110: "D", 0xE6: "ae", 0xC6: "AE",
    0x131: "i", 0x153: "oe", 0x152: "OE", 0xFE: "th", 0xDE: "Th", 0xF0: "d", 0xD0: "D", 0x2019: "'",
}  # fmt: skip


class Names(DataModule):
    """Names as ASCII numbers, with their lengths and languages.

    Args:
        batch_size: names per batch.
        root: folder with a text file per language, a name per line (or its subfolder `names`), or with the
            course's `names_train.csv.gz` and `names_test.csv.gz`; default D2LFAST_DATA.
        num_val: share of the names for validation, where the files do not say.
        seed: of the choice of these.

    Attributes:
        tokens, lengths, labels: [N, longest], [N], [N] int64.
        languages: the names of the labels.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is empty or not in UTF-8, or a name has no letter; the message names it.
    """

    def __init__(
        self,
        batch_size: int = 256,
        root: str | Path | None = None,
        num_val: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["root"])
        pairs, split = _read(data_folder(root))
        self.languages = tuple(sorted({language for _, language in pairs}))
        self.names = [name for name, _ in pairs]
        self.tokens, self.lengths = encode_names(self.names)
        numbers = {language: index for index, language in enumerate(self.languages)}
        self.labels = torch.tensor([numbers[language] for _, language in pairs])
        if split is None:
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
            split = max(1, round(len(pairs) * (1 - num_val)))
            self.train_indices, self.val_indices = order[:split], order[split:]
        else:
            order = torch.arange(len(pairs))
            self.train_indices, self.val_indices = order[:split], order[split:]

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of tokens, lengths and labels."""
        indices = self.train_indices if train else self.val_indices
        tensors = tuple(tensor[indices] for tensor in (self.tokens, self.lengths, self.labels))
        return self.get_tensorloader(tensors, train)


def ascii_name(name: str) -> str:
    """The name in ASCII: accents go, and letters without an ASCII part are written as usual (ß as ss).

    Raises:
        ValueError: no letter is left, as of names in other scripts.
    """
    plain = unicodedata.normalize("NFKD", name.strip().translate(_LETTERS))
    plain = plain.encode("ascii", "ignore").decode()
    if not any(character.isalpha() for character in plain):
        raise ValueError(f"{name!r} has no Latin letters; write the name in Latin script")
    return plain


def encode_names(names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the ASCII numbers of names, [N, longest] filled up with 0, and their lengths [N].

    Raises:
        ValueError: a name has no Latin letters, or there are no names.
    """
    if not names:
        raise ValueError("there are no names")
    codes = [torch.tensor(list(ascii_name(name).encode())) for name in names]
    lengths = torch.tensor([len(code) for code in codes])
    return torch.nn.utils.rnn.pad_sequence(codes, batch_first=True), lengths


def _read(folder: Path | None) -> tuple[list[tuple[str, str]], int | None]:
    """All names with their languages, and how many of them are for training, if that is given."""
    if folder is None:
        raise FileNotFoundError("No folder of names: set D2LFAST_DATA to one that has names/<language>.txt")
    for base in (folder / "names", folder):
        parts = [base / f"names_{part}.csv{end}" for part in ("train", "test") for end in ("", ".gz")]
        train, test = (
            next((path for path in pair if path.is_file()), None) for pair in (parts[:2], parts[2:])
        )
        if train and test:
            first, second = _read_csv(train), _read_csv(test)
            return first + second, len(first)
        files = sorted(base.glob("*.txt")) if base.is_dir() else []
        if len(files) > 1:
            return [(name, path.stem) for path in files for name in _read_list(path)], None
    raise FileNotFoundError(f"There are no names in {folder}: expected a file <language>.txt per language")


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason} at byte {error.start})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty")
    return names


def _read_csv(path: Path) -> list[tuple[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", newline="", encoding="utf-8") as file:
            rows = [(row[0], row[1]) for row in csv.reader(file) if len(row) >= 2]
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows
