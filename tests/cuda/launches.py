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
    """Training: three forward and three backward; evaluation: two, and one without parameters."""
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


CONVOLUTIONS = {
    "several steps of channels": ((2, 40, 7, 9), 24, (3, 3), 1, 1, 1),
    "several tiles": ((3, 8, 9, 8), 72, (1, 1), 1, 0, 1),
    "strided and dilated": ((2, 16, 13, 11), 16, (3, 2), 2, 2, 2),
    "wide padding": ((1, 8, 5, 5), 8, (3, 3), 1, 3, 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_implicit_gemm(name, dtype):
    """Tensor cores: values whose products and sums are exact, so that any order of summation is."""
    shape, outputs, kernel, stride, padding, dilation = CONVOLUTIONS[name]
    input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randint(-1, 2, (outputs, shape[1], *kernel)).to(dtype)
    bias = torch.randint(-3, 4, (outputs,)).to(dtype)
    pairs = ([stride] * 2, [padding] * 2, [dilation] * 2)
    with Launches() as made:
        output = ops.conv2d(input, weight, bias, *pairs, 1, "relu", "implicit_gemm")
    assert "Conv2dImplicitParams" in made[0][3]
    exact = input.detach().double().requires_grad_()
    wanted = torch.nn.functional.conv2d(exact, weight.double(), bias.double(), *pairs).relu()
    torch.testing.assert_close(output.double(), wanted)
    gradient = torch.randint(-1, 2, output.shape).to(dtype)
    with Launches() as made:
        (ours,) = torch.autograd.grad(output, input, gradient)
    (theirs,) = torch.autograd.grad(wanted, exact, gradient.double())
    assert any("Conv2dImplicitParams" in kernel for _, _, _, kernel in made) == (stride == 1)
    torch.testing.assert_close(ours.double(), theirs, atol=0.0 if dtype is torch.float16 else 0.5, rtol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (32, 8), (3, 1)])
def test_convolutions_without_cudnn(layout, channels, groups):
    """Depthwise, small groups and few channels take our kernels in every pass."""
    input = torch.randn(2, channels, 9, 9).to(memory_format=layout).requires_grad_()
    weight = torch.randn(16 if groups < 16 else channels, channels // groups, 3, 3, requires_grad=True)
    with Launches() as made:
        output = ops.conv2d(input, weight, None, [1, 1], [1, 1], [1, 1], groups)
        torch.autograd.grad(output.sum(), (input, weight))
    assert len(made) == 3


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
