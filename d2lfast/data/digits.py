"""Scikit-learn's handwritten digits, enlarged to Fashion-MNIST's size: real images without a download."""

import torch
from torch.nn import functional as F

from d2lfast.data.images import Images

_TRAIN = 1500


def digits() -> Images:
    """Return 1,797 images of digits (8x8, enlarged to 28x28), always the same 1,500 for training.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The handwritten digits come with scikit-learn: pip install 'd2lfast[data]'", name=error.name
        ) from error
    raw = load_digits()
    small = torch.from_numpy(raw.images).to(torch.float32).div_(16).unsqueeze_(1)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return Images(
        name="handwritten digits (8x8, resized to 28x28)",
        source="scikit-learn",
        classes=tuple(str(digit) for digit in range(10)),
        train_images=images[:_TRAIN],
        train_labels=labels[:_TRAIN],
        validation_images=images[_TRAIN:],
        validation_labels=labels[_TRAIN:],
    )
