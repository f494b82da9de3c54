"""The output-layout rule, the same as in csrc/ops/layout.h: what comes in is what goes out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def empty_like_layout(input: Tensor, shape: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """An output of `shape` ([N,C,H,W] or unbatched [C,H,W]) in the memory format of `input`."""
    dtype = dtype or input.dtype
    if len(shape) == 4 and input.dim() == 4:
        return input.new_empty(shape, dtype=dtype).to(memory_format=suggest_memory_format(input))
    return input.new_empty(shape, dtype=dtype)
