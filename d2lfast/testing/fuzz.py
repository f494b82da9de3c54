"""Random cases, each a function of its seed and number."""

import random

import torch

from d2lfast.testing.cases import Case
from d2lfast.testing.layouts import LAYOUTS
from d2lfast.testing.operators import DTYPES, OPERATORS, maybe


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
    return Case(
        operator,
        shapes,
        options,
        dtype,
        dtypes,
        layouts,
        differentiable,
        used=(rng.choice((0, 1)),) if operator == "lstm_cell" and rng.random() < 0.3 else None,
        values="ties" if "pool" in operator and rng.random() < 0.4 else "normal",
        seed=index,
    )
