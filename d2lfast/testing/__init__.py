"""Comparison of d2lfast's operators with native PyTorch: cases, layouts, tolerances, and a seeded fuzzer.

A `Case` names an operator, the shapes, layouts and dtype of its tensors and its options; everything else
follows from it, so a case that fails can be run again. `check(case)` runs it with d2lfast and with torch.
"""

import torch

from d2lfast.testing.cases import Case, Result, inputs_of, run
from d2lfast.testing.compare import assert_accurate, check, compare
from d2lfast.testing.fuzz import fuzz_case
from d2lfast.testing.layouts import LAYOUTS, in_layout
from d2lfast.testing.operators import ACTIVATIONS, DTYPES, OPERATORS, Operator
from d2lfast.testing.recurrent_layers import LAYERS

OPERATORS.update(LAYERS)

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "LAYOUTS",
    "OPERATORS",
    "Case",
    "Operator",
    "Result",
    "assert_accurate",
    "check",
    "compare",
    "devices",
    "fuzz_case",
    "in_layout",
    "inputs_of",
    "run",
]


def devices() -> list[str]:
    """The devices on which this installation has d2lfast kernels."""
    from d2lfast._extension import build_info

    return ["cpu", "cuda"] if torch.cuda.is_available() and build_info()["cuda"] else ["cpu"]
