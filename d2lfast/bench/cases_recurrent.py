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
