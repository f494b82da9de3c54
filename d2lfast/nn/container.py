"""A Sequential that runs a layer and the activation behind it as one operator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as _module
from torch.nn.modules.lazy import LazyModuleMixin

from d2lfast._support import supported
from d2lfast.nn.batchnorm import BatchNorm1d, BatchNorm2d, normalize
from d2lfast.nn.conv import Conv2d, convolve
from d2lfast.nn.sync import SyncBatchNorm, synchronize
from d2lfast.nn.unfused import ACTIVATIONS

__all__ = ["Sequential"]


def _convolve(layer: Conv2d, input: Tensor, activation: str) -> Tensor:
    return convolve(layer, input, layer.weight, layer.bias, activation)


# How a layer runs with an activation, and the operator that does it.
_FUSED: dict[type[torch.nn.Module], tuple[Callable[[Any, Tensor, str], Tensor], str]] = {
    Conv2d: (_convolve, "conv2d"),
    BatchNorm1d: (normalize, "batch_norm_act"),
    BatchNorm2d: (normalize, "batch_norm_act"),
    SyncBatchNorm: (synchronize, "batch_norm_act"),
}


_TWINS = (torch.nn.Conv2d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)
_KINDS = (*_TWINS, SyncBatchNorm)


def _watched(layer: torch.nn.Module) -> bool:
    """Whether somebody would see that the layer is not called."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl is not None
        or "forward" in layer.__dict__
    )


def candidates(layer: torch.nn.Module, follower: torch.nn.Module) -> bool:
    """Whether the two are a layer and an activation of the kinds that can be fused."""
    return isinstance(layer, _KINDS) and type(follower) in ACTIVATIONS


def why_not_fused(layer: torch.nn.Module, activation: torch.nn.Module) -> str | None:
    """Why a `Sequential` calls two `candidates` one after the other, or None if it runs them as one."""
    if isinstance(layer, LazyModuleMixin):
        return "the layer before it has not seen its first batch"
    if type(layer) not in _FUSED and type(layer) not in _TWINS:
        return "the layer before it is a subclass: its forward may differ"
    for part, what in ((layer, "the layer before it"), (activation, "it")):
        if _watched(part):
            return f"{what} has hooks, a compiled call or a forward of its own"
    return None


class Sequential(torch.nn.Sequential):
    """`torch.nn.Sequential` in which ReLU, Sigmoid or Tanh behind Conv2d or a batch norm costs no sweep.

    The layers stay what and where they are, so that indices, slices, hooks and `state_dict` keys do. A pair
    is run as one operator only where nobody can see the difference: neither has hooks, and both are exactly
    layers of `d2lfast.nn`, or of `torch.nn` for the activation.
    """

    def forward(self, input: Any) -> Any:
        """Call the layers in order."""
        layers: list[Any] = list(self._modules.values())
        last = len(layers) - 1
        index = 0
        while index <= last:
            layer = layers[index]
            fused = _FUSED.get(type(layer)) if index < last else None
            activation = ACTIVATIONS.get(type(layers[index + 1])) if fused else None
            if (
                fused
                and activation
                and isinstance(input, Tensor)
                and supported(input, fused[1])
                and not (_watched(layer) or _watched(layers[index + 1]))
                and not _module._has_any_global_hook()
            ):
                input = fused[0](layer, input, activation)
                index += 1
            else:
                input = layer(input)
            index += 1
        return input
