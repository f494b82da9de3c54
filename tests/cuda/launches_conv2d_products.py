"""Launches of products on tensor cores, and of their weight gradients, of few channels, on the emulated GPU,
which test_emulation.py starts this with."""

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu, ops, pairs_of

import d2lfast

pytestmark = gpu
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32

# input, result channels, kernel, groups, stride, padding, dilation
PRODUCTS = {
    "groups of 1 channel": ((1, 6, 7, 9), 12, (3, 3), 6, 1, 1, 1),
    "groups of 2": ((1, 18, 8, 7), 18, (3, 3), 9, 1, 1, 1),
    "groups of 3": ((2, 9, 7, 6), 9, (3, 3), 3, 1, 1, 1),
    "groups of 4": ((1, 24, 9, 11), 24, (3, 3), 6, 1, 1, 1),
    "groups of 5 to 7": ((1, 10, 9, 9), 14, (3, 2), 2, (2, 3), (2, 1), (1, 2)),
    "groups of 8, stride 2": ((1, 24, 9, 10), 24, (3, 3), 3, 2, 1, 1),
    "groups of 16": ((1, 32, 7, 8), 32, (3, 3), 2, 1, 1, 1),
    "groups of 32, dilated": ((1, 64, 6, 8), 64, (3, 3), 2, 1, 2, 2),
    "groups of 24 to 5": ((1, 48, 8, 8), 10, (1, 3), 2, 3, 1, 1),
    "7x7 of 3 channels": ((1, 3, 19, 18), 64, (7, 7), 1, 2, 3, 1),
    "11x11 of 3 channels": ((1, 3, 27, 30), 40, (11, 11), 1, 4, 2, 1),
    "3x3 of 1 channel": ((2, 1, 14, 13), 64, (3, 3), 1, 1, 1, 1),
    "5x5 of 1 channel": ((3, 1, 12, 12), 6, (5, 5), 1, 1, 2, 1),
    "2 channels, dilated": ((1, 2, 11, 10), 20, (5, 5), 1, 1, 2, (1, 2)),
    "12 channels": ((1, 12, 8, 8), 24, (3, 3), 1, 1, 1, 1),
    "many images": ((20, 4, 5, 5), 8, (3, 3), 2, 1, 1, 1),
    "stride beyond the kernel": ((1, 3, 8, 9), 4, (2, 1), 1, 3, 0, 1),
    "neighbours of a row": ((2, 1, 12, 22), 20, (7, 7), 1, 2, 3, 1),
    "neighbours, several images": ((37, 1, 8, 8), 40, (3, 3), 1, 1, 1, 1),
    "neighbours, 3 channels": ((2, 3, 26, 34), 96, (11, 11), 1, 4, 1, 1),
    "neighbours, 17 taps": ((1, 2, 15, 40), 24, (3, 17), 1, 2, (1, 8), 1),
    "neighbours, several tiles": ((1, 1, 40, 262), 24, (5, 9), 1, 4, (2, 3), 1),
    "neighbours, several tiles, stride 1": ((1, 3, 3, 1100), 16, (3, 3), 1, 1, 1, 1),
    "neighbours, rows apart": ((1, 3, 21, 18), 24, (3, 3), 1, (3, 2), 1, (2, 1)),
    "neighbours, 12 channels": ((1, 12, 9, 10), 24, (3, 3), 1, 1, 1, 1),
}


@pytest.fixture
def tf32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        yield


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_direct_convolution_on_tensor_cores(name, dtype, tf32):
    """Integers, whose sums are exact and rounded once; with a residual, and the data gradient."""
    shape, outputs, kernel, groups, *options = PRODUCTS[name]
    pairs = pairs_of(options)
    weight = torch.randint(-1, 2, (outputs, shape[1] // groups, *kernel)).to(dtype)
    bias = torch.randint(-3, 4, (outputs,)).to(dtype)
    for layout in LAYOUTS:
        input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=layout).requires_grad_()
        exact = input.detach().double().requires_grad_()
        wanted = torch.nn.functional.conv2d(exact, weight.double(), bias.double(), *pairs, groups)
        residual = torch.randint(-4, 5, wanted.shape).to(dtype).to(memory_format=layout)
        grad = torch.randint(-1, 2, wanted.shape).to(dtype).to(memory_format=layout)
        with Launches() as made:
            output = ops.conv2d(input, weight, bias, *pairs, groups, "relu", "direct", residual)
            ours = torch.autograd.grad(output, input, grad)[0]
        convolutions = [kernel for *_, kernel in made if "Conv2dDirectParams" in kernel]
        products = dtype != SINGLE or name != "5x5 of 1 channel"  # whose fragments would be empty
        assert ["ProductTiles" in kernel for kernel in convolutions] == [products] * 2
        wanted = (wanted + residual.double()).relu()
        torch.testing.assert_close(output, wanted.to(dtype), rtol=0, atol=0)
        theirs = torch.autograd.grad(wanted, exact, grad.double())[0]
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=0, atol=0)


# Of weight gradients, beside PRODUCTS.
WEIGHTS = {
    "units of groups and a part": ((1, 44, 6, 8), 44, (3, 3), 11, 1, 1, 1),
    "groups of 3 to 4": ((1, 21, 7, 8), 28, (3, 3), 7, 1, 1, 1),
    "groups of 4 to 20": ((1, 12, 8, 9), 60, (3, 3), 3, 1, 1, 1),
    "groups of 8 to 40": ((1, 16, 7, 8), 80, (3, 2), 2, 1, 1, 1),
    "groups of 40 to 8": ((1, 80, 5, 6), 16, (3, 3), 2, 1, 1, 1),
    "1 to 3 channels": ((2, 5, 9, 8), 15, (5, 5), 5, 1, 2, 1),
    "a row of several tiles": ((1, 8, 2, 1100), 8, (1, 3), 2, 1, 1, 1),
    "a row of several tiles of 1 channel": ((1, 1, 3, 1100), 16, (3, 3), 1, 1, 1, 1),
    "rows of several tiles": ((1, 16, 60, 41), 16, (3, 3), 4, 1, 1, 1),
    "a last tile of fewer rows": ((1, 16, 62, 41), 16, (3, 3), 4, 1, 1, 1),
    "rows of several tiles, stride 2": ((1, 16, 81, 70), 16, (3, 3), 4, 2, (0, 1), 1),
    "images of several tiles": ((37, 16, 8, 8), 16, (3, 3), 4, 1, 1, 1),
    "images of odd planes": ((37, 16, 7, 7), 16, (3, 3), 4, 1, 1, 1),
    "odd rows of even planes": ((3, 16, 6, 9), 16, (3, 3), 4, 1, 1, 1),
    "no padding, stride 3, dilated": ((2, 16, 19, 18), 16, (2, 3), 2, 3, 0, (2, 3)),
    "padding beyond the kernel": ((1, 8, 5, 6), 8, (3, 3), 2, 1, 4, 1),
    "one pixel": ((1, 8, 1, 1), 8, (1, 1), 2, 1, 0, 1),
    "many chunks": ((1, 24, 9, 8), 40, (5, 5), 1, 1, 2, 1),
    "neighbours, 2 groups": ((2, 4, 11, 14), 80, (3, 7), 2, 1, (1, 3), 1),
}


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
@pytest.mark.parametrize("name", PRODUCTS | WEIGHTS)
def test_weight_gradient_on_tensor_cores(name, dtype):
    """Integers, whose sums are exact and rounded once."""
    shape, outputs, kernel, groups, *options = (PRODUCTS | WEIGHTS)[name]
    pairs = pairs_of(options)
    for layout in LAYOUTS:
        weight = torch.zeros(outputs, shape[1] // groups, *kernel, dtype=dtype, requires_grad=True)
        input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=layout)
        with Launches("dry"):
            output = ops.conv2d(input, weight, None, *pairs, groups, "none", "direct")
        grad = torch.randint(-1, 2, output.shape).to(dtype).to(memory_format=layout)
        with Launches() as made:
            ours = torch.autograd.grad(output, weight, grad)[0]
        assert ["WeightTiles" in kernel for *_, kernel in made] == [True, False]  # and their sum
        assert "several tiles" not in name or made[0][0][0] > 1
        exact = weight.detach().double().requires_grad_()
        wanted = torch.nn.functional.conv2d(input.double(), exact, None, *pairs, groups)
        theirs = torch.autograd.grad(wanted, exact, grad.double())[0]
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=0, atol=0)


ONE_VALUE = ("groups of 2", "groups of 3", "groups of 16", "5x5 of 1 channel")
# Whose last tiles are not full.
ONE_VALUE += ("a row of several tiles", "a last tile of fewer rows", "images of several tiles")
NEIGHBOURS = (
    "neighbours of a row",
    "neighbours, several images",
    "neighbours, 3 channels",
    "neighbours, 2 groups",
)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ONE_VALUE + NEIGHBOURS)
def test_weight_gradient_of_one_value(name, value):
    """It stays with its channel and its taps: pixels that fill fragments meet zeros on both sides."""
    shape, outputs, kernel, groups, *options = (PRODUCTS | WEIGHTS)[name]
    pairs = pairs_of(options)
    for layout in LAYOUTS:
        for place in ((0, -1, 0, 0), (0, -1, shape[2] // 2, shape[3] // 2), (0, 0, -1, -1)):
            weight = torch.zeros(outputs, shape[1] // groups, *kernel, dtype=HALF, requires_grad=True)
            input = torch.randint(-2, 3, shape).to(HALF).to(memory_format=layout)
            input[place] = value
            exact = weight.detach().double().requires_grad_()
            output = ops.conv2d(input, weight, None, *pairs, groups, "none", "direct")
            wanted = torch.nn.functional.conv2d(input.double(), exact, None, *pairs, groups)
            grad = torch.randint(1, 3, output.shape).to(HALF).to(memory_format=layout)
            ours = torch.autograd.grad(output, weight, grad)[0]
            theirs = torch.autograd.grad(wanted, exact, grad.double())[0]
            torch.testing.assert_close(ours, theirs.to(HALF), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
@pytest.mark.parametrize("name", ["groups of 4", "groups of 16", "3x3 of 1 channel", "7x7 of 3 channels"])
def test_weight_gradient_of_random_values(name, dtype):
    """The error of one rounding, and of sums in float; again the same bits."""
    shape, outputs, kernel, groups, *options = PRODUCTS[name]
    pairs = pairs_of(options)
    input, weight = torch.randn(shape).to(dtype), torch.randn(outputs, shape[1] // groups, *kernel).to(dtype)
    for layout in LAYOUTS:
        leaf = weight.clone().requires_grad_()
        output = ops.conv2d(input.to(memory_format=layout), leaf, None, *pairs, groups, "none", "direct")
        grad = torch.randn(output.shape).to(dtype).to(memory_format=layout)
        ours = torch.autograd.grad(output, leaf, grad, retain_graph=True)[0]
        exact = weight.double().requires_grad_()
        wanted = torch.nn.functional.conv2d(input.double(), exact, None, *pairs, groups)
        theirs = torch.autograd.grad(wanted, exact, grad.double())[0]
        pixels = grad.numel() // outputs
        bound = torch.finfo(dtype).eps / 2 * theirs.abs() + pixels**0.5 * 8 * 2.0**-23
        assert ((ours.double() - theirs).abs() <= bound).all()
        assert torch.equal(ours, torch.autograd.grad(output, leaf, grad)[0])


# input, result channels, kernel, groups, dilation, and what the table says
CHOSEN = {
    "groups of 4": ((1, 64, 9, 9), 64, (3, 3), 16, 1, "direct"),
    "groups of 32": ((1, 64, 9, 9), 64, (3, 3), 2, 1, "direct"),
    "groups of 64": ((1, 128, 9, 9), 128, (3, 3), 2, 1, "aten"),
    "a first layer": ((1, 3, 20, 20), 64, (7, 7), 1, 1, "direct"),
    "a window of a thousand pixels": ((1, 32, 40, 40), 32, (3, 3), 2, 19, "aten"),
    "depthwise": ((1, 16, 9, 9), 16, (3, 3), 16, 1, "direct"),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_what_computes_weight_gradients(name):
    """Products of 16-bit tensors that are not depthwise; by name where the table has torch's."""
    shape, outputs, kernel, groups, dilation, algorithm = CHOSEN[name]
    filters = (outputs, shape[1] // groups, *kernel)
    options = {"padding": dilation, "dilation": dilation, "groups": groups}
    for layout in LAYOUTS:
        last = layout is torch.channels_last
        names = d2lfast.explain(
            "conv2d", shape, filters, **options, dtype=HALF, device="cuda", channels_last=last
        )
        assert names["grad_weight"] == algorithm
        for dtype in (HALF, BRAIN, SINGLE):
            input = torch.randn(shape).to(dtype).to(memory_format=layout)
            weight = torch.randn(filters).to(dtype).requires_grad_()
            pairs = ([1, 1], [dilation] * 2, [dilation] * 2)
            with Launches("dry") as made:
                output = ops.conv2d(input, weight, None, *pairs, groups, "none", "direct")
                torch.autograd.grad(output, weight, torch.ones_like(output))
            kernels = [kernel for *_, kernel in made if "Conv2dWeightParams" in kernel]
            products = dtype != SINGLE and name != "depthwise"
            assert ["WeightTiles" in kernel for kernel in kernels] == [products]


# input, result channels, kernel, groups, stride, padding and dilation
FLOAT_WEIGHTS = {
    "LeNet": ((3, 1, 28, 28), 6, (5, 5), 1, 1, 2, 1),
    "LeNet, second": ((2, 6, 14, 14), 16, (5, 5), 1, 1, 0, 1),
    "images together": ((300, 1, 5, 5), 6, (3, 3), 1, 1, 0, 1),
    "many rows": ((1, 1, 300, 20), 10, (3, 3), 1, 1, 1, 1),
    "wide rows": ((1, 1, 6, 230), 64, (3, 3), 1, 1, 1, 1),
    "more channels than jobs": ((1, 3, 40, 30), 70, (11, 11), 1, 4, 2, 1),
    "stride 2": ((2, 3, 31, 33), 20, (7, 7), 1, 2, 3, 1),
    "groups of 4": ((2, 24, 9, 10), 24, (3, 3), 6, 1, 1, 1),
    "groups of 3 to 5": ((2, 9, 9, 10), 15, (3, 3), 3, 2, 0, 1),
    "groups of 8": ((1, 16, 12, 9), 16, (3, 3), 2, 1, 1, 1),
    "dilated rows": ((1, 2, 14, 9), 3, (4, 3), 1, 1, 2, (3, 1)),
}


@pytest.mark.parametrize("processors", ["3", "132"])
@pytest.mark.parametrize("name", FLOAT_WEIGHTS)
def test_weight_gradient_in_float(name, processors, monkeypatch):
    """Integers, whose sums are exact; some tiles a block, or one."""
    monkeypatch.setenv("D2LFAST_EMULATED_PROCESSORS", processors)
    shape, outputs, kernel, groups, *options = FLOAT_WEIGHTS[name]
    pairs = pairs_of(options)
    weight = torch.zeros(outputs, shape[1] // groups, *kernel, requires_grad=True)
    for layout in LAYOUTS:
        input = torch.randint(-2, 3, shape).float().to(memory_format=layout)
        exact = weight.detach().double().requires_grad_()
        wanted = torch.nn.functional.conv2d(input.double(), exact, None, *pairs, groups)
        grad = torch.randint(-3, 4, wanted.shape).float().to(memory_format=layout)
        output = ops.conv2d(input, weight, None, *pairs, groups, "none", "direct")
        with Launches() as made:
            ours = torch.autograd.grad(output, weight, grad)[0]
        assert ["GradientTiles" in kernel for *_, kernel in made if "Conv2dWeightParams" in kernel] == [True]
        theirs = torch.autograd.grad(wanted, exact, grad.double())[0]
        torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=0)


# channels, result channels, kernel, stride, and what the table says of 16 bits: forward, data gradient
FIRST_LAYERS = {
    "LeNet": (1, 6, 5, 1, "direct", "direct"),
    "ResNet": (3, 64, 7, 2, "direct", "aten"),
    "AlexNet": (3, 96, 11, 4, "direct", "aten"),
    "too many weights": (4, 128, 13, 4, "aten", "aten"),
    "of 8 channels": (8, 96, 7, 2, "aten", "aten"),
}


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_what_computes_first_layers(name):
    channels, results, kernel, stride, *names = FIRST_LAYERS[name]
    input, weight = torch.zeros(2, channels, 96, 96), torch.zeros(results, channels, kernel, kernel)
    for layout in LAYOUTS:
        last = layout is torch.channels_last
        shapes, options = (input.shape, weight.shape), {"stride": stride, "channels_last": last}
        chosen = d2lfast.explain("conv2d", *shapes, **options, dtype=HALF, device="cuda")
        assert [chosen["forward"], chosen["grad_input"]] == names
        with Launches("dry") as made:
            arguments = (None, [stride] * 2, [0, 0], [1, 1], 1, "none", "direct")
            ops.conv2d(input.to(HALF, memory_format=layout), weight.to(HALF), *arguments)
        assert ["ProductTiles" in kernel for *_, kernel in made] == [True]


# input, weight, and what the table says of exact products and of TF32
IN_FLOAT = {
    "LeNet": ((256, 6, 14, 14), (16, 6, 5, 5), "direct", "direct"),
    "VGG": ((128, 1, 224, 224), (64, 1, 3, 3), "direct", "direct"),
    "ResNet": ((16, 3, 224, 224), (64, 3, 7, 7), "direct", "direct"),
    "11x11": ((16, 3, 224, 224), (64, 3, 11, 11), "direct", "aten"),
    "groups of 16": ((16, 64, 14, 14), (64, 16, 3, 3), "aten", "direct"),
    "groups of 64": ((16, 256, 14, 14), (256, 64, 3, 3), "aten", "aten"),
}


@pytest.mark.parametrize("name", IN_FLOAT)
def test_what_computes_in_float(name):
    """By torch's switch: on the float units, or on tensor cores as long as the weights fit."""
    input, weight, *names = IN_FLOAT[name]
    groups = input[1] // weight[1]
    for allowed, algorithm in zip((False, True), names, strict=True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            chosen = d2lfast.explain("conv2d", input, weight, groups=groups, device="cuda")
            with Launches("dry") as made:
                arguments = (None, [1, 1], [0, 0], [1, 1], groups, "none", "direct")
                ops.conv2d(torch.zeros(1, *input[1:]), torch.zeros(weight), *arguments)
        assert chosen["forward"] == algorithm
        assert ["ProductTiles" in kernel for *_, kernel in made] == [allowed]


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "name", ["groups of 2", "groups of 3", "3x3 of 1 channel", "5x5 of 1 channel", *NEIGHBOURS]
)
def test_direct_convolution_of_one_value(name, value, dtype, tf32):
    """It stays with its group and its windows: nothing is multiplied by the zeros that fill fragments."""
    shape, outputs, kernel, groups, *options = (PRODUCTS | WEIGHTS)[name]
    weight = torch.randint(1, 3, (outputs, shape[1] // groups, *kernel)).to(dtype)
    for layout in LAYOUTS:
        input = torch.randint(-2, 3, shape).to(dtype).to(memory_format=layout)
        input[0, -1, 3, 4] = value
        pairs = pairs_of(options)
        output = ops.conv2d(input, weight, None, *pairs, groups, "none", "direct")
        wanted = torch.nn.functional.conv2d(input.double(), weight.double(), None, *pairs, groups)
        torch.testing.assert_close(output.double(), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("name", ["groups of 4", "groups of 16", "7x7 of 3 channels"])
def test_direct_convolution_on_tensor_cores_with_activation(name, activation, dtype, tf32):
    shape, outputs, kernel, groups, *options = PRODUCTS[name]
    input = torch.randn(shape).to(HALF).to(dtype)
    weight = (torch.randn(outputs, shape[1] // groups, *kernel) / 8).to(HALF).to(dtype)
    pairs = pairs_of(options)
    wanted = torch.nn.functional.conv2d(input.double(), weight.double(), None, *pairs, groups)
    for layout in LAYOUTS:
        moved = input.to(memory_format=layout)
        output = ops.conv2d(moved, weight, None, *pairs, groups, activation, "direct")
        torch.testing.assert_close(output.double(), getattr(wanted, activation)(), rtol=1e-3, atol=1e-3)


def rounded_to_tf32(values):
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


# Of rows as they lie, of gathered values, of pieces.
ROUNDED = ("neighbours of a row", "neighbours, 12 channels", "groups of 3", "groups of 4", "groups of 16")


@pytest.mark.parametrize("name", ROUNDED)
def test_direct_convolution_rounds_to_tf32(name, tf32):
    """Each factor once, to the nearest; where torch does not allow it products are exact."""
    shape, outputs, kernel, groups, *options = PRODUCTS[name]
    pairs = pairs_of(options)
    input, weight = torch.randn(shape), torch.randn(outputs, shape[1] // groups, *kernel)
    for layout in LAYOUTS:
        moved = input.to(memory_format=layout)
        for factors in ((rounded_to_tf32(input), rounded_to_tf32(weight)), (input, weight)):
            exact = [factor.double() for factor in factors]
            wanted = torch.nn.functional.conv2d(*exact, None, *pairs, groups)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=factors[0] is not input):
                output = ops.conv2d(moved, weight, None, *pairs, groups, "none", "direct")
            torch.testing.assert_close(output.double(), wanted, rtol=2e-6, atol=2e-5)
