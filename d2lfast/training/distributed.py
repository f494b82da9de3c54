"""Training over several processes, each with a part of every batch (torchrun, DistributedDataParallel)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

import d2lfast.nn


def rank() -> int:
    """The number of this process, 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes(device: str | None = None) -> Iterator[torch.device | None]:
    """Join the processes that torchrun started, for the duration of the block.

    Gives the device of this process (its GPU, or the CPU), or None if torchrun did not start it. The backend
    is nccl on GPUs and gloo on the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        yield None
        return
    kind = torch.device(device).type if device else ("cuda" if torch.cuda.is_available() else "cpu")
    own = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield own
    finally:
        dist.destroy_process_group()


def own_part(batch: Sequence[Any]) -> tuple[list[Any], float]:
    """Return this process's examples of a batch, and the weight of their mean loss in the whole batch's.

    The weights of all processes average 1, as DistributedDataParallel averages gradients. A process for which
    nothing is left takes one example, with weight 0.
    """
    count, world, me = len(batch[0]), world_size(), rank()
    begin, end = count * me // world, count * (me + 1) // world
    weight = (end - begin) * world / count
    if begin == end:
        begin, end = 0, 1
    return [item[begin:end] if isinstance(item, Tensor) else item for item in batch], weight


class _Step(nn.Module):
    """The training step of a model as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Sequence[Any]) -> Tensor:
        return self.model.training_step(batch)


def parallel_step(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the training step of `model` such that its gradients are averaged over the processes."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return _Step(model)
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(_Step(model), device_ids=ids)


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Let batch normalisation take its statistics over all processes, in place where that can be.

    Torch's own layer does so on GPUs only; d2lfast's, where this build has it, also on the CPU.
    """
    return d2lfast.nn.SyncBatchNorm.convert_sync_batchnorm(model)
