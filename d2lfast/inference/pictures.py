"""What a convolutional network has learned, as pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2lfast.data.show import image_grid

__all__ = ["feature_maps", "filters", "first_convolution", "predictions"]

_MOST = 64


def first_convolution(net: nn.Module) -> nn.Conv2d:
    """The first convolution of a network.

    Raises:
        ValueError: it has none.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise ValueError("the network has no convolution, so there are no filters to show")


def filters(net: nn.Module) -> Any:
    """Return a figure of the first layer's filters, averaged over input channels other than 1 or 3."""
    weight = first_convolution(net).weight.detach().cpu()[:_MOST]
    if weight.shape[1] not in (1, 3):
        weight = weight.mean(1, keepdim=True)
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    scaled = (weight - low) / (high - low).clamp(min=1e-12)
    return _grid(list(scaled if weight.shape[1] == 3 else scaled[:, 0]), 1.0)


@torch.no_grad()
def feature_maps(net: nn.Module, image: Tensor) -> Any:
    """Return a figure of the first layer's output for an image [C, H, W], which comes first."""
    output = first_convolution(net)(image[None])[0][:_MOST]
    shown = image[0] if image.shape[0] == 1 else image
    return _grid([shown, *output], 1.2)


@torch.no_grad()
def predictions(net: nn.Module, images: Tensor, labels: Tensor, classes: Sequence[str]) -> Any:
    """Return a figure of images [N, C, H, W] with their labels above the guesses."""
    guessed = net(images).argmax(1)
    titles = [f"{classes[int(y)]}\n{classes[int(g)]}" for y, g in zip(labels, guessed)]
    shown = list(images[:, 0] if images.shape[1] == 1 else images)
    return _grid(shown, 1.6, titles)


def _grid(images: list[Any], scale: float, titles: Sequence[str] | None = None) -> Any:
    columns = min(8, len(images))
    return image_grid(images, -(-len(images) // columns), columns, titles, scale)[0].figure
