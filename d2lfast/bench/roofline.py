"""What the machine can do at best, measured, and the time below which a case cannot fall."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from d2lfast.bench.case import Work

_MATRIX, _TRIAL = 2048, 128
_REPEATS = 16
_COPY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Roofline:
    """Peak arithmetic in FLOP/s and copy bandwidth in bytes/s, bytes read plus bytes written."""

    peak: float
    bandwidth: float

    def floor(self, work: Work, dtype: torch.dtype) -> float:
        """Seconds that the work takes at least, if its data come from memory and no FLOP can be saved."""
        return max(work.flops / self.peak, work.bytes(dtype) / self.bandwidth)

    def memory_bound(self, work: Work, dtype: torch.dtype) -> bool:
        """Whether the bytes, not the FLOPs, set the floor."""
        return work.bytes(dtype) / self.bandwidth >= work.flops / self.peak


def _fastest(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _matmul_rate(dtype: torch.dtype, size: int) -> float:
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = torch.empty_like(a)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, b, out=result), _REPEATS)


def _convolution_rate(dtype: torch.dtype) -> float:
    image = torch.randn(16, 256, 14, 14, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.ones(256, 256, 3, 3, dtype=dtype)
    flops = 2 * 256 * 9 * image.numel()
    return flops / _fastest(lambda: torch.nn.functional.conv2d(image, weight, padding=1), _REPEATS)


def _peak(dtype: torch.dtype) -> float:
    # Where the processor has no arithmetic of a 16-bit type, its large product takes seconds.
    wide = torch.promote_types(dtype, torch.float32)
    fast = dtype == wide or _matmul_rate(dtype, _TRIAL) > _matmul_rate(wide, _TRIAL)
    chosen = dtype if fast else wide
    # On some processors torch's matrix product uses half of the vector width and oneDNN's convolution all.
    return max(_matmul_rate(chosen, _MATRIX), _convolution_rate(chosen))


def measure_roofline(dtype: torch.dtype = torch.float32) -> Roofline:
    """Measure peak and bandwidth (`copy_` of 256 MiB), best of 16.

    The peak is the better of a 2048³ matrix product and a dense 3x3 convolution of 256 channels, by torch.

    The results are cached for the process and the number of threads. The peak of 16-bit types is that of
    float32, in which they are accumulated, or their own where it is higher.
    """
    return _measure(dtype, torch.get_num_threads())


@cache
def _measure(dtype: torch.dtype, threads: int) -> Roofline:
    with torch.no_grad():
        peak = _peak(dtype)
        source = torch.ones(_COPY_BYTES, dtype=torch.uint8).view(torch.float32)
        target = torch.zeros_like(source)
        bandwidth = 2 * _COPY_BYTES / _fastest(lambda: target.copy_(source), _REPEATS)
    return Roofline(peak, bandwidth)
