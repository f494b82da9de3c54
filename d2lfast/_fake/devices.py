"""The check of devices that the shape functions share."""

import torch
from torch import Tensor


def check_same_device(*tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all tensors that were given are on one device."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    torch._check(
        len(devices) <= 1,
        lambda: f"Expected all tensors to be on the same device, but got {sorted(map(str, devices))}",
    )
