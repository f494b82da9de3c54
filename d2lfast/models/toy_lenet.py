"""The functional network that the book trains on several devices (13.5)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.nn import functional as F


def toy_lenet(
    X: Tensor,
    params: Sequence[Tensor],
    *,
    conv2d: Callable[..., Tensor] = F.conv2d,
    avg_pool2d: Callable[..., Tensor] = F.avg_pool2d,
) -> Tensor:
    """Return logits [N, 10] of images [N, 1, 28, 28].

    Args:
        X: the images.
        params: weights and biases of two convolutions and two linear layers, whose weights are (in, out).
        conv2d, avg_pool2d: ours, or torch's own.
    """
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    h = avg_pool2d(torch.relu(conv2d(X, w1, b1)), (2, 2), (2, 2))
    h = avg_pool2d(torch.relu(conv2d(h, w2, b2)), (2, 2), (2, 2))
    h = torch.relu(h.flatten(1) @ w3 + b3)
    return h @ w4 + b4


class ToyLeNet(nn.Module):
    """`toy_lenet` with its 129,068 parameters: weights from N(0, 0.01^2), zero biases.

    Args:
        num_classes: size of the output.
        in_channels: channels of the input.
        layers: namespace whose `functional` computes, `d2lfast.nn` or `torch.nn`.

    Shapes: [N, in_channels, 28, 28] -> [N, num_classes], logits.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> None:
        super().__init__()
        self.functions = {name: getattr(layers.functional, name) for name in ("conv2d", "avg_pool2d")}
        shapes = ((20, in_channels, 3, 3), (50, 20, 5, 5), (800, 128), (128, num_classes))
        self.params = nn.ParameterList()
        for shape in shapes:
            outputs = shape[0] if len(shape) == 4 else shape[1]
            self.params += [torch.randn(shape) * 0.01, torch.zeros(outputs)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return toy_lenet(x, list(self.params), **self.functions)
