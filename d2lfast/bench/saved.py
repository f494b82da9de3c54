"""Bytes that a training step keeps for its backward pass, and its peak."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2lfast import memory
from d2lfast.nn import unfused

# Memory-bound layers: those whose saved bytes the fused operators reduce.
_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    *unfused.ACTIVATIONS,
    nn.MaxPool2d,
    nn.AvgPool2d,
)


@dataclass(frozen=True)
class Saved:
    """Bytes of distinct storages, without parameters and buffers.

    `elementwise` are those that batch norms, activations and pooling layers keep (some of which other layers
    keep too); `peak` is the most that a whole step had allocated beyond what lives between the steps.
    """

    total: int
    elementwise: int
    peak: int


def _calling_layer() -> nn.Module | None:
    """The innermost layer whose forward is on the stack of the caller.

    Hooks would tell as much, but keep the layers from being fused.
    """
    frame = sys._getframe(2)
    while frame is not None:
        layer = frame.f_locals.get("self", frame.f_locals.get("layer"))
        if isinstance(layer, nn.Module):
            return layer
        frame = frame.f_back  # type: ignore[assignment]
    return None


def saved_bytes(model: nn.Module, step: Callable[[], Tensor]) -> Saved:
    """Measure one training step.

    Args:
        model: whose parameters and buffers do not count.
        step: runs forward and returns the loss.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    elementwise: dict[int, int] = {}
    # Held, so that no address is used twice.
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held.append(tensor.detach())
            storages[storage.data_ptr()] = storage.nbytes()
            if isinstance(_calling_layer(), _ELEMENTWISE):
                elementwise[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step()
    loss.backward()
    del loss
    held.clear()
    with memory.enabled(min_bytes=1):
        model.zero_grad()
        memory.reset_peak()
        before = memory.stats().allocated_bytes
        step().backward()
        peak = memory.stats().peak_allocated_bytes - before
    model.zero_grad()
    return Saved(sum(storages.values()), sum(elementwise.values()), peak)
