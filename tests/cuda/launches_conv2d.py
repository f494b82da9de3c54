"""Launches of the convolutions on the emulated GPU, which test_emulation.py starts this with."""

import os

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu, ops, pairs_of

import d2lfast

pytestmark = gpu


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
    "wide tiles": ((2, 8, 18, 15), 104, (1, 1), 1, 0, 1),
    "wide tiles of the source": ((2, 72, 18, 15), 8, (2, 1), 1, 0, 1),
    "widest tiles": ((1, 64, 13, 14), 200, (3, 3), 1, 1, 1),
    "wide tiles and strides": ((1, 72, 17, 18), 72, (3, 3), 2, 1, 1),
    "pixels as columns": ((2, 24, 13, 12), 40, (3, 3), 1, 1, 1),
    "pixels as columns of several tiles": ((2, 8, 18, 15), 184, (1, 1), 1, 0, 1),
    "pixels as columns, strided": ((2, 16, 25, 27), 16, (3, 3), 2, 1, 1),
    "pixels as columns of many images": ((270, 8, 1, 2), 8, (1, 2), 1, 0, 1),
}
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
WARPGROUPS = os.environ.get("D2LFAST_EMULATED_CAPABILITY") == "90"
# The rule for tiles then chooses those of 64 channels by 256 pixels in 16 bits.
ONE_PROCESSOR = os.environ.get("D2LFAST_EMULATED_PROCESSORS") == "1"
PIXELS_AS_COLUMNS = ("several parts of the pixels", "wide tiles of the source")
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
    pairs = pairs_of(options)
    input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randint(-1, 2, (outputs, shape[1], *kernel)).to(dtype).requires_grad_()
    bias = torch.randint(-3, 4, (outputs,)).to(dtype).requires_grad_()
    with Launches() as made:
        output = ops.conv2d(input, weight, bias, *pairs, 1, "relu", "implicit_gemm")
    assert len(made) == 1
    assert "Conv2dImplicitParams" in made[0][3]
    warpgroups = WARPGROUPS and dtype != SINGLE
    columns = name.startswith("pixels as columns") or name in PIXELS_AS_COLUMNS
    if not warpgroups or ONE_PROCESSOR:
        assert made[0][1] == (256 if warpgroups and not columns else 128, 1, 1)
    if name == "wide tiles":
        assert made[0][0] == (5, 1, 1)
    if warpgroups and name == "widest tiles":
        assert made[0][0] == (2, 1, 1)
    if warpgroups and ONE_PROCESSOR and name == "pixels as columns of several tiles":
        assert made[0][0] == (3 * 3, 1, 1)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (input, weight, bias)]
    sums = torch.nn.functional.conv2d(*leaves, *pairs)
    squashed = ops.conv2d(input, weight, bias, *pairs, 1, "tanh", "implicit_gemm")
    torch.testing.assert_close(squashed, sums.tanh().to(dtype))
    wanted = sums.relu()
    torch.testing.assert_close(output.double(), wanted)
    gradient = torch.randint(-1, 2, output.shape).to(dtype)
    with Launches() as made:
        ours = torch.autograd.grad(output, (input, weight, bias), gradient)
    kinds = ("Conv2dImplicitParams", "Conv2dImplicitWeightParams", "int, long")
    assert len(made) == 3
    assert all(any(kind in kernel for _, _, _, kernel in made) for kind in kinds)
    assert [block[0] for _, block, _, kernel in made if "WeightParams" in kernel] == [
        256 if warpgroups else 128
    ]
    if name == "several parts of the pixels":
        assert [grid[1] for grid, _, _, kernel in made if "WeightParams" in kernel] == [2]
    if name == "wide tiles":
        assert [grid[0] for grid, _, _, kernel in made if "WeightParams" in kernel] == [1]
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
    """An image of more than 2^30 elements is torch's; many images are not a question. Warpgroups count a
    tile's two images in 32 bits."""
    weight = torch.empty(8, 64, 1, 1, dtype=torch.float16)
    for images, size, warpgroups in ((33, 1024, WARPGROUPS), (3, 4096, False)):
        many = torch.empty(images, 64, size, size, dtype=torch.float16, memory_format=torch.channels_last)
        with Launches("dry") as made:
            ops.conv2d(many, weight, None, [1, 1], [0, 0], [1, 1], 1, "none", "implicit_gemm")
        assert [grid for grid, *_ in made] == [(images * size**2 // (256 if warpgroups else 128), 1, 1)]


TILES = "Conv2dWinogradParams, d2lfast::cuda"


RESIDUALS = {
    "direct by 16 bytes": ("direct", (2, 8, 5, 6), (8, 1, 3, 3), 8),
    "direct by columns": ("direct", (2, 4, 9, 12), (4, 1, 3, 3), 4),
    "direct": ("direct", (2, 6, 5, 7), (9, 2, 3, 3), 3),
    "implicit_gemm": ("implicit_gemm", (2, 16, 9, 8), (72, 16, 3, 3), 1),
    "implicit_gemm of odd channels": ("implicit_gemm", (2, 8, 5, 6), (7, 8, 3, 3), 1),
    "implicit_gemm of odd channels and pixels as columns": ("implicit_gemm", (2, 8, 13, 12), (7, 8, 3, 3), 1),
    "implicit_gemm of even channels and pixels as columns": (
        "implicit_gemm",
        (2, 8, 13, 12),
        (42, 8, 3, 3),
        1,
    ),
    "implicit_gemm of pixels as columns": ("implicit_gemm", (3, 8, 13, 12), (56, 8, 3, 3), 1),
    "winograd by rows": ("winograd", (2, 5, 6, 8), (7, 5, 3, 3), 1),
    "winograd": ("winograd", (2, 5, 6, 7), (7, 5, 3, 3), 1),
}


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("name", RESIDUALS)
def test_residual_in_the_epilogue(name, dtype, shift):
    """activation(sum + bias + residual) in the launches of the convolution; small integers are exact."""
    algorithm, shape, filters, groups = RESIDUALS[name]
    if (algorithm == "winograd" and dtype != SINGLE) or (
        algorithm == "implicit_gemm" and dtype == torch.float64
    ):
        pytest.skip("not of this algorithm")
    weight = torch.randint(-1, 2, filters).to(dtype)
    bias = torch.randint(-3, 4, filters[:1]).to(dtype)
    n, _, h, w = shape
    for layout in LAYOUTS:
        input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=layout)
        flat = torch.randint(-4, 5, (n * filters[0] * h * w + shift,)).to(dtype)[shift:]
        planar = layout is torch.contiguous_format
        size = (n, filters[0], h, w) if planar else (n, h, w, filters[0])
        residual = flat.view(size) if planar else flat.view(size).permute(0, 3, 1, 2)
        made, outputs = {}, {}
        for added in (None, residual):
            leaf = None if added is None else added.requires_grad_()
            with Launches() as made[added is None]:
                arguments = (bias, [1, 1], [1, 1], [1, 1], groups, "relu", algorithm, leaf)
                outputs[added is None] = ops.conv2d(input, weight, *arguments)
        # A residual off a boundary may take another kernel of the same parameters.
        without, along = ([kernel.split(",")[0] for *_, kernel in made[bare]] for bare in (True, False))
        assert along == without
        assert outputs[False].is_contiguous(memory_format=layout)
        exact = residual.detach().double().requires_grad_()
        plain = torch.nn.functional.conv2d(input.double(), weight.double(), bias.double(), 1, 1, 1, groups)
        close = {"rtol": 1e-5, "atol": 1e-4} if algorithm == "winograd" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(outputs[True], plain.relu().to(dtype), **close)
        wanted = (plain + exact).relu()
        torch.testing.assert_close(outputs[False], wanted.to(dtype), **close)
        grad = torch.randn(wanted.shape).to(dtype)
        if algorithm != "winograd":  # rounding moves results across zero
            ours = torch.autograd.grad(outputs[False], residual, grad)[0]
            assert torch.equal(ours.double(), torch.autograd.grad(wanted, exact, grad.double())[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_winograd_of_one_value_with_a_residual(layout):
    """Tiles that are computed anew get it too."""
    input = torch.randn(1, 3, 8, 9).to(memory_format=layout)
    weight, residual = torch.randn(4, 3, 3, 3), torch.randn(1, 4, 8, 9)
    input[0, 1, 3, 3] = float("inf")
    arguments = ([1, 1], [1, 1], [1, 1], 1)
    output = ops.conv2d(input, weight, None, *arguments, "none", "winograd", residual)
    wanted = torch.nn.functional.conv2d(input.double(), weight.double(), None, *arguments) + residual
    torch.testing.assert_close(output, wanted.float(), rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("batch", "layout", "algorithm"),
    [(2**14, True, "direct"), (2**15, True, "aten"), (2**18, False, "direct"), (2**25, False, "aten")],
)
def test_direct_convolution_counts_in_32_bits(batch, layout, algorithm):
    """What its launches could not count is torch's, and no error."""
    arguments = ("conv2d", (batch, 64, 64, 64), (64, 2, 3, 3))
    names = d2lfast.explain(*arguments, padding=1, groups=32, dtype=HALF, device="cuda", channels_last=layout)
    assert set(names.values()) == {algorithm}


WINOGRAD = ["Conv2dWinogradParams, int", TILES, TILES]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_winograd(layout, shift):
    """A launch for each transform: of filters, sources and results; for the weight's gradient of sources,
    gradients and filters. Views off an access's boundary too."""
    planar = layout is torch.contiguous_format
    flat = torch.randn(2 * 6 * 8 * 12 + shift)[shift:]
    input = flat.view(2, 6, 8, 12) if planar else flat.view(2, 8, 12, 6).permute(0, 3, 1, 2)
    weight = torch.randn(7 * 6 * 9 + shift)[shift:].view(7, 6, 3, 3)
    leaves = [tensor.requires_grad_() for tensor in (input, weight, torch.randn(7))]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for padding in ([1, 1], [0, 3]):
        with Launches() as made:
            output = ops.conv2d(*leaves, [1, 1], padding, [1, 1], 1, "relu", "winograd")
        assert all(kind in kernel for kind, (*_, kernel) in zip(WINOGRAD, made, strict=True))
        wanted = torch.nn.functional.conv2d(*exact, 1, padding).relu()
        gradient = torch.randn(output.numel() + shift)[shift:].view(output.shape)
        with Launches() as made:
            ours = torch.autograd.grad(output, leaves, gradient)
        kinds = [*WINOGRAD, TILES, TILES, "Conv2dWinogradParams, int"]
        assert all(kind in kernel for kind, (*_, kernel) in zip(kinds, made, strict=True))
        theirs = torch.autograd.grad(wanted, exact, gradient.double())
        for mine, reference in zip((output, *ours), (wanted, *theirs), strict=True):
            error = (mine.double() - reference).norm()
            assert error <= 5e-6 * reference.norm()


def test_winograd_takes_some_images_at_a_time():
    input = torch.randn(3, 2, 116, 88, requires_grad=True)
    weight = torch.randn(512, 2, 3, 3, requires_grad=True)
    with Launches() as made:
        output = ops.conv2d(input, weight, None, [1, 1], [1, 1], [1, 1], 1, "none", "winograd")
    assert len(made) == 1 + 2 * 2
    gradient = torch.randn(output.shape)
    with Launches() as made:
        ours = torch.autograd.grad(output, weight, gradient)[0]
    assert len(made) == 2 * 2 + 1
    wanted = torch.nn.functional.conv2d(input, weight, None, 1, 1)
    assert (output - wanted).norm() <= 5e-6 * wanted.norm()
    theirs = torch.autograd.grad(wanted, weight, gradient)[0]
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_winograd_weight_gradient_of_one_value(layout):
    """Infinity and NaN stay with the channels that have them, and what nearly overflows is exact."""
    input, weight = torch.randn(3, 4, 9, 10), torch.randn(5, 4, 3, 3, requires_grad=True)
    gradient = torch.randn(3, 5, 9, 10)
    # Where the gradient meets padding, torch multiplies zeros by what is not finite.
    inside, edge = (2, 3, 4, 4), (2, 3, 8, 9)
    for tensor, place, value in (
        *((input, (1, 2, 4, 4), value) for value in (float("inf"), float("nan"), 1e31)),
        (gradient, inside, float("inf")),
        (gradient, inside, float("nan")),
        (gradient, edge, 1e31),
    ):
        before = tensor[place].item()
        tensor[place] = value
        arguments = (None, [1, 1], [1, 1], [1, 1])
        x, grad = input.to(memory_format=layout), gradient.to(memory_format=layout)
        output = ops.conv2d(x, weight, *arguments, 1, "none", "winograd")
        ours = torch.autograd.grad(output, weight, grad)[0]
        wanted = torch.nn.functional.conv2d(x.double(), weight.double(), *arguments)
        theirs = torch.autograd.grad(wanted, weight, grad.double())[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
        tensor[place] = before


def test_winograd_is_never_the_tables():
    """No figure of a GPU says where it wins, and the CPU's rules are the CPU's."""
    input, weight = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
    with Launches() as made:
        ops.conv2d(input, weight, None, [1, 1], [1, 1], [1, 1], 1)
    assert made == []


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


# input, result channels, kernel, groups, stride, padding, dilation; the first word: of whose kernels
DIRECT = {
    "depthwise 3x3": ((2, 16, 9, 11), 16, 3, 16, 1, 1, 1),
    "depthwise 3x3, stride 2": ((2, 8, 10, 13), 8, 3, 8, 2, 1, 1),
    "depthwise 5x5": ((1, 16, 13, 10), 16, 5, 16, 1, 2, 1),
    "depthwise 5x5, stride 2": ((1, 8, 18, 9), 8, 5, 8, 2, 2, 1),
    "depthwise 7x7": ((1, 8, 9, 12), 8, 7, 8, 1, 3, 1),
    "depthwise 3x3 in whole columns": ((2, 8, 19, 16), 8, 3, 8, 1, 1, 1),
    "depthwise 3x3 in whole columns, stride 2": ((2, 8, 17, 12), 8, 3, 8, 2, 1, 1),
    "depthwise 3x3 without padding": ((2, 12, 11, 22), 12, 3, 12, 1, 0, 1),
    "depthwise 5x5 in whole columns": ((2, 4, 11, 12), 4, 5, 4, 1, 2, 1),
    "depthwise 5x5 in whole columns, stride 2": ((1, 4, 15, 12), 4, 5, 4, 2, 2, 1),
    "depthwise 7x7 in whole columns": ((1, 4, 9, 16), 4, 7, 4, 1, 3, 1),
    "depthwise with padding beyond the kernel": ((1, 8, 5, 5), 8, 3, 8, 1, 3, 1),
    "tiles of many images": ((512, 1, 8, 8), 64, 3, 1, 1, 1, 1),
    "tiles of several steps of channels": ((1, 60, 9, 9), 12, 5, 1, 1, 2, 1),
    "tiles of several units": ((2, 3, 17, 15), 80, 5, 1, 2, 2, 1),
    "tiles of groups": ((2, 40, 9, 10), 40, 3, 10, 1, 1, 1),
    "tiles of groups, stride 2": ((1, 72, 7, 9), 72, 3, 9, 2, 1, 1),
    "tiles of groups of several units": ((1, 6, 8, 7), 40, 3, 2, 1, 1, 1),
    "tiles, strided and dilated": ((1, 6, 15, 17), 8, 3, 2, (2, 3), (2, 4), (1, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, HALF], ids=str)
@pytest.mark.parametrize("name", DIRECT)
def test_direct_convolution(name, dtype):
    """Integers, whose sums are exact and rounded once."""
    shape, outputs, kernel, groups, *options = DIRECT[name]
    pairs = pairs_of(options)
    input = torch.randint(-2, 3, shape).to(dtype)
    weight = torch.randint(-1, 2, (outputs, shape[1] // groups, kernel, kernel)).to(dtype).requires_grad_()
    bias = torch.randint(-3, 4, (outputs,)).to(dtype).requires_grad_()
    for layout in LAYOUTS:
        leaves = (input.to(memory_format=layout).detach().requires_grad_(), weight, bias)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        with Launches() as made:
            output = ops.conv2d(*leaves, *pairs, groups, "relu", "direct")
        assert ["DepthwiseTiles" in launched for *_, launched in made] == [name.startswith("depthwise")]
        tiles = "ProductTiles" if dtype == HALF else "::Tiles"
        assert [tiles in launched for *_, launched in made] == [name.startswith("tiles")]
        wanted = torch.nn.functional.conv2d(*exact, *pairs, groups).relu()
        torch.testing.assert_close(output, wanted.to(dtype), rtol=0, atol=0)
        grad = torch.randint(-1, 2, output.shape).to(dtype).to(memory_format=layout)
        ours = torch.autograd.grad(output, leaves[:2], grad)
        theirs = torch.autograd.grad(wanted, exact[:2], grad.double())
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("groups", [8, 2])
def test_direct_convolution_of_misaligned_tensors(groups, dtype, shift):
    """Integers, whose sums are exact; input, weight, bias and gradient begin off a boundary."""

    def misaligned(*shape):
        flat = torch.randint(-2, 3, (torch.Size(shape).numel() + shift,)).to(dtype)
        return flat[shift:].view(shape)

    weight, bias = misaligned(8, 8 // groups, 3, 3).requires_grad_(), misaligned(8).requires_grad_()
    for layout in LAYOUTS:
        last = layout is torch.channels_last
        input = misaligned(2, 5, 6, 8).permute(0, 3, 1, 2) if last else misaligned(2, 8, 5, 6)
        leaves = (input.requires_grad_(), weight, bias)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        output = ops.conv2d(*leaves, [1, 1], [1, 1], [1, 1], groups, "relu", "direct")
        assert output.is_contiguous(memory_format=layout)
        wanted = torch.nn.functional.conv2d(*exact, 1, 1, 1, groups).relu()
        torch.testing.assert_close(output.double(), wanted, rtol=0, atol=0)
        grad = misaligned(2, 5, 6, 8).permute(0, 3, 1, 2) if last else misaligned(2, 8, 5, 6)
        ours = torch.autograd.grad(output, leaves, grad)
        theirs = torch.autograd.grad(wanted, exact, grad.double())
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.double(), reference, rtol=0, atol=0)
