"""Batches of tensors that lie in memory or in a mapped file."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class TensorLoader:
    """Batches of tensors of the same length; the last one may be smaller.

    Args:
        tensors: the data, [N, ...] each, on one device.
        batch_size: examples per batch.
        shuffle: a new random order in every pass.
        generator: source of the orders, on the CPU; two loaders with generators of the same seed go through
            the same orders. Default: torch's own generator.
        transform: what is done with the first tensor of every batch, for example scaling or augmentation.

    Raises:
        ValueError: there are no tensors, their lengths differ, or the batch size is not positive.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len({len(tensor) for tensor in tensors}) != 1:
            raise ValueError(f"expected tensors of one length, got {[len(tensor) for tensor in tensors]}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = generator
        self.transform = transform

    def to(self, device: torch.device | str) -> "TensorLoader":
        """Return the same batches from copies of the tensors on another device."""
        return TensorLoader(
            *(tensor.to(device) for tensor in self.tensors),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            generator=self.generator,
            transform=self.transform,
        )

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def examples(self) -> int:
        """The number of examples in one pass."""
        return len(self.tensors[0])

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for first, *others in self._batches():
            yield (self.transform(first) if self.transform else first, *others)

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        if not self.shuffle:
            yield from zip(*(tensor.split(self.batch_size) for tensor in self.tensors))
            return
        order = torch.randperm(self.examples, generator=self.generator).to(self.tensors[0].device)
        for part in order.split(self.batch_size):
            yield tuple(tensor.index_select(0, part) for tensor in self.tensors)
