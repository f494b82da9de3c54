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


# input, result channels, kernel, stride, padding, dilation
CONVOLUTIONS = {
    "several steps of channels": ((2, 40, 7, 9), 24, (3, 3), 1, 1, 1),
    "several tiles": ((3, 8, 9, 8), 72, (1, 1), 1, 0, 1),
    "several row tiles of the weight": ((1, 40, 6, 5), 8, (3, 2), 1, 0, 1),
    "several parts of the pixels": ((3, 16, 14, 15), 8, (1, 1), 1, 0, 1),
    "strided and dilated": ((2, 16, 13, 11), 16, (3, 2), 2, 2, 2),
    "strides that differ": ((2, 8, 10, 11), 8, (3, 3), (2, 3), (1, 0), (1, 2)),
    "stride beyond the kernel": ((1, 8, 11, 10), 8, (2, 1), 3, 0, 1),
    "wide padding": ((1, 8, 5, 5), 8, (3, 3), 1, 3, 1),
}
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
IMPLICIT = {"float16": HALF, "bfloat16": BRAIN, "tf32": SINGLE, "ieee": SINGLE}


@pytest.fixture(params=IMPLICIT)
def implicit_dtype(request):
    """A dtype of the implicit GEMM; for float32, with torch's switch on and off."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    if request.param in ("tf32", "ieee"):
        convolutions.fp32_precision = request.param
    yield IMPLICIT[request.param]
    convolutions.fp32_precision = before


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_implicit_gemm(name, implicit_dtype):
    """Values whose products and sums are exact, so that any order of summation is."""
    dtype = implicit_dtype
    shape, outputs, kernel, *options = CONVOLUTIONS[name]
    pairs = [[option] * 2 if isinstance(option, int) else list(option) for option in options]
    input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randint(-1, 2, (outputs, shape[1], *kernel)).to(dtype).requires_grad_()
    bias = torch.randint(-3, 4, (outputs,)).to(dtype).requires_grad_()
    with Launches() as made:
        output = ops.conv2d(input, weight, bias, *pairs, 1, "relu", "implicit_gemm")
    assert len(made) == 1
    assert "Conv2dImplicitParams" in made[0][3]
    leaves = [tensor.detach().double().requires_grad_() for tensor in (input, weight, bias)]
    wanted = torch.nn.functional.conv2d(*leaves, *pairs).relu()
    torch.testing.assert_close(output.double(), wanted)
    gradient = torch.randint(-1, 2, output.shape).to(dtype)
    with Launches() as made:
        ours = torch.autograd.grad(output, (input, weight, bias), gradient)
    kinds = ("Conv2dImplicitParams", "Conv2dImplicitWeightParams", "int, long")
    assert len(made) == 3
    assert all(any(kind in kernel for _, _, _, kernel in made) for kind in kinds)
    if name == "several parts of the pixels":
        assert [grid[1] for grid, _, _, kernel in made if "WeightParams" in kernel] == [2]
    theirs = torch.autograd.grad(wanted, leaves, gradient.double())
    for mine, reference in zip(ours, theirs):
        exact = reference.to(dtype)  # rounded once, at the end
        torch.testing.assert_close(mine, exact, atol=0, rtol=0)


def test_tf32_only_where_torch_allows_it(implicit_dtype):
    """1 + 2^-12 is 1 in TF32."""
    if implicit_dtype is not torch.float32:
        pytest.skip("of float32")
    value = 1 + 2.0**-12
    input, weight = torch.full((1, 4, 2, 2), value), torch.full((4, 4, 1, 1), value)
    input.requires_grad_()
    weight.requires_grad_()
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
    output = ops.conv2d(input, weight, None, [1, 1], [0, 0], [1, 1], 1, "none", "implicit_gemm")
    rounded = 1.0 if tf32 else value
    assert (output == torch.tensor(4 * rounded**2)).all()
    grads = torch.autograd.grad(output, (input, weight), torch.ones_like(output))
    assert all((grad == torch.tensor(4 * rounded)).all() for grad in grads)


def test_implicit_gemm_of_random_values(implicit_dtype):
    """The error of one rounding of each factor and of the result, and of up to 360 sums in float."""
    input = torch.randn(2, 24, 9, 10).to(implicit_dtype).requires_grad_()
    weight = torch.randn(40, 24, 3, 3).to(implicit_dtype).requires_grad_()
    tf32 = implicit_dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    relative = 6 * (2.0**-10 if tf32 else torch.finfo(implicit_dtype).eps) + 24 * 2.0**-23
    leaves = [tensor.detach().double().requires_grad_() for tensor in (input, weight)]
    for strides in ([1, 1], [2, 2]):
        arguments = (None, strides, [1, 1], [1, 1])
        output = ops.conv2d(input, weight, *arguments, 1, "none", "implicit_gemm")
        wanted = torch.nn.functional.conv2d(*leaves, *arguments)
        gradient = torch.randn(output.shape).to(implicit_dtype)
        ours = (output, *torch.autograd.grad(output, (input, weight), gradient))
        theirs = (wanted, *torch.autograd.grad(wanted, leaves, gradient.double()))
        for mine, reference in zip(ours, theirs):
            assert (mine.double() - reference).abs().max() <= relative * reference.std()


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_implicit_gemm_of_misaligned_tensors(shift, implicit_dtype):
    flat = torch.randint(-2, 3, (1 * 4 * 5 * 8 + shift,)).to(implicit_dtype)
    input = flat[shift:].view(1, 4, 5, 8).permute(0, 3, 1, 2).requires_grad_()
    weight = torch.randint(-1, 2, (8 * 8 * 9 + shift,)).to(implicit_dtype)[shift:].view(8, 8, 3, 3)
    weight.requires_grad_()
    output = ops.conv2d(input, weight, None, [1, 1], [1, 1], [1, 1], 1, "none", "implicit_gemm")
    wanted = torch.nn.functional.conv2d(input.double(), weight.double(), None, 1, 1)
    torch.testing.assert_close(output.double(), wanted, atol=0, rtol=0)
    gradient = torch.randint(-1, 2, (output.numel() + shift,)).to(implicit_dtype)[shift:].view(output.shape)
    ours = torch.autograd.grad(output, (input, weight), gradient)
    theirs = torch.autograd.grad(wanted, (input, weight), gradient.double())
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_implicit_gemm_of_more_than_int32_elements():
    """An image of more than 2^30 elements is torch's; many images are not a question."""
    many = torch.empty(33, 64, 1024, 1024, dtype=torch.float16, memory_format=torch.channels_last)
    weight = torch.empty(8, 64, 1, 1, dtype=torch.float16)
    with Launches("dry") as made:
        ops.conv2d(many, weight, None, [1, 1], [0, 0], [1, 1], 1, "none", "implicit_gemm")
    assert [grid for grid, *_ in made] == [(33 * 2**20 // 128, 1, 1)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (32, 8), (3, 1)])
def test_convolutions_without_cudnn(layout, channels, groups):
    """Depthwise, small groups and few channels take our kernels in every pass."""
    input = torch.randn(2, channels, 9, 9).to(memory_format=layout).requires_grad_()
    weight = torch.randn(16 if groups < 16 else channels, channels // groups, 3, 3, requires_grad=True)
    with Launches() as made:
        output = ops.conv2d(input, weight, None, [1, 1], [1, 1], [1, 1], groups)
        torch.autograd.grad(output.sum(), (input, weight))
    kinds = ("Conv2dDirectParams", "Conv2dDirectParams", "Conv2dWeightParams", "int, long")
    assert [kind in kernel for kind, (_, _, _, kernel) in zip(kinds, made, strict=True)] == [True] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_layer_is_one_launch(mode, gates, dtype):
    """Each way; the weight that no longer fits into shared memory in float32 may in 16 bits."""
    hidden, wide = 8, {"tanh": 300, "gru": 160, "lstm": 140}[mode]
    assert ops._cuda_recurrent_layer_fits(mode, wide, dtype) == (dtype.itemsize == 2)
    weights = [torch.randn(gates * hidden, n).to(dtype).requires_grad_() for n in (5, hidden)]
    input, hx = torch.randn(3, 2, 5).to(dtype), torch.zeros(1, 2, hidden, dtype=dtype)
    cx = hx if mode == "lstm" else None
    with Launches() as made:
        output = ops._recurrent_layer(input, None, hx, cx, weights, mode, False, False, False)[0]
    assert len(made) == 1
    with Launches() as made:
        torch.autograd.grad(output.float().sum(), weights)
    assert len(made) == 1


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
