"""The family of sigmoids: odd or shifted, monotone, saturating on both sides."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _gudermannian(x: Tensor) -> Tensor:
    return 2 * torch.atan(torch.tanh(x / 2))


# All but the logistic one run from -1 to 1 with slope 1 at zero.
SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": torch.sigmoid,
    "erf": lambda x: torch.erf(math.sqrt(math.pi) / 2 * x),
    "algebraic": lambda x: x / torch.sqrt(1 + x * x),
    "tanh": torch.tanh,
    "atan": lambda x: 2 / math.pi * torch.atan(math.pi / 2 * x),
    "gudermannian": lambda x: 2 / math.pi * _gudermannian(math.pi / 2 * x),
    "softsign": lambda x: x / (1 + x.abs()),
}
