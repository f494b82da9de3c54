"""The book's base class of data sets (3.2.3)."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from d2lfast.data.loader import TensorLoader
from d2lfast.hyperparameters import HyperParameters

__all__ = ["DataModule"]

_ALL = slice(0, None)


class DataModule(HyperParameters):
    """A data set that gives batches for training and for validation.

    Args:
        root: folder that files are read from and downloaded to.
        num_workers: for subclasses that build a `torch.utils.data.DataLoader`; data in memory need none.
    """

    def __init__(self, root: str = "../data", num_workers: int = 4) -> None:
        self.save_hyperparameters()

    def get_dataloader(self, train: bool) -> Iterable[Any]:
        """Return the batches of the training or of the validation part; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} must define get_dataloader")

    def train_dataloader(self) -> Iterable[Any]:
        """Return the batches to train on."""
        return self.get_dataloader(train=True)

    def val_dataloader(self) -> Iterable[Any] | None:
        """Return the batches to validate on, or None."""
        return self.get_dataloader(train=False)

    def get_tensorloader(self, tensors: Sequence[Tensor], train: bool, indices: slice = _ALL) -> TensorLoader:
        """Return batches of `self.batch_size` rows of `tensors[...][indices]`, shuffled for training."""
        batch_size: int = self.batch_size  # type: ignore[attr-defined]
        return TensorLoader(*(tensor[indices] for tensor in tensors), batch_size=batch_size, shuffle=train)
