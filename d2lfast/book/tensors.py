"""The book's own names for functions of torch."""

from typing import Any

import torch
from torch import Tensor, nn

nn_Module = nn.Module
ones, zeros, ones_like, zeros_like = torch.ones, torch.zeros, torch.ones_like, torch.zeros_like
tensor, arange, rand, randn, normal = torch.tensor, torch.arange, torch.rand, torch.randn, torch.normal
matmul, concat, stack, batch_matmul = torch.matmul, torch.cat, torch.stack, torch.bmm
exp, log, tanh, sigmoid, abs = torch.exp, torch.log, torch.tanh, torch.sigmoid, torch.abs
sin, sinh, cos, cosh = torch.sin, torch.sinh, torch.cos, torch.cosh
eye, linspace, meshgrid = torch.eye, torch.linspace, torch.meshgrid
int32, int64, float32 = torch.int32, torch.int64, torch.float32


def numpy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The tensor as an array, without its gradient."""
    return x.detach().numpy(*args, **kwargs)


def _method(name: str, alias: str) -> Any:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = alias
    call.__doc__ = f"`x.{name}(...)`."
    return call


size = _method("numel", "size")
reshape = _method("reshape", "reshape")
to = _method("to", "to")
reduce_sum = _method("sum", "reduce_sum")
reduce_mean = _method("mean", "reduce_mean")
argmax = _method("argmax", "argmax")
astype = _method("type", "astype")
transpose = _method("t", "transpose")
expand_dims = _method("unsqueeze", "expand_dims")
swapaxes = _method("swapaxes", "swapaxes")
repeat = _method("repeat", "repeat")

__all__ = [
    "abs", "arange", "argmax", "astype", "batch_matmul", "concat", "cos", "cosh", "exp", "expand_dims", "eye",
    "float32", "int32", "int64", "linspace", "log", "matmul", "meshgrid", "nn_Module", "normal", "numpy",
    "ones", "ones_like", "rand", "randn", "reduce_mean", "reduce_sum", "repeat", "reshape", "sigmoid", "sin",
    "sinh", "size", "stack", "swapaxes", "tanh", "tensor", "to", "transpose", "zeros", "zeros_like",
]  # fmt: skip
