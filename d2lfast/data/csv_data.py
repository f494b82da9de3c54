"""Tables of numbers as data sets, in the manner of the course: the last column is the label."""

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule

__all__ = ["CSVData", "CSVDataset", "DiabetesDataset"]


class CSVDataset(Dataset):
    """The rows of a file of comma-separated numbers, gzipped or not.

    Args:
        path: the file. A first line without numbers is taken as the names of the columns.

    Attributes:
        x_data: [rows, columns - 1] float32.
        y_data: [rows, 1] float32, the last column.
        columns: names, or empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, has rows of different lengths, or something that is no number; the message
            names file and line.
    """

    def __init__(self, path: str | Path) -> None:
        values, self.columns = _read(Path(path))
        self.x_data = torch.from_numpy(values[:, :-1].copy())
        self.y_data = torch.from_numpy(values[:, -1:].copy())
        self.len = len(values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x_data[index], self.y_data[index]

    def __len__(self) -> int:
        return self.len


class DiabetesDataset(CSVDataset):
    """The course's data: eight measurements of a patient and a label of 0 or 1 (`diabetes.csv.gz`)."""


class CSVData(DataModule):
    """A table as batches for training and validation, the features standardised by the training part.

    Args:
        path: as for `CSVDataset`.
        batch_size: rows per batch.
        num_val: share of the rows for validation.
        seed: of their choice.
    """

    def __init__(self, path: str | Path, batch_size: int = 64, num_val: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        table = CSVDataset(path)
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        split = max(1, round(len(table) * (1 - num_val)))
        self.X, self.y = table.x_data[order], table.y_data[order]
        mean, deviation = self.X[:split].mean(0), self.X[:split].std(0, correction=0)
        self.X = (self.X - mean) / torch.where(deviation > 0, deviation, 1.0)
        self.num_train = split

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of features [N, columns - 1] and labels [N, 1]."""
        indices = slice(0, self.num_train) if train else slice(self.num_train, None)
        return self.get_tensorloader((self.X, self.y), train, indices)


def _read(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    columns: tuple[str, ...] = ()
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        columns = tuple(cell.strip() for cell in rows.pop(0)[1])
    if not rows:
        raise ValueError(f"{path} is empty")
    width = len(rows[0][1])
    if width < 2:
        raise ValueError(f"{path} has one column; expected features and a label")
    for number, row in rows:
        if len(row) != width:
            raise ValueError(f"{path}, line {number}: {len(row)} columns, expected {width}")
        for cell in row:
            if not _is_number(cell):
                raise ValueError(f"{path}, line {number}: {cell!r} is not a number")
    return np.array([row for _, row in rows], dtype=np.float32), columns


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
