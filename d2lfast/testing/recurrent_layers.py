"""How to call the recurrent layers over whole sequences, with d2lfast and as loops over torch's cells."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from d2lfast.testing.operators import Operator, Tensors

_GATES = {"rnn_layer": 1, "gru_layer": 3, "lstm_layer": 4}


def layer_shapes(
    operator: str, steps: int, batch: int, inputs: int, hidden: int, bias: bool = True, projection: int = 0
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a layer; `projection` is the width of an LSTM's projected state, or 0."""
    gates, state = _GATES[operator] * hidden, projection or hidden
    shapes: dict[str, tuple[int, ...]] = {"input": (steps, batch, inputs), "hx": (batch, state)}
    if operator == "lstm_layer":
        shapes["cx"] = (batch, hidden)
    shapes |= {"w_ih": (gates, inputs), "w_hh": (gates, state)}
    if bias:
        shapes |= {"b_ih": (gates,), "b_hh": (gates,)}
    if projection:
        shapes["w_hr"] = (state, hidden)
    return shapes


def _reduction(name: str, shapes: dict, options: dict, output: Sequence[int]) -> int:
    # As for the cells; the errors of a step reach all steps after it, and grow on the way.
    gates, terms = shapes["w_hh"][0], shapes["w_ih"][1] + shapes["w_hh"][1]
    steps, batch = shapes["input"][:2]
    if "w_hr" in shapes:
        terms *= shapes["w_hr"][1]
    if name in ("input", "hx", "cx"):
        return steps**3 * (gates + terms)
    return steps**3 * (terms if name == "output" else batch + terms)


def _projected_step(x: Tensor, h: Tensor, c: Tensor, t: Tensors) -> tuple[Tensor, Tensor]:
    gates = functional.linear(x, t["w_ih"], t["b_ih"]) + functional.linear(h, t["w_hh"], t["b_hh"])
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return functional.linear(o.sigmoid() * c.tanh(), t["w_hr"]), c


def _operator(name: str) -> Operator:
    lstm = name == "lstm_layer"
    states = ("hx", "cx") if lstm else ("hx",)
    tensors = ("input", *states, "w_ih", "w_hh", "b_ih", "b_hh", *(("w_hr",) if lstm else ()))

    def arguments(t: Tensors, options: dict) -> tuple:
        named = (options.get("nonlinearity", "tanh"),) if name == "rnn_layer" else ()
        return (t["input"], None, *(t[x] for x in tensors[1:]), *named, options.get("reverse", False))

    def ours(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        return getattr(torch.ops.d2lfast, name)(*arguments(t, options))

    def theirs(t: Tensors, options: dict) -> tuple[Tensor, ...]:
        if t["input"].size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        weights = (t["w_ih"], t["w_hh"], t["b_ih"], t["b_hh"])
        relu = options.get("nonlinearity") == "relu"
        plain: Any = torch.rnn_relu_cell if relu else torch.rnn_tanh_cell
        h, c = t["hx"], t["cx"] if lstm else t["hx"]
        steps = list(t["input"].unbind(0))
        outputs = []
        for x in reversed(steps) if options.get("reverse") else steps:
            if lstm:
                projected = t["w_hr"] is not None
                h, c = _projected_step(x, h, c, t) if projected else torch.lstm_cell(x, [h, c], *weights)
            else:
                h = (torch.gru_cell if name == "gru_layer" else plain)(x, h, *weights)
            outputs.append(h)
        output = torch.stack(outputs[::-1] if options.get("reverse") else outputs)
        # Contiguous as torch's layers return them; the cells keep the strides of a transposed state.
        h, c = h.contiguous(), c.contiguous()
        return (output, h, c) if lstm else (output, h)

    def draw(rng: random.Random) -> tuple[dict, dict]:
        batch, hidden = rng.choice((0, 1, 2, 3, 5, 16, 130)), rng.randint(1, 40)
        projection = rng.randint(1, hidden - 1) if lstm and hidden > 1 and rng.random() < 0.3 else 0
        inputs, bias = rng.randint(1, 40), rng.random() < 0.7
        shapes = layer_shapes(name, rng.randint(1, 5), batch, inputs, hidden, bias, projection)
        options: dict[str, Any] = {"reverse": rng.random() < 0.4}
        if name == "rnn_layer":
            options["nonlinearity"] = rng.choice(("tanh", "relu"))
        return shapes, options

    return Operator(
        tensors=tensors,
        differentiable=tensors,
        overload=lambda: getattr(torch.ops.d2lfast, name).default,
        arguments=arguments,
        ours=ours,
        native=theirs,
        draw=draw,
        reduction=_reduction,
    )


LAYERS: dict[str, Operator] = {name: _operator(name) for name in _GATES}
