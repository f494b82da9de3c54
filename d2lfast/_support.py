"""Which tensors the operators take; everything else goes to torch's own function."""

import torch
from torch import Tensor

from d2lfast import _extension

_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_DEVICES = frozenset({"cpu", "meta", *(["cuda"] if _extension.build_info()["cuda"] else [])})


def supported(tensor: Tensor) -> bool:
    """Whether `tensor` is a dense floating-point tensor on a device that the extension was built for.

    Integer, complex, sparse and quantised tensors and other devices are not: for these the functions of
    `d2lfast.nn.functional` call the function of `torch.nn.functional` of the same name.
    """
    return tensor.dtype in _DTYPES and tensor.device.type in _DEVICES and tensor.layout is torch.strided
