"""Images as the book's data sets: resized once, kept as bytes, scaled batch by batch."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d2lfast._atomic import replacing
from d2lfast._folders import cache_folder
from d2lfast.data.fashion_mnist import CLASSES, fashion_mnist
from d2lfast.data.images import Images
from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule

__all__ = ["FashionMNIST", "ImageData", "ImageSet"]

# Below this many bytes resizing again is quicker than a file is worth.
_CACHE_BYTES = 32 << 20
_CHUNK = 512


class ImageSet(torch.utils.data.Dataset):
    """Images and labels by number, as torchvision's data sets give them.

    Attributes:
        data: [N, C, height, width], bytes or floating-point numbers in [0, 1].
        targets: [N] int64.
        classes: the names of the labels.
    """

    def __init__(self, data: Tensor, targets: Tensor, classes: Sequence[str]) -> None:
        self.data, self.targets, self.classes = data, targets, tuple(classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_float(self.data[index]), int(self.targets[index])


class ImageData(DataModule):
    """An image data set in memory, at any size.

    Args:
        images: the data set.
        batch_size: examples per batch; the last one may be smaller.
        resize: height and width; images are resized bilinearly to bytes, and large results kept in a file in
            the user's cache folder that is mapped into memory.
        augment: what is done with every training batch [N, C, height, width] in [0, 1].
    """

    def __init__(
        self,
        images: Images,
        batch_size: int = 64,
        resize: tuple[int, int] = (28, 28),
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["images"])
        self.classes = images.classes
        self.name, self.source = images.name, images.source
        self.train = ImageSet(resized(images.train_images, resize), images.train_labels, images.classes)
        self.val = ImageSet(
            resized(images.validation_images, resize), images.validation_labels, images.classes
        )

    def text_labels(self, indices: Sequence[int] | Tensor) -> list[str]:
        """Return the names of labels."""
        return [self.classes[int(index)] for index in indices]

    def get_dataloader(self, train: bool) -> TensorLoader:
        """Return batches of images [N, C, height, width] float32 in [0, 1] and labels [N] int64."""
        part = self.train if train else self.val
        transform: Callable[[Tensor], Tensor] = to_float
        if train and self.augment is not None:
            augment = self.augment

            def transform(batch: Tensor) -> Tensor:
                return augment(to_float(batch))

        return TensorLoader(
            part.data, part.targets, batch_size=self.batch_size, shuffle=train, transform=transform
        )

    def visualize(
        self, batch: Sequence[Tensor], nrows: int = 1, ncols: int = 8, labels: Sequence[str] = ()
    ) -> Any:
        """Show the first images of a batch with their names, or `labels`; return the figure."""
        from d2lfast.data.show import show_images

        X, y = batch[0], batch[1]
        return show_images(X.squeeze(1), nrows, ncols, titles=list(labels) or self.text_labels(y))


class FashionMNIST(ImageData):
    """Fashion-MNIST (book, 4.2): 60,000 training and 10,000 validation images of ten kinds of clothes.

    Args:
        batch_size: examples per batch.
        resize: height and width.
        root: folder with the four IDX files; default as for `d2lfast.data.fashion_mnist`.
        download: fetch the files if they are not there.

    Raises:
        OSError: the files are not there, and cannot be had; the message says where to put them.
    """

    def __init__(
        self,
        batch_size: int = 64,
        resize: tuple[int, int] = (28, 28),
        *,
        root: str | Path | None = None,
        download: bool = True,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(fashion_mnist(root, download), batch_size, resize, augment)
        assert self.classes == CLASSES


def to_float(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; floating-point images as they are."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def resized(images: Tensor, size: int | Sequence[int]) -> Tensor:
    """Return images [N, C, h, w] at `size`; as they are if they have it, else as bytes.

    Large results lie in a file of the user's cache folder, named by their content, which is mapped.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == (height, width):
        return images
    shape = (len(images), images.shape[1], height, width)
    if np.prod(shape) < _CACHE_BYTES:
        out = np.empty(shape, np.uint8)
        _resize_into(out, images)
        return torch.from_numpy(out)
    digest = hashlib.sha1(images.contiguous().numpy().tobytes(), usedforsecurity=False)
    path = cache_folder() / "resized" / f"{digest.hexdigest()[:16]}-{height}x{width}.npy"
    if not path.exists():
        with replacing(path) as temporary:
            mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            _resize_into(mapped, images)
            mapped.flush()
            del mapped
    try:
        mapped = np.load(path, mmap_mode="c")
        if mapped.shape != shape or mapped.dtype != np.uint8:
            raise ValueError(f"shape {mapped.shape}")
    except (ValueError, OSError, EOFError):
        # Cut off or overwritten since: made again.
        path.unlink()
        return resized(images, size)
    return torch.from_numpy(mapped)


def _resize_into(out: np.ndarray, images: Tensor) -> None:
    for begin in range(0, len(images), _CHUNK):
        part = to_float(images[begin : begin + _CHUNK])
        part = F.interpolate(part, size=out.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
        out[begin : begin + _CHUNK] = part.mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()
