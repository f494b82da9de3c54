"""Batch normalisation, alone and with the activation and the residual that follow it in networks."""

from math import prod
from typing import Any

import torch
from torch.nn import functional as native_functional

from d2lfast.bench.case import ACTIVATIONS, Case, Maker, Reductions, Shape, Work
from d2lfast.nn import functional as our_functional

_MOMENTUM, _EPS = 0.1, 1e-5


def _native(training: bool, activation: str, residual: bool) -> Maker:
    def make(parameters, buffers):
        weight, bias = parameters
        mean, var = buffers

        def normalise(x, shortcut=None):
            y = native_functional.batch_norm(x, mean, var, weight, bias, training, _MOMENTUM, _EPS)
            if residual:
                y += shortcut
            return ACTIVATIONS[activation](y) if activation != "none" else y

        return normalise

    return make


def _ours(training: bool, activation: str, residual: bool) -> Maker:
    if activation == "none" and not residual:

        def make(parameters, buffers):
            arguments: Any = (*buffers, *parameters, training, _MOMENTUM, _EPS)
            return lambda x: our_functional.batch_norm(x, *arguments)

        return make

    def make_fused(parameters, buffers):
        fused = torch.ops.d2lfast.batch_norm_act.default
        return lambda x, shortcut=None: fused(
            x, *parameters, *buffers, training, _MOMENTUM, _EPS, activation, shortcut
        )

    return make_fused


def batch_norm_case(
    shape: Shape, training: bool, activation: str = "none", residual: bool = False, name: str = ""
) -> Case:
    """act(batch_norm(x) + residual); the least traffic assumes that a channel stays in cache within a pass.

    Args:
        shape: of the input, [N,C,H,W] or [N,C].
        training: normalise with the batch's statistics and update the running ones.
        activation: "none" or what follows.
        residual: a second input of the same shape is added before the activation.
        name: of the shape.
    """
    values, channels = prod(shape), shape[1]
    extras = (activation != "none") + residual
    parts = ["train" if training else "eval", *(["residual"] if residual else [])]
    parts += [activation] if activation != "none" else []
    # Forward reads the input (and the residual) and writes the output. Backward reads the output's
    # gradient and the input, and writes the input's gradient; behind a residual the activation's
    # derivative needs a bit for each value that forward wrote, and the residual has a gradient of its own.
    fused_residual = residual and activation != "none"
    forward_values = values * (2 + residual)
    backward_values = values * (3 + fused_residual)
    forward_flops = (6 if training else 2) + extras
    backward_flops = (8 if training else 4) + (activation != "none")
    return Case(
        name=f"batch_norm/{'-'.join(parts)}-{name or 'x'.join(map(str, shape))}",
        family="batch_norm",
        operator="batch_norm_act",
        inputs=(shape, shape) if residual else (shape,),
        parameters=((channels,), (channels,)),
        buffers=((channels,), (channels,)),
        native=_native(training, activation, residual),
        ours=_ours(training, activation, residual),
        forward=Work(values * forward_flops, forward_values + 4 * channels),
        both=Work(
            values * (forward_flops + backward_flops),
            forward_values + backward_values + 8 * channels,
            values // 4 if fused_residual else 0,
        ),
        reductions=Reductions(*([values // channels] * 3)),
        relu=activation == "relu",
        float32_parameters=True,
    )


_LENET = (256, 6, 24, 24)

CASES = [
    *(
        batch_norm_case(shape, training, activation, residual)
        for shape in ((64, 64, 56, 56), (16, 256, 14, 14))
        for training, activation, residual in (
            (True, "none", False),
            (True, "relu", False),
            (True, "relu", True),
            (False, "none", False),
            (False, "relu", False),
            (False, "relu", True),
        )
    ),
    batch_norm_case(_LENET, True),
    batch_norm_case(_LENET, True, "sigmoid"),
    batch_norm_case(_LENET, True, "relu"),
    batch_norm_case(_LENET, False),
    batch_norm_case((256, 120), True),
    batch_norm_case((256, 120), True, "sigmoid"),
    batch_norm_case((256, 120), False),
    batch_norm_case((8, 16), True),
]
