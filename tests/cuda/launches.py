"""Launch parameters on the emulated GPU, which test_emulation.py starts this with."""

import os

import pytest
import torch

gpu = pytest.mark.skipif("D2LFAST_EMULATED_CUDA" not in os.environ, reason="needs the emulated GPU")
pytestmark = gpu
ops = torch.ops.d2lfast
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


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_more_than_int32_elements(op, layout):
    """Offsets get 64 bits, and the grid stays within its limits, which the emulation checks."""
    wide = torch.empty(33, 64, 1024, 1024, dtype=torch.float16, memory_format=layout)
    small = torch.empty(2, 64, 8, 8, dtype=torch.float16).to(memory_format=layout)
    arguments = {
        "max_pool2d": ([2, 2], [2, 2], [0, 0], [1, 1], False),
        "avg_pool2d": ([2, 2], [2, 2], [0, 0], False, True, None),
        "adaptive_avg_pool2d": ([7, 7],),
    }[op]
    for tensor, index in ((wide, "long"), (small, "int")):
        with Launches("dry") as made:
            getattr(ops, op)(tensor, *arguments)
        assert len(made) == 1
        assert f"PoolItems<{index}>" in made[0][3]


def kernels(made):
    """The launches' blocks by kernel parameters."""
    return [(grid, kernel) for grid, _, _, kernel in made]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_batch_norm_of_more_than_int32_elements(layout):
    input = torch.empty(33, 64, 1024, 1024, dtype=torch.float16, memory_format=layout)
    statistics = [torch.zeros(64), torch.ones(64)]
    with Launches("dry") as made:
        ops.batch_norm_act(input, None, None, *statistics, True, 0.1, 1e-5, "relu")
    assert len(made) == 3  # sums of parts, their merging, normalisation
    assert all("BatchNorm" in kernel for _, kernel in kernels(made))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_batch_norm_takes_the_launches_it_needs(layout, shift):
    """Training: three launches forward and backward each; evaluation: two, one without parameters' gradients."""
    size = 4 * 16 * 8 * 8
    flat = torch.randn(size + shift)[shift:]
    planar = layout is torch.contiguous_format
    input = flat.view(4, 16, 8, 8) if planar else flat.view(4, 8, 8, 16).permute(0, 3, 1, 2)
    input.requires_grad_()
    for training, forward, backward in ((True, 3, 3), (False, 2, 1)):
        with Launches() as made:
            output = ops.batch_norm_act(
                input, None, None, torch.zeros(16), torch.ones(16), training, 0.1, 1e-5, "relu"
            )
        assert len(made) == forward
        with Launches() as made:
            torch.autograd.grad(output.sum(), input)
        assert len(made) == backward


def test_nothing_is_launched_for_nothing():
    empty = torch.empty(0, 3, 8, 8)
    with Launches() as made:
        assert ops.max_pool2d(empty, [2, 2], [2, 2], [0, 0], [1, 1], False).shape == (0, 3, 4, 4)
        assert ops.avg_pool2d(empty, [2, 2], [2, 2], [0, 0], False, True, None).shape == (0, 3, 4, 4)
        assert ops.adaptive_avg_pool2d(empty, [1, 1]).shape == (0, 3, 1, 1)
        assert ops.adaptive_max_pool2d(empty, [1, 1])[0].shape == (0, 3, 1, 1)
    assert made == []


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_wide_accesses_need_aligned_tensors(shift, dtype):
    """Off a 16-byte boundary a thread takes single elements; the emulation stops on a misaligned access."""
    flat = torch.randn(2 * 8 * 9 * 10 + shift).to(dtype)
    view = flat[shift:].view(2, 9, 10, 8).permute(0, 3, 1, 2)
    with Launches() as made:
        output = ops.max_pool2d(view, [3, 3], [2, 2], [1, 1], [1, 1], False)
        mean = ops.avg_pool2d(view, [3, 3], [2, 2], [1, 1], False, True, None)
    wanted = torch.nn.functional.max_pool2d(view.float(), 3, 2, 1).to(dtype)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(
        mean.float(), torch.nn.functional.avg_pool2d(view.float(), 3, 2, 1), atol=1e-3, rtol=1e-3
    )
    items = output.numel()
    lanes = 16 // dtype.itemsize if shift * dtype.itemsize % 16 == 0 else 1
    assert made[0][0][0] == -(-items // lanes // 256)
