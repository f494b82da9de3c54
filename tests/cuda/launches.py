"""Launch parameters on the emulated GPU, which test_emulation.py starts this with."""

import os

import pytest
import torch

import d2lfast

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


TILES = "Conv2dWinogradParams, d2lfast::cuda"


RESIDUALS = {
    "direct by 16 bytes": ("direct", (2, 8, 5, 6), (8, 1, 3, 3), 8),
    "direct": ("direct", (2, 6, 5, 7), (9, 2, 3, 3), 3),
    "implicit_gemm": ("implicit_gemm", (2, 16, 9, 8), (72, 16, 3, 3), 1),
    "implicit_gemm of odd channels": ("implicit_gemm", (2, 8, 5, 6), (7, 8, 3, 3), 1),
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
        assert [kernel for *_, kernel in made[True]] == [kernel for *_, kernel in made[False]]
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_layer_is_one_launch(mode, gates, dtype):
    """Each way; the weight that no longer fits into shared memory in float32 may in 16 bits."""
    hidden, wide = 8, {"tanh": 300, "gru": 160, "lstm": 140}[mode]
    alone = ops._cuda_recurrent_layer_algorithm(mode, 2, wide, dtype, True) == "persistent"
    assert alone == (dtype.itemsize == 2)
    weights = [torch.randn(gates * hidden, n).to(dtype).requires_grad_() for n in (5, hidden)]
    input, hx = torch.randn(3, 2, 5).to(dtype), torch.zeros(1, 2, hidden, dtype=dtype)
    cx = hx if mode == "lstm" else None
    with Launches() as made:
        output = ops._recurrent_layer(input, None, hx, cx, weights, mode, False, False, False)[0]
    assert len(made) == 1
    with Launches() as made:
        torch.autograd.grad(output.float().sum(), weights)
    assert len(made) == 1


@pytest.mark.parametrize("mode", ["tanh", "gru", "lstm"])
def test_recurrent_layer_of_several_blocks(mode):
    """A cooperative launch a direction, of packed sequences too; the blocks share out the units."""
    hidden = {"tanh": 300, "gru": 150, "lstm": 130}[mode]
    kind = {"tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[mode]
    layer = kind(3, hidden, bidirectional=True).double()
    data, sizes = torch.randn(13, 3).double(), torch.tensor([6, 4, 3])
    states = [torch.randn(2, 6, hidden).double().requires_grad_() for _ in range(2 if mode == "lstm" else 1)]
    packed = torch.nn.utils.rnn.PackedSequence(data, sizes)
    wanted = layer(packed, tuple(states) if mode == "lstm" else states[0])[0].data
    leaves = [t.detach().float().requires_grad_() for t in (*states, *layer.parameters())]
    first = len(states)
    with Launches() as made:
        cell = leaves[1] if mode == "lstm" else None
        arguments = (data.float(), sizes, leaves[0], cell, leaves[first:], mode, True, False, False)
        output = ops._recurrent_layer(*arguments)[0]
    assert len(made) == 2
    assert all(grid[0] > 1 and "GridShare" in kernel for grid, _, _, kernel in made)
    gradient = torch.randn(output.shape)
    with Launches() as made:
        found = torch.autograd.grad(output, leaves, gradient)
    assert len([kernel for *_, kernel in made if "GridShare" in kernel]) == 2
    expected = torch.autograd.grad(wanted, [*states, *layer.parameters()], gradient.double())
    for ours, exact in zip((output, *found), (wanted, *expected), strict=True):
        assert (ours.double() - exact).norm() < 3e-6 * exact.norm()


@pytest.mark.parametrize(
    ("processors", "layer", "algorithm"),
    [
        (132, ("gru", 32, 32, torch.float32, True), "persistent"),
        (132, ("lstm", 32, 256, torch.float32, True), "persistent_grid"),
        (132, ("lstm", 32, 650, torch.bfloat16, True), "aten"),
        (132, ("lstm", 8, 1024, torch.bfloat16, False), "persistent_grid"),
        (132, ("lstm", 8, 1024, torch.bfloat16, True), "aten"),
        (132, ("lstm", 32, 1024, torch.float64, False), "aten"),
        (3, ("lstm", 32, 256, torch.float32, True), "aten"),
    ],
)
def test_recurrent_layers_by_their_size(processors, layer, algorithm, monkeypatch):
    """By the computed time of a step on a GPU of so many multiprocessors."""
    monkeypatch.setenv("D2LFAST_EMULATED_PROCESSORS", str(processors))
    assert ops._cuda_recurrent_layer_algorithm(*layer) == algorithm


def test_nothing_is_launched_for_nothing():
    empty = torch.empty(0, 3, 8, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    channels = [torch.zeros(3), torch.ones(3)]
    with Launches() as made:
        outputs = [
            ops.max_pool2d(empty, [2, 2], [2, 2], [0, 0], [1, 1], False),
            ops.avg_pool2d(empty, [2, 2], [2, 2], [0, 0], False, True, None),
            ops.adaptive_avg_pool2d(empty, [4, 4]),
            ops.adaptive_max_pool2d(empty, [4, 4])[0],
            ops.batch_norm_act(empty, None, None, *channels, False, 0.1, 1e-5, "relu"),
        ]
        for algorithm in ("direct", "implicit_gemm", "winograd"):
            outputs.append(ops.conv2d(empty, weight, None, [1, 1], [1, 1], [1, 1], 1, "relu", algorithm))
        for output in outputs:
            grads = torch.autograd.grad(output.sum(), (empty, weight), allow_unused=True)
            assert grads[0].shape == empty.shape
            assert grads[1] is None or not grads[1].any()
    shapes = [(0, 3, 4, 4)] * 4 + [(0, 3, 8, 8)] + [(0, 4, 8, 8)] * 3
    assert [output.shape for output in outputs] == shapes
    assert made == []


@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_no_recurrent_launch_for_no_sequences(mode, gates):
    weights = [torch.randn(gates * 8, n, requires_grad=True) for n in (5, 8)]
    hx = torch.zeros(1, 0, 8)
    with Launches() as made:
        arguments = (None, hx, hx if mode == "lstm" else None, weights, mode, False, False, False)
        output = ops._recurrent_layer(torch.empty(3, 0, 5), *arguments)[0]
        grads = torch.autograd.grad(output.sum(), weights)
    assert output.shape == (3, 0, 8)
    assert not any(grad.any() for grad in grads)
    assert made == []


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


@pytest.mark.parametrize("shift", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_batch_norm_of_misaligned_tensors(layout, activation, dtype, shift):
    """One tensor at a time begins off a boundary, the others on one."""

    def images(moved):
        flat = torch.randn(4 * 16 * 8 * 8 + moved).to(dtype)[moved:]
        planar = layout is torch.contiguous_format
        return flat.view(4, 16, 8, 8) if planar else flat.view(4, 8, 8, 16).permute(0, 3, 1, 2)

    for moved in range(3):
        input, residual, grad = (images(shift if i == moved else 0) for i in range(3))
        leaves = [tensor.requires_grad_() for tensor in (input, residual)]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        statistics = [torch.zeros(16), torch.ones(16)]
        arguments = (True, 0.1, 1e-5, activation)
        output = ops.batch_norm_act(input, None, None, *statistics, *arguments, residual)
        normal = torch.nn.functional.batch_norm(exact[0], None, None, None, None, True)
        wanted = getattr(torch, activation)(normal + exact[1])
        ours = (output, *torch.autograd.grad(output, leaves, grad))
        theirs = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
        close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps}
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.double(), reference, **close)


@pytest.mark.parametrize("shared_bytes", ["3000", ""])
@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_layers_of_misaligned_tensors(mode, gates, shared_bytes, monkeypatch):
    """In one block and, with little shared memory, in several."""
    if shared_bytes:
        monkeypatch.setenv("D2LFAST_EMULATED_SHARED_BYTES", shared_bytes)

    def misaligned(*shape):
        return (0.5 * torch.randn(torch.Size(shape).numel() + 1))[1:].view(shape)

    hidden, cell = 32 if mode == "tanh" else 16, mode == "lstm"
    states = [misaligned(1, 3, hidden).requires_grad_() for _ in range(1 + cell)]
    leaves = [*states, *(misaligned(gates * hidden, n).requires_grad_() for n in (5, hidden))]
    leaves += [misaligned(gates * hidden).requires_grad_() for _ in range(2)]
    input, grad = misaligned(4, 3, 5), misaligned(4, 3, hidden)
    with Launches() as made:
        weights = leaves[1 + cell :]
        arguments = (None, leaves[0], leaves[1] if cell else None, weights, mode, True, False, False)
        output = ops._recurrent_layer(input, *arguments)[0]
    assert ["GridShare" in kernel for *_, kernel in made] == [bool(shared_bytes)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    native = {"tanh": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[mode]
    state = tuple(exact[:2]) if cell else exact[0]
    wanted = native(input.double(), state, exact[1 + cell :], True, 1, 0.0, False, False, False)[0]
    ours = (output, *torch.autograd.grad(output, leaves, grad))
    theirs = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_recurrent_cells_of_misaligned_tensors(kind):
    cell = getattr(torch.nn, kind)(5, 9).double()
    wanted_state = [torch.randn(3, 9).double() for _ in range(2 if kind == "LSTMCell" else 1)]
    input = torch.randn(3 * 5 + 1)[1:].view(3, 5)
    parameters = []
    for tensor in (*wanted_state, *cell.parameters()):
        moved = torch.empty(tensor.numel() + 1)[1:].view(tensor.shape)
        parameters.append(moved.copy_(tensor.detach()).requires_grad_())
    states = len(wanted_state)
    exact = [tensor.detach().double().requires_grad_() for tensor in parameters]
    own = parameters[:states] if states == 2 else [parameters[0]]
    op = {"RNNCell": ops.rnn_cell, "GRUCell": ops.gru_cell, "LSTMCell": ops.lstm_cell}[kind]
    native = {"RNNCell": torch.rnn_tanh_cell, "GRUCell": torch.gru_cell, "LSTMCell": torch.lstm_cell}[kind]
    output = op(input, *own, *parameters[states:], *(("tanh",) if states == 1 and "RNN" in kind else ()))
    state = tuple(exact[:2]) if states == 2 else exact[0]
    wanted = native(input.double(), state, *exact[states:])
    output, wanted = (value[0] if isinstance(value, tuple) else value for value in (output, wanted))
    ours = (output, *torch.autograd.grad(output.sum(), parameters))
    theirs = (wanted, *torch.autograd.grad(wanted.sum(), exact))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_planes_are_read_by_16_bytes(dtype, window, shift):
    """Where they are aligned; with NaN, and an odd number of rows."""
    kernel, stride, padding = window
    flat = torch.randint(-3, 4, (2 * 3 * 9 * 32 + shift,)).to(dtype)
    flat[::31] = float("nan")
    input = flat[shift:].view(2, 3, 9, 32).requires_grad_()
    pairs = [[kernel] * 2, [stride] * 2, [padding] * 2]
    leaf = input.detach().clone().requires_grad_()
    lanes = 16 // dtype.itemsize if shift * dtype.itemsize % 16 == 0 else stride
    with Launches() as made:
        output = ops.max_pool2d(input, *pairs, [1, 1], False)
    wanted = torch.nn.functional.max_pool2d(leaf, kernel, stride, padding)
    torch.testing.assert_close(output, wanted, equal_nan=True, rtol=0, atol=0)
    assert made[0][0][0] == -(-output.numel() * stride // lanes // 256)
    gradient = torch.randint(-3, 4, output.shape).to(dtype)
    ours = torch.autograd.grad(output, input, gradient)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted, leaf, gradient), rtol=0, atol=0)
    if window != (2, 2, 0):
        return
    for divisor in (None, 3):
        with Launches() as made:
            mean = ops.avg_pool2d(input, *pairs, False, True, divisor)
        exact = torch.nn.functional.avg_pool2d(leaf.double(), 2, 2, 0, divisor_override=divisor)
        torch.testing.assert_close(mean, exact.to(dtype), equal_nan=True)
        assert made[0][0][0] == -(-output.numel() * stride // lanes // 256)
        ours = torch.autograd.grad(mean, input, gradient)[0]
        theirs = torch.autograd.grad(exact, leaf, gradient.double())[0]
        torch.testing.assert_close(ours, theirs.to(dtype))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_means_of_planes(dtype, shift, side):
    input = torch.randint(-3, 4, (6 * side * side + shift,)).to(dtype)[shift:].view(2, 3, side, side)
    wanted = input.double().mean((2, 3), keepdim=True).to(dtype)
    torch.testing.assert_close(ops.adaptive_avg_pool2d(input, [1, 1]), wanted)
