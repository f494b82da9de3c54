"""Random changes of training images: flips, crops, colours. For batches of tensors, without torchvision.

Every image of a batch is changed on its own, by torch's generator. Images are [N, C, H, W] float in [0, 1].
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ColorJitter",
    "Compose",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomVerticalFlip",
]

_GRAY = (0.299, 0.587, 0.114)


class Compose:
    """One change after the other."""

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, images: Tensor) -> Tensor:
        """Change a batch."""
        for transform in self.transforms:
            images = transform(images)
        return images


class _Flip:
    _dim: int

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor) -> Tensor:
        """Mirror every image with probability `p`."""
        chosen = torch.rand(len(images), device=images.device) < self.p
        return torch.where(chosen[:, None, None, None], images.flip(self._dim), images)


class RandomHorizontalFlip(_Flip):
    """Left becomes right with probability `p`."""

    _dim = 3


class RandomVerticalFlip(_Flip):
    """Top becomes bottom with probability `p`."""

    _dim = 2


class RandomCrop:
    """Shift every image by up to `padding` pixels; what comes in is black."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, images: Tensor) -> Tensor:
        """Shift a batch."""
        n, _, h, w = images.shape
        p = self.padding
        padded = F.pad(images, (p, p, p, p))
        top, left = torch.randint(2 * p + 1, (2, n), device=images.device)
        rows = (top[:, None] + torch.arange(h, device=images.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(w, device=images.device))[:, None, None, :]
        item = torch.arange(n, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return padded[item, channel, rows, columns]


class RandomResizedCrop:
    """Cut out a part of random place, area and shape, and enlarge it to `size` (book, 14.1).

    Args:
        size: height and width of the result.
        scale: least and largest area, as a share of the image.
        ratio: least and largest width over height.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size, self.scale, self.ratio = size, scale, ratio

    def __call__(self, images: Tensor) -> Tensor:
        """Crop a batch."""
        n, _, h, w = images.shape
        device = images.device
        area = torch.empty(n, device=device).uniform_(*self.scale)
        ratio = torch.empty(n, device=device).uniform_(*map(math.log, self.ratio)).exp()
        # Shares of width and height in [-1, 1] coordinates; what would be larger than the image is cut.
        width = (area * ratio * h / w).sqrt().clamp(max=1)
        height = (area / ratio * w / h).sqrt().clamp(max=1)
        x = (torch.rand(n, device=device) * 2 - 1) * (1 - width)
        y = (torch.rand(n, device=device) * 2 - 1) * (1 - height)
        zero = torch.zeros(n, device=device)
        theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(theta, [n, images.shape[1], *self.size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


class ColorJitter:
    """Change brightness, contrast, saturation and hue at random, in this order.

    Args:
        brightness, contrast, saturation: the factor is drawn from [1 - value, 1 + value].
        hue: the turn is drawn from [-hue, hue], of which 0.5 is half the circle of colours.

    Saturation and hue leave images of one channel as they are.
    """

    def __init__(
        self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0
    ) -> None:
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must be between 0 and 0.5, got {hue}")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, images: Tensor) -> Tensor:
        """Change a batch."""
        if self.brightness:
            images = (images * _factor(images, self.brightness)).clamp(0, 1)
        if self.contrast:
            mean = _gray(images).mean((1, 2, 3), keepdim=True)
            images = (mean + (images - mean) * _factor(images, self.contrast)).clamp(0, 1)
        if images.shape[1] == 3:
            if self.saturation:
                gray = _gray(images)
                images = (gray + (images - gray) * _factor(images, self.saturation)).clamp(0, 1)
            if self.hue:
                images = _turn(images, self.hue)
        return images


def _factor(images: Tensor, value: float) -> Tensor:
    return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(max(0.0, 1 - value), 1 + value)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = torch.tensor(_GRAY, device=images.device, dtype=images.dtype)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _turn(images: Tensor, hue: float) -> Tensor:
    """Turn the hue (HSV) of every image."""
    turn = torch.empty(len(images), 1, 1, device=images.device).uniform_(-hue, hue)
    high, low = images.amax(1), images.amin(1)
    r, g, b = images.unbind(1)
    spread = (high - low).clamp(min=1e-12)
    h = torch.where(
        high == r, (g - b) / spread, torch.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread)
    )
    h = h / 6 + turn
    # The channels of a hue are one triangle wave, shifted (Smith, 1978, in its closed form).
    k = torch.stack([(shift + h * 6) % 6 for shift in (5.0, 3.0, 1.0)], 1)
    wave = torch.minimum(k, 4 - k).clamp(0, 1)
    return high.unsqueeze(1) - (high - low).unsqueeze(1) * wave
