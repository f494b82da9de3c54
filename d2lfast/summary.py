"""A model layer by layer: output shape, parameters, multiply-adds, bytes, receptive field, algorithm."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from d2lfast.algorithm import explain
from d2lfast.convert import report

__all__ = ["LayerSummary", "Summary", "summarize"]

_Pair = tuple[int, int]


@dataclass
class LayerSummary:
    """One layer; `calls` is how often the model used it, and the figures are of all calls together.

    Attributes:
        path, type: where it is in the model, and its class.
        output: shape of its last output.
        parameters: numbers that it holds itself; shared ones count at their first layer.
        macs: multiply-adds of convolutions, linear and recurrent layers, and matrix products.
        bytes: input, parameters and output, each once: what a forward pass moves at least.
        receptive_field: height and width of what one value of the output sees of the image, padding included;
            None where there is no image.
        algorithm: what computes it: d2lfast's algorithm, forward and, where they differ, both gradients;
            "in <layer>" for an activation that another layer applies; "torch" for torch's own layers.
    """

    path: str
    type: str
    output: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    bytes: int = 0
    receptive_field: _Pair | None = None
    algorithm: str = ""
    calls: int = 0


@dataclass
class Summary:
    """The layers of a model in the order of their first call."""

    layers: list[LayerSummary] = field(default_factory=list)
    parameters: int = 0

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes that a forward pass moves if every layer reads its input from memory."""
        return sum(layer.bytes for layer in self.layers)


@torch.no_grad()
def summarize(model: nn.Module, *inputs: Any) -> Summary:
    """Run `model` once on `inputs`, in evaluation mode, and describe each layer that ran.

    A layer is a module without children, or one with parameters of its own. The model is left as it was.
    """
    states = {module: module.training for module in model.modules()}
    model.eval()
    algorithms = {row.path: row.reason.replace("runs in", "in") for row in report(model).fused}
    ours = {row.path for row in report(model).swapped}
    tracer = _Tracer()
    hooks = []
    for path, module in model.named_modules():
        if all(isinstance(child, _HOLDERS) for child in module.children()) or module._parameters:
            hooks.append(module.register_forward_pre_hook(tracer.enter(path)))
            hooks.append(module.register_forward_hook(tracer.leave(path, path in ours)))
    try:
        with tracer:
            for value in inputs:
                if isinstance(value, Tensor) and value.dim() == 4:
                    _mark(value, ((1, 1), (1, 1)))
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in states.items():
            module.training = training
    summary = Summary(list(tracer.rows.values()), sum(p.numel() for p in model.parameters()))
    for row in summary:
        row.algorithm = algorithms.get(row.path, row.algorithm)
    return summary


_HOLDERS = (nn.ParameterList, nn.ParameterDict)


def _held(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module holds itself, in lists too."""
    holders = [module, *(child for child in module.children() if isinstance(child, _HOLDERS))]
    return [parameter for holder in holders for parameter in holder.parameters(recurse=False)]


# Size and step, in pixels of the image, of what the values of a tensor see.
_View = tuple[_Pair, _Pair]


def _view(value: Any) -> _View | None:
    return getattr(value, "_d2lfast_view", None)


def _mark(tensor: Tensor, view: _View | None) -> None:
    tensor._d2lfast_view = view if tensor.dim() == 4 else None  # type: ignore[attr-defined]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


class _Tracer(TorchFunctionMode):
    """Follows views through the operators between the layers, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, LayerSummary] = {}
        self.inside: list[tuple[str, nn.Module]] = []
        self.counted: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = [view for tensor in _tensors(args) if (view := _view(tensor)) is not None]
        if views:
            for output in _tensors(result):
                if _view(output) is None:
                    _mark(output, max(views))
        if self.inside and isinstance(result, Tensor):
            path, module = self.inside[-1]
            if not isinstance(module, _COUNTED):
                self.rows[path].macs += _products(func, args, result)
        return result

    def enter(self, path: str) -> Callable[..., None]:
        """The hook before a layer."""

        def hook(module: nn.Module, inputs: Any) -> None:
            self.rows.setdefault(path, LayerSummary(path, type(module).__name__))
            self.inside.append((path, module))

        return hook

    def leave(self, path: str, ours: bool) -> Callable[..., None]:
        """The hook behind a layer."""

        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self.inside.pop()
            row = self.rows[path]
            output = next(_tensors(outputs))
            held = _held(module)
            own = [p for p in held if id(p) not in self.counted]
            self.counted.update(id(p) for p in own)
            row.type = type(module).__name__
            row.calls += 1
            row.output = tuple(output.shape)
            row.parameters += sum(p.numel() for p in own)
            moved = [*_tensors(inputs), *held, *_tensors(outputs)]
            row.bytes += sum(tensor.numel() * tensor.itemsize for tensor in moved)
            row.macs += _multiply_adds(module, inputs[0], output)
            first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            view = _view(first)
            if first is not None and view is not None:
                view = _widened(module, view, (first.shape[-2], first.shape[-1]))
                _mark(output, view)
                row.receptive_field = None if view is None or output.dim() != 4 else view[0]
            row.algorithm = _algorithm(module, inputs[0] if inputs else None) if ours else "torch"

        return hook


def _algorithm(module: nn.Module, input: Any) -> str:
    if isinstance(module, nn.RNNBase) and isinstance(input, PackedSequence):
        batch, size = int(input.batch_sizes[0]), input.data.shape[-1]
        input = input.data.new_empty((batch, 1, size) if module.batch_first else (1, batch, size))
    if not isinstance(input, Tensor):
        return "direct"
    names = explain(module, input.shape) if isinstance(module, (nn.Conv2d, nn.RNNBase)) else explain(module)
    distinct = list(dict.fromkeys(names.values()))
    return distinct[0] if len(distinct) == 1 else "/".join(names.values())


# Layers whose multiply-adds follow from their sizes.
_COUNTED = (nn.Conv2d, nn.Linear, nn.RNNBase, nn.RNNCellBase)


def _multiply_adds(module: nn.Module, input: Any, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        data = input.data if isinstance(input, PackedSequence) else input
        # Tokens stand for one-hot rows, whose product counts all the same.
        steps = data.numel() // (1 if data.dtype is torch.int64 else data.shape[-1])
        return steps * sum(p.numel() for name, p in module.named_parameters() if "weight" in name)
    return 0


def _products(func: Any, args: Any, result: Tensor) -> int:
    """Multiply-adds of the products that a module writes itself, outside torch's layers."""
    name = getattr(func, "__name__", "")
    if name in ("matmul", "__matmul__", "mm", "bmm"):
        return result.numel() * args[0].shape[-1]
    if name.startswith("conv2d"):
        return result.numel() * args[1][0].numel()
    return 0


def _pair(value: Any) -> _Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _widened(module: Any, view: _View, image: _Pair) -> _View:
    """What the output of a layer sees, if its input sees `view`."""
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        kernel = stride = image
        dilation = (1, 1)
    elif isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        dilation = _pair(getattr(module, "dilation", 1))
    else:
        return view
    sizes, steps = view
    sizes = tuple(s + (k - 1) * d * j for s, k, d, j in zip(sizes, kernel, dilation, steps))  # type: ignore[assignment]
    return sizes, tuple(j * s for j, s in zip(steps, stride))  # type: ignore[return-value]
