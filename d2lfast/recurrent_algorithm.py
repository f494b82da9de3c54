"""Which algorithm computes a recurrent layer over whole sequences."""

from functools import cache

import torch

from d2lfast import _extension


@cache
def _bfloat16_products() -> bool:
    """Whether the processor multiplies bfloat16 vectors, which torch's products then use."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def torch_is_faster(
    mode: str, dtype: torch.dtype, batch: int, inputs: int, hidden: int, training: bool
) -> bool:
    """Whether torch's layer was measured faster on the CPU: bfloat16 products of large layers."""
    if dtype is not torch.bfloat16 or not _bfloat16_products():
        return False
    # Multiply-adds of a gate and step; this library multiplies in float32.
    work = batch * hidden * (inputs + hidden)
    if mode == "lstm":
        return work >= 900_000 and (hidden >= 128 or (training and batch >= 512))
    return work >= 16_000_000


def cuda_algorithm(mode: str, batch: int, hidden: int, dtype: torch.dtype, training: bool) -> str:
    """Name the algorithm of a layer without projection on the current GPU (an H200 where there is none)."""
    chosen = getattr(torch.ops.d2lfast, "_cuda_recurrent_layer_algorithm", None)
    return "aten" if chosen is None else chosen(mode, batch, hidden, dtype, training)


def recurrent_algorithm(
    mode: str,
    batch: int,
    inputs: int,
    hidden: int,
    *,
    projection: int = 0,
    directions: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    training: bool = True,
) -> str:
    """Name the algorithm of a layer.

    Args:
        mode: "tanh", "relu", "gru" or "lstm".
        batch, inputs, hidden, projection, directions: sizes; `projection` is 0 for none.
        dtype, device: of the tensors.
        training: whether gradients are wanted.

    Returns:
        "fused" (each thread takes blocks of rows through all of time, everything within the step), "rows"
        (the products with the input first, then threads split the batch), "units" (threads split the units
        of every step), "persistent_cluster" (CUDA: one launch a direction, whose clusters of blocks keep the
        recurrent weight in registers), "persistent" (CUDA: likewise, each block in its shared memory),
        "persistent_grid" (CUDA: likewise, all blocks, which meet after each step) or "aten" (torch's own
        layer).
    """
    if device == "cuda":
        return "aten" if projection else cuda_algorithm(mode, batch, hidden, dtype, training)
    if not projection and torch_is_faster(mode, dtype, batch, inputs, hidden, training):
        return "aten"
    return _extension.load().recurrent_schedule(
        mode, batch, inputs, projection or hidden, hidden, directions, dtype is torch.float64
    )
