"""How to call each operator with d2lfast and with torch, and what its random cases look like."""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Argument names to tensors; an argument that the operator calls optional may be None.
Tensors = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Operator:
    """How to call an operator with d2lfast and with torch.

    Attributes:
        tensors: names of the tensor arguments, in the order of the schema.
        differentiable: those that can have a gradient.
        overload: the registered operator.
        arguments: the arguments of `overload`, from the tensors and the options of a case.
        ours, native: functions of the tensors and the options to the outputs; `mutated` arguments that the
            operator writes are among the outputs.
        draw: shapes and options of a random case.
        reduction: additions behind an element of "output" or of the gradient of an argument, from the
            shapes, options, and output shape.
        exact: the outputs are bitwise torch's.
    """

    tensors: tuple[str, ...]
    differentiable: tuple[str, ...]
    overload: Callable[[], Any]
    arguments: Callable[[Tensors, dict], tuple]
    ours: Callable[[Tensors, dict], tuple[Tensor, ...]]
    native: Callable[[Tensors, dict], tuple[Tensor, ...]]
    draw: Callable[[random.Random], tuple[dict, dict]]
    reduction: Callable[[str, dict, dict, Sequence[int]], int]
    exact: bool = False
    mutated: tuple[str, ...] = ()


def _activate(output: Tensor, activation: str) -> Tensor:
    return output if activation == "none" else getattr(torch, activation)(output)


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, Sequence) else [value, value]


def maybe(rng: random.Random, values: Sequence[Any], usual: Any, chance: float = 0.4) -> Any:
    """One of `values` with the given chance, else the usual one."""
    return rng.choice(values) if rng.random() < chance else usual


def _axes(rng: random.Random, values: Sequence[int], usual: int, chance: float = 0.4) -> Any:
    """One value, or one for each axis."""
    if rng.random() < 0.5:
        return maybe(rng, values, usual, chance)
    return [maybe(rng, values, usual, chance), maybe(rng, values, usual, chance)]


def _image(rng: random.Random, channels: int) -> tuple[int, ...]:
    sizes = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 19, 28, 33)
    image = (channels, rng.choice(sizes), rng.choice(sizes))
    return image if rng.random() < 0.1 else (rng.choice((0, 1, 1, 2, 2, 3, 5)), *image)


def _elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")


def _conv2d_ours(t: Tensors, options: dict) -> tuple[Tensor, ...]:
    from d2lfast import conv2d_algorithm
    from d2lfast.nn import functional

    with conv2d_algorithm(options.pop("algorithm", "auto")):
        return (functional.conv2d(t["input"], t["weight"], t["bias"], residual=t["residual"], **options),)


def _conv2d_native(t: Tensors, options: dict) -> tuple[Tensor, ...]:
    activation = options.pop("activation", "none")
    options.pop("algorithm", None)
    output = native.conv2d(t["input"], t["weight"], t["bias"], **options)
    return (_activate(output if t["residual"] is None else output + t["residual"], activation),)


def _conv2d_arguments(t: Tensors, o: dict) -> tuple:
    pairs = [_pair(o.get(name, usual)) for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return (
        t["input"],
        t["weight"],
        t["bias"],
        *pairs,
        o.get("groups", 1),
        o.get("activation", "none"),
        o.get("algorithm", "auto"),
        t["residual"],
    )


def _conv2d_draw(rng: random.Random) -> tuple[dict, dict]:
    groups = maybe(rng, (2, 3, 4, 5), 1, 0.3)
    per_group = rng.choice((1, 1, 2, 3, 4, 7, 8, 11))
    if rng.random() < 0.15:
        groups, per_group = rng.choice((3, 8, 16, 17)), 1
    outputs = groups * rng.choice((1, 1, 2, 3, 5, 8, 9))
    if rng.random() < 0.15:
        groups, per_group, outputs = 1, rng.choice((16, 33, 70)), rng.choice((17, 32, 50))
    kernel = [rng.choice((1, 1, 2, 3, 3, 3, 4, 5, 7)) for _ in range(2)]
    if rng.random() < 0.4:
        kernel[1] = kernel[0]
    image = _image(rng, groups * per_group)
    if len(image) == 4 and rng.random() < 0.15:
        image = (rng.choice((15, 16, 33)), *image[1:])
    shapes = {"input": image, "weight": (outputs, per_group, *kernel)}
    if rng.random() < 0.6:
        shapes["bias"] = (outputs,)
    options = {
        "stride": _axes(rng, (2, 3, 4), 1),
        "padding": _axes(rng, (1, 2, 3, 5), rng.choice((0, kernel[0] // 2))),
        "dilation": _axes(rng, (2, 3), 1, 0.25),
        "groups": groups,
        "activation": maybe(rng, ACTIVATIONS[1:], "none", 0.3),
    }
    if rng.random() < 0.1:
        options["padding"] = rng.choice(("same", "valid"))
    if kernel == [1, 1]:
        options["dilation"] = 1  # oneDNN crashes on some padded 1x1 kernels with another one
    if rng.random() < 0.3:
        shapes |= _conv2d_residual(shapes, options)
    return shapes, options


def _conv2d_residual(shapes: dict, options: dict) -> dict:
    """The shape of a residual, where torch has a result for it."""
    input, weight = (torch.empty(shapes[name], device="meta") for name in ("input", "weight"))
    others = (options[name] for name in ("stride", "padding", "dilation", "groups"))
    try:
        return {"residual": tuple(native.conv2d(input, weight, None, *others).shape)}
    except RuntimeError:
        return {}


def _conv2d_reduction(name: str, shapes: dict, options: dict, output: Sequence[int]) -> int:
    # One name, or one for each pass, whose outputs have the rounding of the forward pass behind them.
    if "winograd" in options.get("algorithm", "auto"):
        # The transforms enlarge the rounding errors, by less than the square root of this.
        sums = _conv2d_reduction(name, shapes, {**options, "algorithm": "auto"}, output)
        return 64 * (sums + 36)
    outputs, per_group, *kernel = shapes["weight"]
    activated = options.get("activation", "none") != "none"
    # The derivative of an activation has the rounding of the output.
    forward = _elements(kernel) * per_group if name == "output" or activated else 0
    if name == "output":
        return forward
    if name == "residual":
        return forward
    if name in ("weight", "bias"):
        return max(1, _elements(output) // outputs) + forward
    return _elements(kernel) * max(1, outputs // options.get("groups", 1)) + forward


def _window(rng: random.Random) -> dict:
    kernel = _axes(rng, (1, 2, 4, 5, 7), rng.choice((2, 3)))
    options = {"kernel_size": kernel, "stride": _axes(rng, (1, 2, 3, 4), 2, 0.6)}
    if rng.random() < 0.3:
        options["stride"] = None
    if rng.random() < 0.5:
        smallest = min(_pair(kernel))
        options["padding"] = rng.randint(0, smallest // 2 + (rng.random() < 0.1))
    options["ceil_mode"] = rng.random() < 0.4
    return options


def _dilated(rng: random.Random) -> dict:
    return {"dilation": _axes(rng, (2, 3), 1, 0.2)}


def _pool_draw(rng: random.Random, more: Callable[[random.Random], dict]) -> tuple[dict, dict]:
    shapes = {"input": _image(rng, rng.choice((1, 2, 3, 5, 8, 16, 17, 32, 37)))}
    options = {**_window(rng), **more(rng)}
    if any(n < d for n, d in zip(shapes["input"][-2:], _pair(options.get("dilation", 1)))):
        # A dilated window may then meet padding alone, where torch's backward writes out of bounds.
        options["dilation"] = 1
    return shapes, options


def _window_arguments(o: dict) -> list[list[int]]:
    kernel = _pair(o["kernel_size"])
    stride = kernel if o.get("stride") is None else _pair(o["stride"])
    return [kernel, stride, _pair(o.get("padding", 0))]


def _pool_reduction(name: str, shapes: dict, options: dict, output: Sequence[int]) -> int:
    return _elements(_pair(options["kernel_size"]))


def _adaptive_reduction(name: str, shapes: dict, options: dict, output: Sequence[int]) -> int:
    ratio = [
        max(1, -(-a // max(1, b)), -(-b // max(1, a))) + 1 for a, b in zip(shapes["input"][-2:], output[-2:])
    ]
    return ratio[0] * ratio[1]


def _functional(name: str, **fixed: Any) -> Callable[[Tensors, dict], tuple[Tensor, ...]]:
    def ours(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        from d2lfast.nn import functional

        result = getattr(functional, name)(t["input"], **options, **fixed)
        return result if isinstance(result, tuple) else (result,)

    return ours


def _native(name: str, **fixed: Any) -> Callable[[Tensors, dict], tuple[Tensor, ...]]:
    def theirs(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        result = getattr(native, name)(t["input"], **options, **fixed)
        return result if isinstance(result, tuple) else (result,)

    return theirs


def _adaptive_draw(rng: random.Random) -> tuple[dict, dict]:
    shapes = {"input": _image(rng, rng.choice((1, 2, 3, 8, 17, 32)))}
    size = [rng.choice((1, 1, 2, 3, 4, 5, 7, 9)) for _ in range(2)]
    return shapes, {"output_size": size[0] if rng.random() < 0.3 else size}


def _batch_norm(function: Callable) -> Callable[[Tensors, dict], tuple[Tensor, ...]]:
    def call(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        output = function(t, options)
        return (output, *(x for x in (t["running_mean"], t["running_var"]) if x is not None))

    return call


def _batch_norm_ours(t: Tensors, options: dict) -> Tensor:
    return torch.ops.d2lfast.batch_norm_act(*_batch_norm_arguments(t, options))


def _batch_norm_native(t: Tensors, o: dict) -> Tensor:
    _, weight, bias, mean, var, training, momentum, eps, activation, residual = _batch_norm_arguments(t, o)
    output = native.batch_norm(t["input"], mean, var, weight, bias, training, momentum, eps)
    return _activate(output if residual is None else output + residual, activation)


def _batch_norm_arguments(t: Tensors, o: dict) -> tuple:
    tensors = [t[name] for name in ("input", "weight", "bias", "running_mean", "running_var")]
    scalars = [
        o.get("training", True),
        o.get("momentum", 0.1),
        o.get("eps", 1e-5),
        o.get("activation", "none"),
    ]
    return (*tensors, *scalars, t["residual"])


def _batch_norm_draw(rng: random.Random) -> tuple[dict, dict]:
    channels = rng.choice((1, 2, 3, 5, 8, 16, 17, 32, 37))
    sizes = (1, 2, 3, 5, 7, 8, 13, 16, 28)
    image: tuple[int, ...] = (rng.choice((0, 1, 2, 3, 4, 7)), channels, rng.choice(sizes), rng.choice(sizes))
    image = image[: maybe(rng, (2, 3), 4, 0.3)]
    options = {"training": rng.random() < 0.6, "activation": maybe(rng, ACTIVATIONS[1:], "none", 0.4)}
    options |= {"momentum": rng.choice((0.1, 0.1, 0.5, 1.0)), "eps": rng.choice((1e-5, 1e-3))}
    shapes: dict[str, tuple[int, ...]] = {"input": image}
    if rng.random() < 0.8:
        shapes |= {"weight": (channels,), "bias": (channels,)}
    if not options["training"] or rng.random() < 0.7:
        shapes |= {"running_mean": (channels,), "running_var": (channels,)}
    if rng.random() < 0.3:
        shapes["residual"] = image
    return shapes, options


def _batch_norm_reduction(name: str, shapes: dict, options: dict, output: Sequence[int]) -> int:
    return max(1, _elements(output) // max(1, shapes["input"][1]))


def _cell_draw(gates: int, states: Sequence[str]) -> Callable[[random.Random], tuple[dict, dict]]:
    def draw(rng: random.Random) -> tuple[dict, dict]:
        batch, inputs, hidden = rng.choice((0, 1, 2, 3, 5, 16)), rng.randint(1, 40), rng.randint(1, 40)
        shapes: dict[str, tuple[int, ...]] = {"input": (batch, inputs)}
        shapes |= {name: (batch, hidden) for name in states}
        shapes |= {"w_ih": (gates * hidden, inputs), "w_hh": (gates * hidden, hidden)}
        if rng.random() < 0.7:
            shapes |= {"b_ih": (gates * hidden,), "b_hh": (gates * hidden,)}
        return shapes, {"nonlinearity": rng.choice(("tanh", "relu"))} if gates == 1 else {}

    return draw


def _cell_reduction(name: str, shapes: dict, options: dict, output: Sequence[int]) -> int:
    # A gradient is a sum over the batch or the gates of terms that carry the error of the pre-activations,
    # which are sums over the input and hidden units.
    gates, terms = shapes["w_hh"][0], shapes["w_ih"][1] + shapes["w_hh"][1]
    if name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        return output[0] + terms
    return gates + terms if name in ("input", "hx", "cx") else terms


def _cell(name: str, gates: int, native_cell: Any, states: tuple[str, ...]) -> Operator:
    tensors = ("input", *states, "w_ih", "w_hh", "b_ih", "b_hh")

    def arguments(t: Tensors, options: dict) -> tuple:
        return (*(t[x] for x in tensors), *((options["nonlinearity"],) if "nonlinearity" in options else ()))

    def ours(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        result = getattr(torch.ops.d2lfast, name)(*arguments(t, options))
        return result if isinstance(result, tuple) else (result,)

    def theirs(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        cell: Any = torch.rnn_relu_cell if options.get("nonlinearity") == "relu" else native_cell
        state: Any = t["hx"] if len(states) == 1 else (t["hx"], t["cx"])
        result = cell(t["input"], state, t["w_ih"], t["w_hh"], t["b_ih"], t["b_hh"])
        return result if isinstance(result, tuple) else (result,)

    return Operator(
        tensors=tensors,
        differentiable=tensors,
        overload=lambda: getattr(torch.ops.d2lfast, name).default,
        arguments=arguments,
        ours=ours,
        native=theirs,
        draw=_cell_draw(gates, states),
        reduction=_cell_reduction,
    )


OPERATORS: dict[str, Operator] = {
    "conv2d": Operator(
        tensors=("input", "weight", "bias", "residual"),
        differentiable=("input", "weight", "bias", "residual"),
        overload=lambda: torch.ops.d2lfast.conv2d.default,
        arguments=_conv2d_arguments,
        ours=_conv2d_ours,
        native=_conv2d_native,
        draw=_conv2d_draw,
        reduction=_conv2d_reduction,
    ),
    "max_pool2d": Operator(
        tensors=("input",),
        differentiable=("input",),
        overload=lambda: torch.ops.d2lfast.max_pool2d.default,
        arguments=lambda t, o: (
            t["input"],
            *_window_arguments(o),
            _pair(o.get("dilation", 1)),
            o.get("ceil_mode", False),
        ),
        ours=_functional("max_pool2d"),
        native=_native("max_pool2d"),
        draw=lambda rng: _pool_draw(rng, _dilated),
        reduction=_pool_reduction,
        exact=True,
    ),
    "max_pool2d_with_indices": Operator(
        tensors=("input",),
        differentiable=("input",),
        overload=lambda: torch.ops.d2lfast.max_pool2d_with_indices.default,
        arguments=lambda t, o: (
            t["input"],
            *_window_arguments(o),
            _pair(o.get("dilation", 1)),
            o.get("ceil_mode", False),
        ),
        ours=_functional("max_pool2d", return_indices=True),
        native=_native("max_pool2d", return_indices=True),
        draw=lambda rng: _pool_draw(rng, _dilated),
        reduction=_pool_reduction,
        exact=True,
    ),
    "avg_pool2d": Operator(
        tensors=("input",),
        differentiable=("input",),
        overload=lambda: torch.ops.d2lfast.avg_pool2d.default,
        arguments=lambda t, o: (
            t["input"],
            *_window_arguments(o),
            o.get("ceil_mode", False),
            o.get("count_include_pad", True),
            o.get("divisor_override"),
        ),
        ours=_functional("avg_pool2d"),
        native=_native("avg_pool2d"),
        draw=lambda rng: _pool_draw(
            rng,
            lambda rng: {
                "count_include_pad": rng.random() < 0.5,
                "divisor_override": maybe(rng, (1, 3, 7, -2), None, 0.3),
            },
        ),
        reduction=_pool_reduction,
    ),
    "adaptive_avg_pool2d": Operator(
        tensors=("input",),
        differentiable=("input",),
        overload=lambda: torch.ops.d2lfast.adaptive_avg_pool2d.default,
        arguments=lambda t, o: (t["input"], _pair(o["output_size"])),
        ours=_functional("adaptive_avg_pool2d"),
        native=_native("adaptive_avg_pool2d"),
        draw=_adaptive_draw,
        reduction=_adaptive_reduction,
    ),
    "adaptive_max_pool2d": Operator(
        tensors=("input",),
        differentiable=("input",),
        overload=lambda: torch.ops.d2lfast.adaptive_max_pool2d.default,
        arguments=lambda t, o: (t["input"], _pair(o["output_size"])),
        ours=_functional("adaptive_max_pool2d", return_indices=True),
        native=_native("adaptive_max_pool2d", return_indices=True),
        draw=_adaptive_draw,
        reduction=_adaptive_reduction,
        exact=True,
    ),
    "batch_norm_act": Operator(
        tensors=("input", "weight", "bias", "running_mean", "running_var", "residual"),
        differentiable=("input", "weight", "bias", "residual"),
        overload=lambda: torch.ops.d2lfast.batch_norm_act.default,
        arguments=_batch_norm_arguments,
        ours=_batch_norm(_batch_norm_ours),
        native=_batch_norm(_batch_norm_native),
        draw=_batch_norm_draw,
        reduction=_batch_norm_reduction,
        mutated=("running_mean", "running_var"),
    ),
    "rnn_cell": _cell("rnn_cell", 1, torch.rnn_tanh_cell, ("hx",)),
    "gru_cell": _cell("gru_cell", 3, torch.gru_cell, ("hx",)),
    "lstm_cell": _cell("lstm_cell", 4, torch.lstm_cell, ("hx", "cx")),
}
