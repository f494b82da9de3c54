"""Recurrent cells, one time step each: generation, small hidden states, the book's batch, large ones."""

from typing import Any

import torch

import d2lfast.nn
from d2lfast.bench.case import Case, Maker, Reductions, Work

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
_MODULES = {"rnn": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}
# Numbers a unit that forward keeps for backward besides its inputs and outputs: the gates, and for the GRU
# the recurrent part of the candidate.
_SAVED = {"rnn": 0, "gru": 4, "lstm": 4}


def _maker(layers: Any, kind: str, size: int, hidden: int) -> Maker:
    def make(parameters, buffers):
        # On the meta device nothing is initialised: the case's own parameters take the places.
        cell = getattr(layers, _MODULES[kind])(size, hidden, device="meta")
        for name, parameter in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), parameters):
            setattr(cell, name, parameter)
        if kind == "lstm":
            return lambda x, h, c: cell(x, (h, c))
        return cell

    return make


def cell_case(kind: str, batch: int, size: int, hidden: int) -> Case:
    """A cell; FLOPs are those of its matrix products, 2 N G H (I + H) forward and twice that backward."""
    gates = _GATES[kind] * hidden
    states = 2 if kind == "lstm" else 1
    data = batch * (size + states * hidden)
    parameters = gates * (size + hidden) + 2 * gates
    outputs = batch * states * hidden
    saved = batch * _SAVED[kind] * hidden
    product = 2 * batch * gates * (size + hidden)
    forward = Work(product, data + parameters + outputs)
    # Backward reads inputs, weights, outputs, their gradients and what was saved, and writes one gradient
    # for each input and parameter.
    backward = 2 * data + 2 * parameters + 2 * outputs + 2 * saved
    return Case(
        name=f"{kind}_cell/{batch}-{size}-{hidden}",
        family="recurrent",
        operator=f"{kind}_cell",
        inputs=((batch, size), *([(batch, hidden)] * states)),
        parameters=((gates, size), (gates, hidden), (gates,), (gates,)),
        native=_maker(torch.nn, kind, size, hidden),
        ours=_maker(d2lfast.nn, kind, size, hidden),
        forward=forward,
        both=Work(3 * product, forward.values + backward),
        reductions=Reductions(output=size + hidden, grad_input=gates, grad_parameter=batch),
        parameter_scale=hidden**-0.5,
    )


CASES = [
    cell_case(kind, *sizes)
    for kind in _GATES
    for sizes in ((1, 28, 32), (32, 28, 32), (1024, 28, 32), (32, 256, 256), (20, 650, 650))
]


_LAYERS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}


def layer_case(
    kind: str, steps: int, batch: int, size: int, hidden: int, layers: int = 1, bidirectional: bool = False
) -> Case:
    """Whole sequences from zero states; FLOPs are those of the matrix products."""
    rows, directions = _GATES[kind] * hidden, 2 if bidirectional else 1
    widths = [size] + [directions * hidden] * (layers - 1)
    shapes = [
        shape
        for width in widths
        for _ in range(directions)
        for shape in ((rows, width), (rows, hidden), (rows,), (rows,))
    ]
    tokens = steps * batch
    product = sum(2 * tokens * directions * rows * (width + hidden) for width in widths)
    parameters = directions * sum(rows * (width + hidden + 2) for width in widths)
    data, output = tokens * size, tokens * directions * hidden
    saved = layers * tokens * directions * hidden * {"rnn": 1, "gru": 5, "lstm": 6}[kind]
    forward = Work(product, data + parameters + output)

    def maker(module: Any) -> Maker:
        def make(weights, buffers):
            layer = getattr(module, _LAYERS[kind])(
                size, hidden, layers, bidirectional=bidirectional, device="meta"
            )
            for name, weight in zip(layer._flat_weights_names, weights, strict=True):
                setattr(layer, name, weight)
            return lambda x: layer(x)[0]

        return make

    name = f"{kind}_layer/{steps}-{batch}-{size}-{hidden}"
    return Case(
        name=name + (f"-{layers}layers" if layers > 1 else "") + ("-bidirectional" if bidirectional else ""),
        family="recurrent",
        operator=f"{kind}_layer",
        inputs=((steps, batch, size),),
        parameters=tuple(shapes),
        native=maker(torch.nn),
        ours=maker(d2lfast.nn),
        forward=forward,
        both=Work(3 * product, forward.values + data + 2 * parameters + 2 * output + 2 * saved),
        reductions=Reductions(
            output=steps * (size + hidden), grad_input=steps * rows, grad_parameter=steps * tokens
        ),
        parameter_scale=0.5 * hidden**-0.5,
    )


CASES += [
    layer_case(kind, *sizes)
    for kind in _GATES
    for sizes in ((32, 32, 28, 32), (35, 1024, 28, 32), (35, 32, 256, 256), (35, 20, 650, 650))
]
CASES += [
    layer_case("gru", *sizes, **options)
    for sizes in ((32, 32, 28, 32), (35, 1024, 28, 32))
    for options in ({"layers": 2}, {"bidirectional": True})
]
