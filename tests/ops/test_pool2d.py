import pytest
import torch
from ops.op_tester import OpTester, naming
from ops.opinfo import OpInfoTester

import d2lfast
from d2lfast.testing import Case, check


def pool(operator, values="normal"):
    def case(input, kernel_size, **options):
        return Case(operator, {"input": input}, {"kernel_size": kernel_size, **options}, values=values)

    return case, naming(case)


def windows(named):
    """Cases that every pooling shares."""
    return (
        named("lenet", (4, 6, 28, 28), 2, stride=2),
        named("default_stride", (3, 16, 15, 14), 2),
        named("3x3_stride2", (2, 17, 33, 31), 3, stride=2),
        named("3x3_stride2_padding", (2, 8, 32, 32), 3, stride=2, padding=1),
        named("3x3_stride1", (2, 5, 13, 12), 3, stride=1, padding=1),
        named("oblong", (2, 3, 17, 19), (2, 5), stride=(3, 2), padding=(1, 2)),
        named("ceil", (2, 7, 16, 17), 3, stride=2, ceil_mode=True),
        named("ceil_padding", (2, 3, 10, 11), 3, stride=3, padding=1, ceil_mode=True),
        named("ceil_drops_window_in_padding", (1, 2, 4, 4), 2, stride=3, padding=1, ceil_mode=True),
        named("stride_over_kernel", (2, 4, 19, 19), 2, stride=5),
        named("kernel_1", (2, 3, 9, 9), 1),
        named("whole_image", (2, 37, 7, 7), 7),
        named("large_kernel", (1, 3, 40, 40), 17, stride=3),
        named("kernel_over_256", (1, 2, 40, 41), (17, 18), stride=4),
        named("height_1", (2, 3, 1, 21), (1, 3), stride=(1, 2)),
        named("width_1", (2, 3, 21, 1), (3, 1), stride=2),
        named("prime_channels", (1, 41, 11, 13), 3, stride=2),
        named("wide", (1, 3, 3, 131), 3, stride=2, padding=1),
        named("unbatched", (5, 9, 11), 3, stride=2),
        named("empty_batch", (0, 3, 8, 8), 2),
    )


def small_windows(named):
    return (
        named("plain", (2, 3, 6, 5), 2, stride=2),
        named("overlapping", (1, 2, 6, 7), 3, stride=(1, 2), padding=1),
        named("ceil", (2, 2, 5, 6), 2, stride=2, ceil_mode=True),
        named("unbatched", (3, 6, 5), (3, 2), stride=1),
    )


def refusals(named):
    return (
        named("rank_2", (8, 8), 2),
        named("rank_5", (1, 2, 3, 8, 8), 2),
        named("kernel_over_image", (2, 3, 4, 4), 5),
        named("kernel_0", (2, 3, 8, 8), 0),
        named("kernel_negative", (2, 3, 8, 8), (2, -1)),
        named("stride_0", (2, 3, 8, 8), 2, stride=0),
        named("padding_over_half", (2, 3, 8, 8), 2, padding=2),
        named("padding_negative", (2, 3, 8, 8), 2, padding=-1),
        named("kernel_of_3", (2, 3, 8, 8), (2, 2, 2)),
        named("stride_of_3", (2, 3, 8, 8), 2, stride=(1, 1, 1)),
        named("no_channels", (2, 0, 8, 8), 2),
        named("empty_image", (2, 3, 0, 8), 2),
        named("unbatched_no_channels", (0, 8, 8), 2),
    )


def threaded(case):
    return (
        case((5, 16, 64, 64), 2, stride=2),
        case((3, 7, 65, 63), 3, stride=2, padding=1),
        case((1, 2, 200, 200), 3, stride=1),
        case((7, 33, 31, 31), 5, stride=2),
    )


class TestMaxPool2d(OpTester):
    operator = "max_pool2d"
    case, named = pool("max_pool2d")
    _, tied = pool("max_pool2d", values="ties")
    cases = (
        *windows(named),
        named("dilation", (2, 5, 17, 19), 3, stride=2, dilation=(2, 3)),
        named("dilation_padding_ceil", (2, 5, 18, 17), (2, 3), dilation=3, padding=1, ceil_mode=True),
        tied("ties", (2, 8, 16, 16), 3, stride=2, padding=1),
        tied("ties_stride1", (2, 5, 13, 17), 3, stride=1),
    )
    small_cases = (*small_windows(named), named("dilation", (1, 2, 7, 7), 2, stride=1, dilation=2))
    nonfinite_cases = (named("plain", (2, 3, 9, 9), 2), named("padded", (2, 3, 9, 9), 3, stride=2, padding=1))
    refused = (
        *refusals(named),
        named("dilation_0", (2, 3, 8, 8), 2, dilation=0),
        named("padding_over_half_dilated", (2, 3, 8, 8), 3, padding=2, dilation=2),
    )
    threaded = threaded(case)
    exported = case((3, 5, 9, 9), 3, stride=2, padding=1)

    def test_minus_infinity_under_padding(self):
        """A window of -inf alone stays -inf, and padding is never chosen."""
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.full((1, 3, 5, 5), -torch.inf, dtype=dtype)
            ours, theirs = (
                f.max_pool2d(x, 3, 2, padding=1, return_indices=True)
                for f in (d2lfast.nn.functional, torch.nn.functional)
            )
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])

    @pytest.mark.isa
    @pytest.mark.parametrize(
        ("kernel", "stride"), [((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((2, 3), 2), ((3, 5), 2)]
    )
    def test_positions_of_windows_taken_axis_by_axis(self, kernel, stride):
        """Ties go to the first element in row-major order, NaN to the last, planes without NaN beside it."""
        for size, dtype in ((31, torch.float32), (18, torch.float64), (56, torch.bfloat16)):
            for share in (0.0, 0.02):
                x = torch.randint(-2, 3, (4, 3, 13, size)).to(dtype)
                x[:2][torch.rand(x[:2].shape) < share] = torch.nan
                x[3] = -torch.inf
                ours, theirs = (
                    f.max_pool2d(x, kernel, stride, padding=[k // 2 for k in kernel], return_indices=True)
                    for f in (d2lfast.nn.functional, torch.nn.functional)
                )
                torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True)
                assert torch.equal(ours[1], theirs[1])

    @pytest.mark.parametrize("name", ["kernel_size", "padding", "dilation"])
    def test_only_the_stride_may_be_none(self, name):
        arguments = {"kernel_size": 2, "stride": None, name: None}
        for f in (d2lfast.nn.functional, torch.nn.functional):
            with pytest.raises(TypeError, match=f"'{name}'"):
                f.max_pool2d(torch.randn(1, 2, 6, 6), **arguments)

    def test_windows_of_one_value_are_refused(self):
        x = torch.randn(1, 2, 6, 6, requires_grad=True)
        with pytest.raises(RuntimeError, match="kernel_size must have two values"):
            torch.ops.d2lfast.max_pool2d(x, [2], [], [0, 0], [1, 1], False)
        with pytest.raises(RuntimeError, match="padding must have two values"):
            torch.ops.d2lfast.avg_pool2d(x, [2, 2], [], [0], False, True, None)

    @pytest.mark.isa
    def test_window_that_meets_padding_alone(self):
        """Dilation can step over the image: -inf, and no gradient (torch writes out of bounds)."""
        for dtype in (torch.float32, torch.float16):
            x = torch.randn(1, 5, 1, 8).to(dtype).requires_grad_()
            y = d2lfast.nn.functional.max_pool2d(x, (2, 3), (3, 2), padding=1, dilation=(2, 1))
            assert torch.equal(y, torch.full_like(y, -torch.inf))
            assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


class TestMaxPool2dWithIndices(OpTester):
    operator = "max_pool2d_with_indices"
    case, named = pool("max_pool2d_with_indices")
    _, tied = pool("max_pool2d_with_indices", values="ties")
    cases = (
        *windows(named),
        named("dilation", (2, 5, 17, 19), 3, stride=2, dilation=(2, 3)),
        tied("ties", (2, 8, 16, 16), 3, stride=2, padding=1),
        tied("ties_stride1", (2, 5, 13, 17), 3, stride=1),
    )
    small_cases = small_windows(named)
    nonfinite_cases = (named("plain", (2, 3, 9, 9), 2), named("padded", (2, 3, 9, 9), 3, stride=2, padding=1))
    refused = refusals(named)
    threaded = threaded(case)
    exported = case((3, 5, 9, 9), 3, stride=2, padding=1)

    def test_unpool_takes_the_indices(self):
        x = torch.randn(2, 3, 8, 8)
        for f in (d2lfast.nn.functional, torch.nn.functional):
            output, indices = f.max_pool2d(x, 2, return_indices=True)
            f.max_unpool2d(output, indices, 2)
        assert not indices.requires_grad


class TestAvgPool2d(OpTester):
    operator = "avg_pool2d"
    case, named = pool("avg_pool2d")
    cases = (
        *windows(named),
        named("exclude_padding", (2, 5, 13, 14), 3, stride=2, padding=1, count_include_pad=False),
        named(
            "exclude_padding_ceil",
            (2, 5, 14, 13),
            3,
            stride=2,
            padding=1,
            count_include_pad=False,
            ceil_mode=True,
        ),
        named("divisor", (2, 5, 14, 13), (2, 3), divisor_override=4),
        named("negative_divisor", (2, 5, 14, 13), (2, 3), padding=1, divisor_override=-3),
    )
    small_cases = (
        *small_windows(named),
        named(
            "exclude_padding", (1, 2, 5, 6), 3, stride=2, padding=1, count_include_pad=False, ceil_mode=True
        ),
        named("divisor", (1, 2, 5, 6), 2, divisor_override=3),
    )
    nonfinite_cases = (named("plain", (2, 3, 9, 9), 2), named("padded", (2, 3, 9, 9), 3, stride=2, padding=1))
    refused = (*refusals(named), named("divisor_0", (2, 3, 8, 8), 2, divisor_override=0))
    threaded = threaded(case)
    exported = case((3, 5, 9, 9), 3, stride=2, padding=1)

    @pytest.mark.isa
    def test_long_sums_keep_their_accuracy(self):
        """A window of 4096 elements far from zero."""
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check(TestAvgPool2d.case((1, 3, 64, 64), 64).replace(dtype=dtype))


class TestMaxPool2dSamples(OpInfoTester):
    function = "max_pool2d"
    every = 37  # of 2880: they are the product of all options


class TestAvgPool2dSamples(OpInfoTester):
    function = "avg_pool2d"
