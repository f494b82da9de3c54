"""A labelled image data set in memory, and the choice of the one to train on."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """A data set split for training and validation.

    Shapes: images [N, 1, height, width] float32 in [0, 1]; labels [N] int64.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor

    def __str__(self) -> str:
        return (
            f"{self.name} from {self.source}: {len(self.train_labels):,} training and "
            f"{len(self.validation_labels):,} validation images"
        )


def scaled(images: Tensor) -> Tensor:
    """Bytes [N, h, w] as float32 in [0, 1], [N, 1, h, w]."""
    return images.to(torch.float32).div_(255).unsqueeze_(1)


def default_images(folder: str | Path | None = None, download: bool = True) -> Images:
    """Return Fashion-MNIST, or, where it cannot be had, the handwritten digits that scikit-learn ships.

    The second happens offline only, and is logged as a warning; a damaged or incomplete data set in the
    folder that the user names is an error. Arguments and errors as for `fashion_mnist`.
    """
    from d2lfast.data.digits import digits
    from d2lfast.data.fashion_mnist import Unavailable, fashion_mnist

    try:
        return fashion_mnist(folder, download)
    except Unavailable as error:
        _log.warning("%s; using scikit-learn's handwritten digits instead", error)
        return digits()
