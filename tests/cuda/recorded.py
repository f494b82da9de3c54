"""The launches that operators make on the emulated GPU."""

import os

import pytest
import torch

ops = torch.ops.d2lfast
gpu = pytest.mark.skipif("D2LFAST_EMULATED_CUDA" not in os.environ, reason="needs the emulated GPU")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Launches:
    """The launches made in the block: (grid, block, bytes of shared memory, the kernel's type)."""

    def __init__(self, mode="record"):
        self.mode, self.made = mode, []

    def __enter__(self):
        ops._emulated_gpu(self.mode)
        return self.made

    def __exit__(self, *error):
        for line in ops._emulated_gpu("run").splitlines():
            *sizes, shared, kernel = line.split(" ", 7)
            numbers = tuple(map(int, sizes))
            self.made.append((numbers[:3], numbers[3:], int(shared), kernel))


def kernels(made):
    """The launches' blocks by kernel parameters."""
    return [(grid, kernel) for grid, _, _, kernel in made]


def pairs_of(options):
    """A convolution's options for both axes, from one number or two."""
    return [[option] * 2 if isinstance(option, int) else list(option) for option in options]
