"""CIFAR-10's archive as a tree of pictures, a folder per class, and such trees as data sets."""

import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["CLASSES", "ImageFolder", "extract_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
_ARRAY = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
          ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    """Builds what the batches are made of, dictionaries and arrays, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return super().find_class(module, name)


def extract_cifar10(archive: str | Path, folder: str | Path) -> dict[str, int]:
    """Write every image as `folder/{train,test}/<class>/<number>.png`; return how many of each part.

    Args:
        archive: `cifar-10-python.tar.gz`, or the folder it was unpacked to.
        folder: is made if it is not there.

    Raises:
        FileNotFoundError: there is no archive, or no batch in it.
        ValueError: a batch is damaged; the message names it.
        ModuleNotFoundError: pillow is not installed.
    """
    Image = _pillow()
    folder = Path(folder)
    counts = {"train": 0, "test": 0}
    for name, content in _members(Path(archive)):
        part = _BATCHES[name]
        images, labels = _batch(f"{archive}, {name}", content)
        for image, label in zip(images, labels):
            path = folder / part / CLASSES[label] / f"{counts[part]:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            counts[part] += 1
    if not sum(counts.values()):
        raise FileNotFoundError(f"{archive} holds no batch of CIFAR-10 ({', '.join(_BATCHES)})")
    return counts


def _members(archive: Path) -> Iterator[tuple[str, Any]]:
    if archive.is_dir():
        for name in _BATCHES:
            for path in sorted(archive.rglob(name)):
                with open(path, "rb") as file:
                    yield name, file
        return
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in _BATCHES and member.isfile():
                    yield name, tar.extractfile(member)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error})") from error


def _batch(where: str, file: Any) -> tuple[np.ndarray, list[int]]:
    """The images [N, 32, 32, 3] and labels of a batch."""
    try:
        content = _ArraysOnly(file, encoding="bytes").load()
        data, labels = np.asarray(content[b"data"]), [int(label) for label in content[b"labels"]]
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if data.dtype != np.uint8 or len(images) != len(labels) or not all(0 <= n < 10 for n in labels):
            raise ValueError("images and labels do not fit")
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where} is damaged ({error})") from error
    return np.ascontiguousarray(images), labels


class ImageFolder(Dataset):
    """The pictures below a folder; the name of the subfolder is the class.

    Args:
        root: the folder.
        size: height and width that they are resized to; None leaves them.
        transform: what is done with each picture, [3, height, width] in [0, 1], for example augmentation.

    Attributes:
        classes: the subfolders' names, sorted.
        samples: pairs of path and label.

    Raises:
        FileNotFoundError: there are no pictures.
        ModuleNotFoundError: pillow is not installed.
    """

    _KINDS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})

    def __init__(
        self,
        root: str | Path,
        size: tuple[int, int] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._image = _pillow()
        self.size = size
        self.transform = transform
        folders = sorted(path for path in Path(root).glob("*") if path.is_dir())
        self.classes = tuple(folder.name for folder in folders)
        self.samples = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in self._KINDS
        ]
        if not self.samples:
            raise FileNotFoundError(f"There are no pictures in the subfolders of {root}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            image = self._image.open(path).convert("RGB")
            if self.size is not None:
                image = image.resize(self.size[::-1], self._image.Resampling.BILINEAR)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        picture = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(255)
        return picture if self.transform is None else self.transform(picture), label


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pictures need pillow: pip install 'd2lfast[plot]'", name=error.name
        ) from error
    return Image
