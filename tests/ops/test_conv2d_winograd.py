"""Winograd's F(4x4, 3x3) and F(2x2, 3x3), forced: numerics, and values that are not finite."""

from functools import partial

import pytest
import torch
from ops.op_tester import OpTester, naming
from ops.test_conv2d import conv

import d2lfast
from d2lfast.nn import functional as F

# Relative error in the L2 norm on unit-normal data.
LARGEST_ERROR = 5e-6

named = naming(partial(conv, algorithm="winograd"))
smaller = naming(partial(conv, algorithm="winograd_2x2"))


class TestConv2dWinograd(OpTester):
    operator = "conv2d"
    cases = (
        named("whole_tiles", (2, 16, 8, 8), (32, 16, 3, 3), padding=1),
        named("odd", (2, 20, 13, 17), (37, 20, 3, 3), padding=1),
        named("7x7", (3, 33, 7, 7), (35, 33, 3, 3), padding=1),
        named("one_channel", (2, 1, 9, 9), (1, 1, 3, 3), padding=1),
        named("valid", (1, 3, 9, 30), (5, 3, 3, 3), bias=False),
        named("one_result", (2, 5, 3, 3), (6, 5, 3, 3)),
        named("padding_2", (2, 8, 6, 5), (7, 8, 3, 3), padding=2),
        named("padding_over_kernel", (1, 4, 4, 3), (5, 4, 3, 3), padding=(4, 3)),
        named("pixel", (2, 7, 1, 1), (5, 7, 3, 3), padding=1),
        named("long_rows", (1, 6, 5, 203), (9, 6, 3, 3), padding=1),
        named("empty_batch", (0, 3, 8, 8), (4, 3, 3, 3)),
        named("unbatched", (3, 9, 9), (4, 3, 3, 3), padding=1),
        named("relu", (2, 8, 16, 16), (16, 8, 3, 3), padding=1, activation="relu"),
        named("sigmoid", (2, 8, 13, 13), (6, 8, 3, 3), activation="sigmoid"),
        named("tanh", (2, 8, 13, 13), (6, 8, 3, 3), padding=1, activation="tanh"),
        # Cut into pieces of 3x3: wide, strided, both; of the data gradient only those of stride 1.
        named("5x5", (2, 20, 13, 10), (35, 20, 5, 5), padding=2),
        named("5x5_relu", (2, 6, 9, 9), (7, 6, 5, 5), activation="relu"),
        named("11x11_stride_4", (2, 3, 63, 50), (34, 3, 11, 11), stride=4, padding=1),
        named("7x7_stride_2", (2, 3, 21, 30), (5, 3, 7, 7), stride=2, padding=3, activation="tanh"),
        named("3x3_stride_2", (2, 5, 9, 12), (6, 5, 3, 3), stride=2, padding=1),
        named("uneven", (1, 4, 20, 25), (6, 4, 9, 4), stride=(1, 3), padding=(8, 2), bias=False),
        named("padding_over_5x5", (1, 3, 4, 3), (4, 3, 5, 2), padding=(6, 5)),
        # Group by group; the products of narrow ones stay with their thread, those of wide ones are shared.
        named("groups", (2, 40, 9, 13), (34, 20, 3, 3), groups=2, padding=1),
        named("narrow_groups", (5, 35, 12, 14), (40, 5, 3, 3), groups=7, padding=1, activation="relu"),
        named("wide_groups", (2, 130, 6, 7), (100, 65, 3, 3), groups=2, padding=1, bias=False),
        named("depthwise", (2, 6, 9, 9), (12, 1, 3, 3), groups=6, activation="tanh"),
        named("groups_5x5_is_the_tables", (2, 4, 9, 9), (4, 2, 5, 5), groups=2),
        smaller("2x2_groups", (2, 40, 6, 5), (36, 20, 3, 3), groups=2, padding=1),
        named("dilated_is_the_tables", (2, 3, 9, 9), (4, 3, 3, 3), dilation=2),
        # The filters are transformed by blocks of channels.
        named("large_filters", (1, 260, 6, 6), (200, 260, 3, 3), padding=1),
        smaller("2x2_whole_tiles", (2, 16, 6, 8), (32, 16, 3, 3), padding=1),
        smaller("2x2_odd", (2, 20, 5, 7), (37, 20, 3, 3), padding=1),
        smaller("2x2_one_tile", (3, 33, 2, 2), (35, 33, 3, 3), padding=1),
        smaller("2x2_valid", (1, 3, 4, 30), (5, 3, 3, 3), bias=False, activation="relu"),
        smaller("2x2_padding_over_kernel", (1, 4, 4, 3), (5, 4, 3, 3), padding=(4, 3), activation="tanh"),
        smaller("2x2_long_rows", (1, 6, 5, 203), (9, 6, 3, 3), padding=1),
        smaller("2x2_large_filters", (1, 460, 4, 4), (240, 460, 3, 3), padding=1),
        smaller("2x2_of_5x5_is_the_tables", (2, 6, 9, 9), (7, 6, 5, 5)),
    )
    small_cases = (
        named("plain", (2, 3, 5, 6), (4, 3, 3, 3), padding=1),
        named("relu", (2, 2, 6, 7), (3, 2, 3, 3), activation="relu"),
        named("unbatched_tanh", (3, 5, 6), (4, 3, 3, 3), padding=2, activation="tanh"),
    )
    nonfinite_cases = (
        named("plain", (2, 4, 9, 9), (5, 4, 3, 3)),
        named("padded", (2, 4, 9, 9), (5, 4, 3, 3), padding=1),
        named("relu", (2, 4, 9, 9), (5, 4, 3, 3), padding=1, activation="relu"),
        named("sigmoid", (2, 4, 9, 9), (5, 4, 3, 3), padding=1, activation="sigmoid"),
        named("5x5", (2, 4, 9, 9), (5, 4, 5, 5), padding=2),
        named("stride_2", (2, 4, 9, 9), (5, 4, 5, 5), stride=2, activation="relu"),
        smaller("2x2", (2, 4, 9, 9), (5, 4, 3, 3), padding=1),
        named("groups", (2, 8, 9, 9), (6, 4, 3, 3), groups=2, padding=1),
    )
    refused = (named("channels", (2, 3, 8, 8), (4, 5, 3, 3)),)
    threaded = (
        conv((5, 16, 30, 30), (24, 16, 3, 3), padding=1, algorithm="winograd"),
        conv((1, 64, 31, 31), (48, 64, 3, 3), padding=1, activation="relu", algorithm="winograd"),
        conv((2, 200, 7, 7), (210, 200, 3, 3), padding=1, algorithm="winograd"),
        conv((3, 96, 13, 13), (96, 96, 5, 5), padding=2, algorithm="winograd"),
        conv((3, 64, 30, 30), (64, 32, 3, 3), padding=1, groups=2, algorithm="winograd"),
        conv((9, 64, 6, 6), (48, 64, 3, 3), padding=1, algorithm="winograd_2x2"),
        conv((3, 3, 60, 60), (32, 3, 11, 11), stride=4, padding=1, algorithm="winograd"),
    )
    exported = named("exported", (3, 4, 9, 9), (6, 4, 3, 3), padding=1).values[0]


def gradients(algorithm, input, weight, bias, grad, **options):
    leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in (input, weight, bias)]
    for leaf in leaves:
        leaf.requires_grad_()
    with d2lfast.conv2d_algorithm(algorithm):
        output = F.conv2d(*leaves, **options)
        return (output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype)))


NAMES = ("output", "gradient of the input", "gradient of the weight", "gradient of the bias")


@pytest.mark.isa
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("algorithm", ["winograd", "winograd_2x2"])
@pytest.mark.parametrize(
    ("image", "filters", "options"),
    [
        ((64, 56, 56), (64, 3), {"padding": 1}),
        ((128, 28, 28), (128, 3), {"padding": 1}),
        ((256, 14, 14), (256, 3), {"padding": 1}),
        ((512, 7, 7), (512, 3), {"padding": 1}),
        ((96, 26, 26), (256, 5), {"padding": 2}),
        ((3, 224, 224), (96, 11), {"padding": 1, "stride": 4}),
    ],
)
def test_error(image, filters, options, algorithm, memory_format):
    if algorithm == "winograd_2x2" and filters[1] > 3:
        pytest.skip("only 3x3")
    torch.manual_seed(0)
    x = torch.randn(2, *image).to(memory_format=memory_format)
    weight = torch.randn(filters[0], image[0], filters[1], filters[1]).to(memory_format=memory_format)
    bias, grad = torch.randn(filters[0]), torch.randn_like(F.conv2d(x, weight, **options))
    ours = gradients(algorithm, x, weight, bias, grad, **options)
    exact = gradients("aten", x.double(), weight.double(), bias.double(), grad, **options)
    for name, a, b in zip(NAMES, ours, exact):
        error = ((a - b).norm() / b.norm()).item()
        assert error <= LARGEST_ERROR, (name, error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38])
@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
def test_one_value_does_not_spread(value, where, activation):
    """One bad element, and a finite one that overflows in the transform: `aten` does the pass over."""
    if value == 1e38 and activation == "sigmoid":
        pytest.skip("its derivative near 1 is rounding, here times 1e38")
    torch.manual_seed(0)
    tensors = [torch.randn(2, 6, 13, 13), torch.randn(7, 6, 3, 3), torch.randn(7), torch.randn(2, 7, 13, 13)]
    flat = tensors[where].view(-1)
    flat[flat.numel() // 2 + 1] = value
    ours = gradients("winograd", *tensors, padding=1, activation=activation)
    theirs = gradients("aten", *tensors, padding=1, activation=activation)
    for name, a, b in zip(NAMES, ours, theirs):
        assert torch.equal(a.isnan(), b.isnan()), name
        assert torch.equal(a.isinf(), b.isinf()), name
        scale = torch.nan_to_num(b, 0, 0, 0).abs().max().item()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(scale, 1), equal_nan=True, msg=name)


SHAPES = ((4, 64, 28, 28), (64, 64, 3, 3))


def test_table_and_explain():
    names = d2lfast.explain("conv2d", *SHAPES, padding=1)
    assert names == {"forward": "winograd", "grad_input": "winograd", "grad_weight": "winograd"}
    assert names == d2lfast.explain("conv2d", (4, 64, 28, 28), (64, 32, 3, 3), padding=1, groups=2)
    stem = d2lfast.explain("conv2d", (16, 3, 224, 224), (96, 3, 11, 11), stride=4, padding=1)
    assert stem == {"forward": "winograd", "grad_input": "direct", "grad_weight": "winograd"}
    for other in (
        d2lfast.explain("conv2d", *SHAPES, padding=1, dtype=torch.float64),
        d2lfast.explain("conv2d", *SHAPES, padding=1, stride=2),
        d2lfast.explain("conv2d", *SHAPES, padding=1, dilation=2),
        d2lfast.explain("conv2d", (4, 64, 28, 28), (64, 8, 3, 3), padding=1, groups=8),
    ):
        assert "winograd" not in other.values()


def test_table_of_smaller_tiles():
    """Where they need no more products; a plane of side 7 takes 144 with the larger tiles, 256 with these."""
    for side, batch, name in (
        (2, 8, "winograd_2x2"),
        (5, 8, "winograd_2x2"),
        (6, 1, "winograd_2x2"),
        (3, 8, "winograd"),
        (7, 8, "winograd"),
        (8, 8, "winograd"),
    ):
        names = d2lfast.explain("conv2d", (batch, 128, side, side), (128, 128, 3, 3), padding=1)
        assert set(names.values()) == {name}, (side, names)


def test_one_algorithm_for_each_pass():
    with d2lfast.conv2d_algorithm("direct/winograd/aten"):
        names = d2lfast.explain("conv2d", *SHAPES, padding=1)
    assert names == {"forward": "direct", "grad_input": "winograd", "grad_weight": "aten"}
    x, weight, bias = torch.randn(2, 8, 9, 9), torch.randn(6, 8, 3, 3), torch.randn(6)
    grad = torch.randn(2, 6, 9, 9)
    mixed = gradients("direct/winograd/aten", x, weight, bias, grad, padding=1)
    for result, index, algorithm in (
        (mixed[0], 0, "direct"),
        (mixed[1], 1, "winograd"),
        (mixed[2], 2, "aten"),
    ):
        assert torch.equal(result, gradients(algorithm, x, weight, bias, grad, padding=1)[index])
    for wrong in ("direct/winograd", "direct/winograd/fast", "fast", "direct/auto/aten/aten"):
        with pytest.raises(ValueError, match="algorithm must be"), d2lfast.conv2d_algorithm(wrong):
            pass


@pytest.mark.cpu
def test_it_can_be_forbidden():
    backend = d2lfast.backends.conv2d
    assert backend.allow_winograd
    x, weight = torch.randn(SHAPES[0]), torch.randn(SHAPES[1])
    with d2lfast.conv2d_algorithm("winograd"):
        forced = F.conv2d(x, weight)
    allowed = F.conv2d(x, weight)
    assert torch.equal(allowed, forced)
    with backend.flags(allow_winograd=False):
        assert not backend.allow_winograd
        assert "winograd" not in d2lfast.explain("conv2d", *SHAPES, padding=1).values()
        few = d2lfast.explain("conv2d", (8, 64, 6, 6), (64, 64, 3, 3), padding=1)
        assert "winograd_2x2" not in few.values()
        forbidden = F.conv2d(x, weight)
        with d2lfast.conv2d_algorithm("winograd"):
            assert d2lfast.explain("conv2d", *SHAPES, padding=1)["forward"] == "winograd"
    assert backend.allow_winograd
    assert not torch.equal(forbidden, forced)
    with d2lfast.conv2d_algorithm("direct"):
        assert not torch.equal(F.conv2d(x, weight), forced)


def test_double_backward_is_torchs():
    """Under create_graph the gradient consists of torch's operators, in full precision."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 16, 9, 9, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    grads = []
    for convolve in (F.conv2d, torch.nn.functional.conv2d):
        output = convolve(x, weight, padding=1)
        grads.append(
            torch.autograd.grad(output.square().sum() * 0 + output.sum(), (x, weight), create_graph=True)
        )
    for a, b in zip(*grads):
        assert torch.equal(a, b)
