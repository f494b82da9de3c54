"""Fashion-MNIST from a local folder or its public mirrors."""

import logging
import os
from pathlib import Path

from d2lfast._folders import cache_folder
from d2lfast.data.download import Remote, fetch
from d2lfast.data.idx import read_idx
from d2lfast.data.images import Images, scaled

_log = logging.getLogger(__name__)

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# The small files first: where there is no way out, that shows at once.
FILES = {
    "train-labels-idx1-ubyte": Remote("25c81989df183df01b3e8a0aad5dffbe", 29_515),
    "t10k-labels-idx1-ubyte": Remote("bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    "t10k-images-idx3-ubyte": Remote("bef4ecab320f06d8554ea6380940ec79", 4_422_102),
    "train-images-idx3-ubyte": Remote("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
}
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_SUBFOLDERS = ("fashion-mnist", "FashionMNIST/raw", "")


class Unavailable(OSError):
    """Fashion-MNIST is neither on this machine nor to be downloaded."""


def fashion_mnist(folder: str | Path | None = None, download: bool = True) -> Images:
    """Return Fashion-MNIST; a part of it, if that is what the files hold.

    Args:
        folder: where the four IDX files lie, gzipped or not: itself, or its subfolder `fashion-mnist` or
            `FashionMNIST/raw` (as torchvision has it). Default: the environment variable D2LFAST_DATA.
        download: if the folder holds none of them, take those downloaded before, or download them to the
            user's cache folder.

    Raises:
        FileNotFoundError: the folder holds some of the files, but not all.
        ValueError: a file of the folder is damaged, or images and labels do not fit; it is named.
        Unavailable: there is no such data set, and it cannot be downloaded.
    """
    if folder is None:
        folder = os.environ.get("D2LFAST_DATA") or None
    if folder is not None:
        paths = find(Path(folder))
        if paths:
            return _read(paths)
        _log.warning("Fashion-MNIST is not in %s", folder)
    if not download:
        raise Unavailable(
            f"Fashion-MNIST was not found in {folder}" if folder else "No folder of data was named"
        )
    return _from_cache(cache_folder() / "fashion-mnist")


def find(folder: Path) -> dict[str, Path]:
    """The four files in `folder` or one of its known subfolders; empty if there are none."""
    for subfolder in _SUBFOLDERS:
        base = folder / subfolder
        paths = {
            name: path for name in FILES for path in (base / name, base / f"{name}.gz") if path.is_file()
        }
        if len(paths) == len(FILES):
            return paths
        if paths:
            missing = ", ".join(sorted(name for name in FILES if name not in paths))
            raise FileNotFoundError(f"Fashion-MNIST in {base} is incomplete: no {missing} (.gz)")
    return {}


def _from_cache(cache: Path) -> Images:
    paths = {name: cache / f"{name}.gz" for name in FILES}
    for name, path in paths.items():
        if not FILES[name].matches(path):
            if path.exists():
                _log.warning("%s is damaged and is downloaded again", path)
            try:
                fetch([f"{mirror}{name}.gz" for mirror in MIRRORS], path, FILES[name])
            except OSError as error:
                raise Unavailable(f"Fashion-MNIST could not be downloaded ({error})") from error
    return _read(paths)


def _read(paths: dict[str, Path]) -> Images:
    tensors = {name: read_idx(path, dims=3 if "images" in name else 1) for name, path in paths.items()}
    for part in ("train", "t10k"):
        labels_path, images_path = paths[f"{part}-labels-idx1-ubyte"], paths[f"{part}-images-idx3-ubyte"]
        labels, images = tensors[f"{part}-labels-idx1-ubyte"], tensors[f"{part}-images-idx3-ubyte"]
        if tuple(images.shape[1:]) != (28, 28):
            raise ValueError(
                f"{images_path} holds images of {images.shape[1]}x{images.shape[2]}, expected 28x28"
            )
        if len(labels) != len(images):
            raise ValueError(
                f"{labels_path} holds {len(labels)} labels, but {images_path} {len(images)} images"
            )
        if len(labels) == 0:
            raise ValueError(f"{images_path} holds no images")
        if int(labels.max()) >= len(CLASSES):
            raise ValueError(f"{labels_path} is damaged: it has a label {int(labels.max())}, expected 0 to 9")
    return Images(
        name="Fashion-MNIST",
        source=str(paths["train-images-idx3-ubyte"].parent),
        classes=CLASSES,
        train_images=scaled(tensors["train-images-idx3-ubyte"]),
        train_labels=tensors["train-labels-idx1-ubyte"].long(),
        validation_images=scaled(tensors["t10k-images-idx3-ubyte"]),
        validation_labels=tensors["t10k-labels-idx1-ubyte"].long(),
    )
