"""The residual in the epilogue of each algorithm, forced, in both layouts and all dtypes."""

import pytest
import torch
from ops.op_tester import RecordOperators
from ops.test_conv2d import conv

import d2lfast
from d2lfast.nn import functional
from d2lfast.testing import check

# Input, weight, options: whole vectors and what is left of them, in rows, channels and images.
SHAPES = {
    "direct": [((2, 3, 19, 23), (17, 3, 3, 3), {"stride": 2}), ((2, 4, 9, 40), (5, 4, 2, 2), {})],
    "winograd": [
        ((2, 16, 14, 14), (33, 16, 3, 3), {"padding": 1}),
        ((2, 8, 17, 19), (16, 8, 5, 5), {}),
        ((2, 51, 9, 11), (60, 17, 3, 3), {"groups": 3, "padding": 1}),
    ],
    "winograd_2x2": [((2, 16, 13, 15), (40, 16, 3, 3), {"padding": 1})],
    "gemm": [((2, 24, 9, 9), (33, 24, 1, 1), {}), ((2, 16, 16, 16), (32, 16, 1, 1), {})],
    "channels": [
        ((2, 32, 14, 17), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
        ((2, 64, 9, 9), (64, 4, 3, 3), {"groups": 16, "stride": 2}),
        ((2, 3, 19, 23), (32, 3, 3, 3), {}),
    ],
    "planes": [
        ((2, 8, 14, 33), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
        ((2, 16, 14, 14), (32, 4, 3, 3), {"groups": 4, "padding": 1}),
        ((2, 16, 13, 13), (16, 4, 3, 3), {"groups": 4, "padding": 1, "stride": 2}),
    ],
    "batch": [((18, 2, 9, 11), (5, 2, 3, 3), {"padding": 1})],
    "aten": [((2, 8, 9, 9), (8, 8, 3, 3), {"padding": 1})],
}
# The arithmetic of these is float32's.
WITHOUT_FLOAT64 = ("winograd", "winograd_2x2", "batch")
CASES = [(name, *case) for name, cases in SHAPES.items() for case in cases]


@pytest.mark.isa
@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("algorithm", "input", "weight", "options"), CASES)
def test_residual(algorithm, input, weight, options, layout, activation):
    output = torch.nn.functional.conv2d(torch.empty(input), torch.empty(weight), **options).shape
    computed = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        if dtype == torch.float64 and algorithm in WITHOUT_FLOAT64:
            continue
        case = conv(
            input, weight, residual=tuple(output), algorithm=algorithm, activation=activation, **options
        ).replace(dtype=dtype, layouts={"input": layout})
        check(case)
        with d2lfast.conv2d_algorithm(algorithm):
            chosen = d2lfast.explain(
                "conv2d", input, weight, dtype=dtype, channels_last=layout == "channels_last", **options
            )
        computed += chosen["forward"] == algorithm
    one_layout = algorithm in ("gemm", "planes") and layout == "channels_last"
    # Short vectors lie within a group, and its planes are then read by broadcasts.
    some_vectors = algorithm == "channels" and layout == "contiguous" and weight[1] != 3
    assert (computed == 0) == one_layout or some_vectors


def test_residual_of_any_layout():
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    whole = torch.randn(2, 9, 9, 16)
    views = [whole[..., ::2].permute(0, 3, 1, 2), torch.randn(1, 8, 1, 9).expand(2, 8, 9, 9)]
    for residual in (*views, views[0].contiguous(), views[0].to(memory_format=torch.channels_last)):
        ours = functional.conv2d(x, w, None, 1, 1, groups=8, residual=residual)
        theirs = torch.nn.functional.conv2d(x, w, None, 1, 1, groups=8) + residual
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous()


def test_no_second_sweep():
    """One operator, and none that adds or activates."""
    module = d2lfast.nn.Conv2dAct(4, 4, 3, padding=1, act_layer="relu")
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad(), RecordOperators(None) as recorder:
        module(x, x)
    assert recorder.names() == ["d2lfast::conv2d"]


@pytest.mark.parametrize("wrong", [{"dtype": torch.float64}, {"device": "meta"}])
def test_refused(wrong):
    x, w = torch.randn(2, 4, 5, 5), torch.randn(4, 4, 1, 1)
    with pytest.raises(RuntimeError):
        functional.conv2d(x, w, residual=torch.empty(2, 4, 5, 5, **wrong))


def test_only_the_residual_wants_a_gradient():
    x, w = torch.randn(2, 4, 5, 5), torch.randn(3, 4, 1, 1)
    residual = torch.randn(2, 3, 5, 5, requires_grad=True)
    y = functional.conv2d(x, w, activation="relu", residual=residual)
    (grad,) = torch.autograd.grad(y.sum(), residual)
    assert torch.equal(grad, (y > 0).float())
