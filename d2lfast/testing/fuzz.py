"""Random cases, each a function of its seed and number."""

import random

import torch

from d2lfast.testing.cases import DEVICE, Case
from d2lfast.testing.layouts import LAYOUTS
from d2lfast.testing.operators import DTYPES, OPERATORS, maybe


def _conv2d_algorithm(rng: random.Random, case: Case) -> str:
    """For each pass any algorithm that computes it, or "auto"."""
    from d2lfast import algorithm

    image, weight = case.shapes["input"], case.shapes["weight"]
    assert image is not None
    assert weight is not None
    geometry = {name: case.options[name] for name in ("stride", "padding", "dilation", "groups")}
    if isinstance(geometry["padding"], str):
        same = geometry["padding"] == "same"
        dilation = geometry["dilation"]
        pair = (dilation, dilation) if isinstance(dilation, int) else dilation
        geometry["padding"] = [d * (k - 1) // 2 if same else 0 for d, k in zip(pair, weight[2:])]
    last = any("channels_last" in case.layouts[name] for name in ("input", "weight"))
    choices: list[list[str]] = [["auto"], ["auto"], ["auto"]]
    for name in algorithm.CONV2D_ALGORITHMS[1:]:
        with algorithm.conv2d_algorithm(name):
            chosen = algorithm.explain(
                "conv2d", image, weight, **geometry, dtype=case.dtype, channels_last=last, device=DEVICE
            )
        for pass_choices, of_pass in zip(choices, chosen.values()):
            if of_pass == name:
                pass_choices.append(name)
    return "/".join(map(rng.choice, choices))


def _values(rng: random.Random, operator: str) -> str:
    if operator.endswith(("_layer", "_cell")):
        return "trained"
    return "ties" if "pool" in operator and rng.random() < 0.4 else "normal"


def fuzz_case(operator: str, seed: int, index: int) -> Case:
    """Random case number `index` of an operator: a function of its arguments alone."""
    rng = random.Random(f"{operator}/{seed}/{index}")
    entry = OPERATORS[operator]
    shapes, options = entry.draw(rng)
    layouts = {}
    for name in (*entry.tensors, "grad_output"):
        free = name != "grad_output" and name in entry.mutated
        choices = ("contiguous", "strided") if free else LAYOUTS
        layouts[name] = maybe(rng, choices, "contiguous", 0.4)
    if rng.random() < 0.25:
        layouts["input"] = "channels_last"
    dtype = rng.choice((torch.float32, torch.float32, *DTYPES))
    dtypes = {}
    if operator == "batch_norm_act" and dtype in (torch.bfloat16, torch.float16) and rng.random() < 0.5:
        dtypes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.float32)
    differentiable = None
    if rng.random() < 0.3:
        differentiable = tuple(name for name in entry.differentiable if rng.random() < 0.6)
    case = Case(
        operator,
        shapes,
        options,
        dtype,
        dtypes,
        layouts,
        differentiable,
        used=(rng.choice((0, 1)),) if operator == "lstm_cell" and rng.random() < 0.3 else None,
        values=_values(rng, operator),
        seed=index,
    )
    if operator == "conv2d":
        case = case.replace(options={**options, "algorithm": _conv2d_algorithm(rng, case)})
    # Near the kink of ReLU rounding may decide whether a gradient passes.
    rounded = dtype.itemsize == 2 and options.get("nonlinearity") == "relu"
    if rounded or (
        case.options.get("algorithm", "").startswith("winograd") and options["activation"] == "relu"
    ):
        case = case.replace(differentiable=())
    return case
