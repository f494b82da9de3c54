"""Swapping the layers of a model for those of `d2lfast.nn`, and back.

A layer is swapped if its class is exactly one of `torch.nn`'s that `d2lfast.nn` replaces. Subclasses are left
alone, because their `forward` may do something else; so are modules whose class a parametrization has
changed, wrappers that hold compiled, scripted or replicated code (convert first, wrap afterwards), and loss
layers, which are no part of a model. A Sequential becomes `d2lfast.nn.Sequential`, which runs a convolution
or batch norm and the activation behind it as one operator. `report` says which layers were swapped or fused,
and why others were not.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import parametrize

import d2lfast.nn
from d2lfast._clone import clone_modules
from d2lfast._support import has_kernels
from d2lfast.nn import unfused
from d2lfast.nn.container import candidates, why_not_fused

__all__ = ["Report", "Row", "convert", "report", "revert"]

# The layers that are swapped, and the operator that they run on; None: several.
LAYERS = {
    "Conv2d": "conv2d",
    "LazyConv2d": "conv2d",
    "MaxPool2d": "max_pool2d",
    "AvgPool2d": "avg_pool2d",
    "AdaptiveAvgPool2d": "adaptive_avg_pool2d",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d",
    "BatchNorm1d": "batch_norm_act",
    "BatchNorm2d": "batch_norm_act",
    "LazyBatchNorm1d": "batch_norm_act",
    "LazyBatchNorm2d": "batch_norm_act",
    "SyncBatchNorm": "batch_norm_act",
    "RNNCell": "rnn_cell",
    "GRUCell": "gru_cell",
    "LSTMCell": "lstm_cell",
    "RNN": "rnn_layer",
    "GRU": "gru_layer",
    "LSTM": "lstm_layer",
}
FUSED = {"BatchNormAct2d": "batch_norm_act", "Conv2dAct": "conv2d", "ConvNormAct": None}


def _twins(fuse: bool = True) -> dict[type[nn.Module], type[nn.Module]]:
    pairs = {getattr(nn, name): getattr(d2lfast.nn, name) for name in LAYERS}
    pairs |= {getattr(unfused, name): getattr(d2lfast.nn, name) for name in FUSED}
    if fuse:
        pairs[nn.Sequential] = d2lfast.nn.Sequential
    return {native: ours for native, ours in pairs.items() if native is not ours}


def convert(module: nn.Module, inplace: bool = False, fuse: bool = True) -> nn.Module:
    """Return `module` with its layers swapped for the faster ones of `d2lfast.nn`.

    Args:
        module: any model, or a single layer.
        inplace: swap within `module` and return it. Otherwise a new tree of modules is returned and `module`
            is left as it was; the two share their parameters and buffers, so that training one trains both.
        fuse: run activations within a Sequential together with the layer before them.

    `state_dict` keys, hooks, training flags, devices, dtypes, `requires_grad` and additional attributes stay;
    a layer that is used at several places stays one layer. ScriptModules, compiled modules and DataParallel
    wrappers are left alone and shared: convert the model inside before wrapping it.
    """
    return _swap(module, _twins(fuse), inplace)


def revert(module: nn.Module, inplace: bool = False) -> nn.Module:
    """Return `module` with the layers of `d2lfast.nn` swapped for those of `torch.nn`; undoes `convert`."""
    return _swap(module, {ours: native for native, ours in _twins().items()}, inplace)


def _swap(module: nn.Module, pairs: dict[type[nn.Module], type[nn.Module]], inplace: bool) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if not inplace:
        module = clone_modules(module, [m for _, m in _walk(module) if _wrapper(m) is None])
    for _, layer in list(_walk(module)):
        if type(layer) in pairs and "forward" not in vars(layer):
            # The twins add no state of their own: changing the class keeps all that refers to the layer.
            layer.__class__ = pairs[type(layer)]
    return module


def _walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every path to every module, without what is inside a wrapper."""
    yield path, module
    if _wrapper(module) is None:
        for name, child in module._modules.items():
            if child is not None:
                yield from _walk(child, f"{path}.{name}" if path else name)


def _wrapper(module: nn.Module) -> str | None:
    """Why the inside of `module` must not be touched, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by TorchScript: convert the model before scripting it"
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "replicates what it holds: convert the model before wrapping it"
    # Looked up without importing: a model of such a class has imported its module.
    for where, name in [
        ("torch._dynamo.eval_frame", "OptimizedModule"),
        ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ]:
        kind = getattr(sys.modules.get(where), name, None)
        if kind is not None and isinstance(module, kind):
            return f"is wrapped in {name}: convert the model before wrapping it"
    return None


@dataclass(frozen=True)
class Row:
    """One layer: its path in the model, its type, `"swapped"`, `"fused"` or `"native"`, and why the last.

    A fused layer runs in the operator of the layer before it.
    """

    path: str
    type: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The layers of a model; printed, a table."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def swapped(self) -> tuple[Row, ...]:
        """The rows of layers that run on d2lfast's operators."""
        return tuple(row for row in self.rows if row.status == "swapped")

    @property
    def fused(self) -> tuple[Row, ...]:
        """The rows of activations that run in the operator of the layer before them."""
        return tuple(row for row in self.rows if row.status == "fused")

    @property
    def native(self) -> tuple[Row, ...]:
        """The rows of layers that run on torch's own operators."""
        return tuple(row for row in self.rows if row.status == "native")

    def __str__(self) -> str:
        cells = [("layer", "type", "status", "reason")]
        cells += [(row.path or "(root)", row.type, row.status, row.reason) for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        lines = [
            "  ".join([*(text.ljust(width) for text, width in zip(line, widths)), line[3]]).rstrip()
            for line in cells
        ]
        fused = f"{len(self.fused)} fused, " if self.fused else ""
        return "\n".join([*lines, f"{len(self.swapped)} swapped, {fused}{len(self.native)} native"])


def report(module: nn.Module) -> Report:
    """Say for every layer of `module` whether it is one of `d2lfast.nn`'s, and if not, why.

    A row stands for a path: a layer that is used at two places has two rows. Containers have none.
    """
    twins = _twins()
    rows = []
    device = next((t.device.type for t in (*module.parameters(), *module.buffers())), "cpu")
    fusions = _fusions(module, twins, device)
    for path, layer in _walk(module):
        row = fusions.get(path) or _row(path, layer, twins)
        if row is not None and row.status == "swapped" and (reason := _lacks_kernels(layer, device)):
            row = Row(path, row.type, "native", reason)
        if row is not None:
            rows.append(row)
    return Report(tuple(rows))


def _fusions(module: nn.Module, twins: dict[type[nn.Module], type[nn.Module]], device: str) -> dict[str, Row]:
    """Rows of the activations that stand behind a layer in a Sequential, by their paths."""
    rows = {}
    for path, parent in _walk(module):
        if type(parent) not in (nn.Sequential, d2lfast.nn.Sequential):
            continue
        # Not named_children, which leaves out repetitions.
        children = [
            (f"{path}.{name}" if path else name, child)
            for name, child in parent._modules.items()
            if child is not None
        ]
        for (before, layer), (own, activation) in pairwise(children):
            if not candidates(layer, activation):
                continue
            kind = _type_name(type(activation))
            reason = why_not_fused(layer, activation)
            if reason is None and _lacks_kernels(layer, device):
                reason = "torch computes the layer before it"
            converted = type(parent) is d2lfast.nn.Sequential and type(layer) in twins.values()
            if reason is not None:
                rows[own] = Row(own, kind, "native", f"not fused: {reason}")
            elif converted and "forward" not in vars(parent):
                rows[own] = Row(own, kind, "fused", f"runs in {before}")
            else:
                rows[own] = Row(own, kind, "native", "convert() would fuse it")
    return rows


def _row(path: str, layer: nn.Module, twins: dict[type[nn.Module], type[nn.Module]]) -> Row | None:
    kind = type(layer)
    name = _type_name(kind)
    ours = tuple(twins.values())
    if isinstance(layer, (nn.Sequential, unfused.ConvNormAct)) and layer._modules:
        return None
    if kind in ours:
        if "forward" in vars(layer):
            return Row(path, name, "native", "its forward was replaced on the instance")
        return Row(path, name, "swapped")
    reason = _wrapper(layer)
    if reason is None and kind in twins:
        if "forward" in vars(layer):
            reason = "its forward was replaced on the instance"
        else:
            reason = "convert() would swap it"
    if reason is None and isinstance(layer, ours):
        return Row(path, name, "swapped", "a subclass: its own forward decides what runs")
    if reason is None and isinstance(layer, tuple(twins)):
        base = next(base for base in kind.__mro__ if base in twins)
        if parametrize.is_parametrized(layer):
            reason = f"a parametrization changed its class from {_type_name(base)}"
        else:
            reason = f"a subclass of {_type_name(base)}: its forward may differ"
    if reason is None and not any(child is not None for child in layer._modules.values()):
        reason = "d2lfast has no layer for it"
    return None if reason is None else Row(path, name, "native", reason)


def _lacks_kernels(layer: nn.Module, default: str) -> str | None:
    """Why torch computes a layer of ours on its device (`default` if it has no tensors), or None."""
    devices = [tensor.device.type for tensor in (*layer.parameters(), *layer.buffers())] or [default]
    operator = (LAYERS | FUSED).get(type(layer).__name__, "")
    if operator == "" or has_kernels(operator, devices[0]):
        return None
    return f"this build has no {devices[0]} kernels for it"


def _type_name(kind: type[nn.Module]) -> str:
    for module, prefix in ((d2lfast.nn, "d2lfast.nn"), (nn, "torch.nn")):
        if getattr(module, kind.__name__, None) is kind and kind.__module__.startswith(prefix):
            return f"{prefix}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"
