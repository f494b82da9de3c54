"""Where to compute (book, 6.7)."""

import torch

__all__ = ["cpu", "gpu", "num_gpus", "try_all_gpus", "try_gpu"]


def cpu() -> torch.device:
    """The processor."""
    return torch.device("cpu")


def gpu(i: int = 0) -> torch.device:
    """The i-th GPU, whether it is there or not."""
    return torch.device("cuda", i)


def num_gpus() -> int:
    """The number of GPUs."""
    return torch.cuda.device_count()


def try_gpu(i: int = 0) -> torch.device:
    """The i-th GPU if it is there, else the processor."""
    return gpu(i) if num_gpus() > i else cpu()


def try_all_gpus() -> list[torch.device]:
    """All GPUs; without any, the processor alone (the book's returns an empty list against its own words)."""
    return [gpu(i) for i in range(num_gpus())] or [cpu()]
