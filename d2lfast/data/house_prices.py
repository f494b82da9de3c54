"""Kaggle's house prices: a table with words and holes, made into numbers (book, 2.2 and 5.7)."""

import copy
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2lfast.data.files import book_file
from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule

__all__ = ["HousePrices", "k_fold", "log_rmse", "read_table", "to_features"]

_MISSING = frozenset({"", "NA", "NaN", "nan", "null"})
Table = dict[str, list[str]]


def read_table(path: str | Path) -> Table:
    """Read a CSV file with a line of headings, column by column.

    Raises:
        ValueError: it is empty, or a row is too long or too short; the message names file and line.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    if len(rows) < 2:
        raise ValueError(f"{path} is empty")
    names = rows[0][1]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise ValueError(f"{path}, line {number}: {len(row)} columns, expected {len(names)}")
    return {name: [row[index] for _, row in rows[1:]] for index, name in enumerate(names)}


def to_features(
    table: Table, missing: str = "impute", fit_rows: int | None = None
) -> tuple[Tensor, list[str]]:
    """Turn the columns into numbers; return [rows, features] float32 and the names of the features.

    A column of numbers is standardised. One of words becomes a column of 0 and 1 for every word, and one for
    missing.

    Args:
        table: columns by name.
        missing: "impute" puts the mean in place of a missing number; "delete-columns" and "delete-rows" leave
            out the columns of numbers, or the rows, that miss one.
        fit_rows: the first rows, by which columns are standardised; default all.

    Raises:
        ValueError: `missing` is something else, or nothing is left.
    """
    if missing not in ("impute", "delete-columns", "delete-rows"):
        raise ValueError(f"missing must be 'impute', 'delete-columns' or 'delete-rows', got {missing!r}")
    numbers = {name: _numbers(cells) for name, cells in table.items()}
    rows = len(next(iter(table.values())))
    keep = np.ones(rows, bool)
    if missing == "delete-rows":
        for values in numbers.values():
            if values is not None:
                keep &= ~np.isnan(values)
    columns: list[np.ndarray] = []
    names: list[str] = []
    for name, cells in table.items():
        values = numbers[name]
        if values is None:
            words = sorted({_word(cell) for cell in cells})
            columns += [np.array([_word(cell) == word for cell in cells], np.float64) for word in words]
            names += [f"{name}_{word}" for word in words]
        elif not (missing == "delete-columns" and np.isnan(values).any()):
            columns.append(_standardised(values, keep, fit_rows))
            names.append(name)
    if not columns or not keep.any():
        raise ValueError("no rows or columns are left")
    return torch.from_numpy(np.stack(columns, 1)[keep].astype(np.float32)), names


def _word(cell: str) -> str:
    return "nan" if cell in _MISSING else cell


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    """The column as numbers, or None if it has words, or nothing at all."""
    if all(cell in _MISSING for cell in cells):
        return None
    try:
        return np.array([np.nan if cell in _MISSING else float(cell) for cell in cells])
    except ValueError:
        return None


def _standardised(values: np.ndarray, keep: np.ndarray, fit_rows: int | None) -> np.ndarray:
    fit = values[:fit_rows][keep[:fit_rows]]
    fit = fit[~np.isnan(fit)]
    mean, deviation = (fit.mean(), fit.std()) if len(fit) else (0.0, 0.0)
    scaled = (values - mean) / (deviation or 1.0)
    # The mean is zero now.
    return np.nan_to_num(scaled, nan=0.0)


class HousePrices(DataModule):
    """The training table of the competition as features and logarithms of prices.

    Args:
        batch_size: houses per batch.
        missing: as for `to_features`.
        root: folder with `kaggle_house_pred_train.csv`; default D2LFAST_DATA, else the download.
        val_indices: the rows for validation; default the last tenth.

    Attributes:
        X: [houses, features].
        y: [houses, 1], logarithms of the prices.
    """

    def __init__(
        self,
        batch_size: int = 64,
        missing: str = "impute",
        *,
        root: str | Path | None = None,
        val_indices: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["root", "val_indices"])
        path = book_file("kaggle_house_pred_train.csv", "house-prices", root)
        table = read_table(path)
        if "SalePrice" not in table:
            raise ValueError(f"{path} has no column SalePrice")
        table.pop("Id", None)
        prices = [float(cell) for cell in table.pop("SalePrice")]
        if missing == "delete-rows":
            # The prices have to lose the same rows: they go through as a column that is complete.
            keep = _complete_rows(table)
            table = {name: [cell for cell, good in zip(cells, keep) if good] for name, cells in table.items()}
            prices = [price for price, good in zip(prices, keep) if good]
        self.X, self.features = to_features(table, missing)
        self.y = torch.tensor(prices).log().reshape(-1, 1)
        rows = torch.arange(len(self.X))
        chosen = rows[-max(1, len(rows) // 10) :] if val_indices is None else val_indices
        self.is_val = torch.zeros(len(rows), dtype=torch.bool)
        self.is_val[chosen] = True

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of X and y."""
        chosen = ~self.is_val if train else self.is_val
        return self.get_tensorloader((self.X[chosen], self.y[chosen]), train)

    def fold(self, index: int, k: int) -> "HousePrices":
        """Return the same data with the `index`-th of `k` parts for validation."""
        other = copy.copy(self)
        rows = torch.arange(len(self.X))
        begin, end = len(rows) * index // k, len(rows) * (index + 1) // k
        other.is_val = (rows >= begin) & (rows < end)
        return other


def _complete_rows(table: Table) -> np.ndarray:
    keep = np.ones(len(next(iter(table.values()))), bool)
    for cells in table.values():
        values = _numbers(cells)
        if values is not None:
            keep &= ~np.isnan(values)
    return keep


def k_fold(data: HousePrices, k: int) -> list[HousePrices]:
    """Return `k` copies of the data, each with another part for validation (book, 5.7.3)."""
    if not 2 <= k <= len(data.X):
        raise ValueError(f"k must be between 2 and {len(data.X)}, got {k}")
    return [data.fold(index, k) for index in range(k)]


def log_rmse(predictions: Tensor, prices: Tensor) -> Tensor:
    """The root of the mean squared difference of the logarithms, with predictions of at least 1."""
    difference = predictions.clamp(min=1).log() - prices.log()
    return difference.square().mean().sqrt()
