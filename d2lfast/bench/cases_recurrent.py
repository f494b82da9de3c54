"""Recurrent cells and layers: generation, small hidden states, the book's batch, large ones, text, names."""

from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

import d2lfast.nn
from d2lfast import models
from d2lfast.bench.case import Case, Maker, Reductions, Work
from d2lfast.models.tasks import cross_entropy

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


def _layer(module: Any, kind: str, size: int, hidden: int, weights: Any, **options: Any) -> Any:
    """A layer of the namespace `module` whose parameters are the case's own."""
    layer = getattr(module, _LAYERS[kind])(size, hidden, device="meta", **options)
    for name, weight in zip(layer._flat_weights_names, weights, strict=True):
        setattr(layer, name, weight)
    return layer


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
            layer = _layer(
                module, kind, size, hidden, weights, num_layers=layers, bidirectional=bidirectional
            )
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
        sequences=((steps, batch, size), (rows, hidden)),
    )


CASES += [
    layer_case(kind, *sizes)
    for kind in _GATES
    for sizes in ((32, 32, 28, 32), (35, 1024, 28, 32), (35, 32, 256, 256), (35, 20, 650, 650))
]
CASES += [
    layer_case(kind, *sizes, **options)
    for kind in _GATES
    for sizes in ((32, 32, 28, 32), (35, 1024, 28, 32))
    for options in ({"layers": 2}, {"bidirectional": True})
]


def step_case(kind: str, size: int, hidden: int) -> Case:
    """Generation: one step of one row from a given state."""
    rows, states = _GATES[kind] * hidden, 2 if kind == "lstm" else 1
    product = 2 * rows * (size + hidden)
    values = size + 2 * states * hidden + rows * (size + hidden + 2)

    def maker(module: Any) -> Maker:
        def make(weights, buffers):
            layer = _layer(module, kind, size, hidden, weights)
            return lambda x, *state: layer(x, state if kind == "lstm" else state[0])[0]

        return make

    return Case(
        name=f"{kind}_layer/1-1-{size}-{hidden}-step",
        family="recurrent",
        operator=f"{kind}_layer",
        inputs=((1, 1, size), *([(1, 1, hidden)] * states)),
        parameters=((rows, size), (rows, hidden), (rows,), (rows,)),
        native=maker(torch.nn),
        ours=maker(d2lfast.nn),
        forward=Work(product, values),
        both=Work(3 * product, 3 * values),
        reductions=Reductions(output=size + hidden, grad_input=rows, grad_parameter=1),
        parameter_scale=hidden**-0.5,
        sequences=((1, 1, size), (rows, hidden)),
    )


def packed_case(kind: str, lengths: list[int], size: int, hidden: int) -> Case:
    """Sequences of falling lengths without padding."""
    steps, batch, tokens = lengths[0], len(lengths), sum(lengths)
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(steps)])
    padded = layer_case(kind, steps, batch, size, hidden)
    rows = _GATES[kind] * hidden
    product, parameters = 2 * tokens * rows * (size + hidden), rows * (size + hidden + 2)
    saved = tokens * hidden * {"rnn": 1, "gru": 5, "lstm": 6}[kind]
    values = tokens * (size + hidden) + parameters

    def maker(module: Any) -> Maker:
        def make(weights, buffers):
            layer = _layer(module, kind, size, hidden, weights)
            return lambda x: layer(PackedSequence(x, sizes))[0].data

        return make

    return Case(
        name=f"{kind}_layer/{tokens}-tokens-{size}-{hidden}-packed",
        family="recurrent",
        operator=f"{kind}_layer",
        inputs=((tokens, size),),
        parameters=padded.parameters,
        native=maker(torch.nn),
        ours=maker(d2lfast.nn),
        forward=Work(product, values),
        both=Work(3 * product, 2 * values + parameters + 2 * saved),
        reductions=padded.reductions,
        parameter_scale=padded.parameter_scale,
        sequences=padded.sequences,
    )


def language_model_case(steps: int, batch: int, vocab: int, hidden: int) -> Case:
    """The book's character model, `d2lfast.models.RNNLM`, from tokens to the loss.

    torch's layer is given one-hot rows; a product with them is a look-up, which is what counts as work.
    """
    tokens = steps * batch
    product = 2 * tokens * hidden * (hidden + vocab)
    shapes = ((hidden, vocab), (hidden, hidden), (hidden,), (hidden,), (vocab, hidden), (vocab,))
    values = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)

    def maker(module: Any) -> Maker:
        def make(weights, buffers):
            model = models.RNNLM(models.recurrent.RNN(vocab, hidden, layers=module), vocab, layers=module)
            layer: Any = model.rnn.rnn
            places: list[tuple[Any, str]] = [(layer, name) for name in layer._flat_weights_names]
            places += [(model.linear, "weight"), (model.linear, "bias")]
            for (owner, name), weight in zip(places, weights, strict=True):
                setattr(owner, name, weight)
            text = torch.randint(vocab, (batch, steps + 1), generator=torch.Generator().manual_seed(0))
            text = text.to(weights[0].device)
            return lambda: cross_entropy(model(text[:, :-1]), text[:, 1:], module)

        return make

    return Case(
        name=f"rnn_layer/{steps}-{batch}-{vocab}-{hidden}-one-hot-model",
        family="recurrent",
        operator="rnn_layer",
        inputs=(),
        parameters=shapes,
        native=maker(torch.nn),
        ours=maker(d2lfast.nn),
        forward=Work(product, values + tokens * (2 * vocab + hidden)),
        both=Work(3 * product, 3 * values + tokens * (4 * vocab + 4 * hidden)),
        reductions=Reductions(output=steps * hidden, grad_parameter=steps * tokens),
        parameter_scale=0.5 * hidden**-0.5,
        sequences=((steps, batch, vocab), (hidden, hidden)),
    )


CASES += [step_case(kind, 28, 32) for kind in _GATES]
# As many tokens as 32 full sequences of 32; and names.
CASES += [packed_case(kind, list(range(63, 0, -2)), 28, 32) for kind in _GATES]
CASES.append(packed_case("gru", sorted((2 + i * 7 % 13 for i in range(256)), reverse=True), 100, 100))
CASES.append(language_model_case(32, 1024, 28, 32))
