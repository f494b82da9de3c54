"""Which tensors the operators take; everything else goes to torch's own function."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from d2lfast import _extension

_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})

_extension.load()


def _with_kernels(key: str) -> frozenset[str | None]:
    """The operators that have kernels for a dispatch key, those of their gradients included.

    Public ones, and private ones that have a gradient of their own, without the underscore. None stands for
    all operators together.
    """
    names = [n.removeprefix("d2lfast::") for n in torch._C._dispatch_get_all_op_names() if "d2lfast::" in n]
    present = {
        n for n in names if torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"d2lfast::{n}", key)
    }
    # The public layers are composed of one private operator.
    if "_recurrent_layer" not in present:
        present -= {n for n in names if n.endswith("_layer")}
    families = {n.removeprefix("_") for n in names if not n.startswith("_") or f"{n}_backward" in names}
    complete: set[str | None] = {
        name for name in families if all(n in present for n in names if n.removeprefix("_").startswith(name))
    }
    return frozenset(complete | ({None} if len(complete) == len(families) else set()))


_OPERATORS = {
    device: _with_kernels(key) for device, key in (("cpu", "CPU"), ("meta", "Meta"), ("cuda", "CUDA"))
}
_NONE: frozenset[str | None] = frozenset()
_is_compiling = torch.compiler.is_compiling
_is_transformed = torch._C._are_functorch_transforms_active


def has_kernels(operator: str | None, device_type: str) -> bool:
    """Whether this build can run an operator of `torch.ops.d2lfast` (None: every one) on a kind of device."""
    return operator in _OPERATORS.get(device_type, _NONE)


def transformed() -> bool:
    """Whether code runs under `torch.func` (`grad`, `vmap`, `jvp`, ...) or forward-mode differentiation.

    torch differentiates and batches its own operators there and none of ours, so that they are not called.
    """
    return _is_transformed() or forward_ad._current_level >= 0


def traced() -> bool:
    """Whether code is compiled or transformed."""
    return _is_compiling() or transformed()


def supported(tensor: Tensor, operator: str | None = None) -> bool:
    """Whether the operator computes `tensor`: dense, floating-point, on a device for which it has kernels.

    Integer, complex, sparse and quantised tensors, other devices and what is `transformed` are not: for these
    the functions of `d2lfast.nn.functional` call the function of `torch.nn.functional` of the same name. Nor
    is what is no tensor, of which torch's functions complain.
    """
    return (
        getattr(tensor, "dtype", None) in _DTYPES
        and operator in _OPERATORS.get(tensor.device.type, _NONE)
        and tensor.layout is torch.strided
        and not transformed()
    )
