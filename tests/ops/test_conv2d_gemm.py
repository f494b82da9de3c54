"""1x1 convolutions as matrix products, forced."""

from functools import partial

import pytest
import torch
from ops.op_tester import OpTester, naming
from ops.test_conv2d import conv

import d2lfast
from d2lfast.testing import check

pytestmark = pytest.mark.cpu

named = naming(partial(conv, algorithm="gemm"))


class TestConv2dGemm(OpTester):
    operator = "conv2d"
    cases = (
        named("plain", (3, 17, 7, 7), (19, 17, 1, 1)),
        named("deep", (2, 300, 5, 6), (70, 300, 1, 1)),
        named("wide", (2, 40, 3, 3), (300, 40, 1, 1), bias=False),
        named("pixels", (1, 33, 29, 31), (35, 33, 1, 1)),
        named("images_in_place", (7, 300, 12, 12), (30, 300, 1, 1)),
        named("images_in_place_relu", (9, 20, 14, 14), (13, 20, 1, 1), activation="relu"),
        named("one", (2, 1, 1, 1), (1, 1, 1, 1)),
        named("strided", (2, 16, 15, 15), (32, 16, 1, 1), stride=2),
        named("strided_unevenly", (2, 6, 9, 10), (5, 6, 1, 1), stride=(3, 2), activation="tanh"),
        named("empty_batch", (0, 3, 8, 8), (4, 3, 1, 1)),
        named("unbatched", (3, 9, 9), (4, 3, 1, 1)),
        named("relu", (2, 24, 16, 16), (40, 24, 1, 1), activation="relu"),
        named("sigmoid", (5, 8, 3, 5), (6, 8, 1, 1), activation="sigmoid"),
        named("padded_is_the_tables", (2, 3, 9, 9), (4, 3, 1, 1), padding=1),
    )
    small_cases = (
        named("plain", (2, 3, 5, 6), (4, 3, 1, 1)),
        named("strided_relu", (2, 2, 6, 7), (3, 2, 1, 1), stride=2, activation="relu"),
        named("unbatched_tanh", (3, 5, 6), (4, 3, 1, 1), activation="tanh"),
    )
    nonfinite_cases = (
        named("plain", (2, 4, 9, 9), (5, 4, 1, 1)),
        named("strided", (2, 4, 9, 9), (5, 4, 1, 1), stride=2),
    )
    refused = (named("channels", (2, 3, 8, 8), (4, 5, 1, 1)),)
    threaded = (
        conv((3, 96, 14, 14), (128, 96, 1, 1), algorithm="gemm"),
        conv((1, 40, 57, 31), (24, 40, 1, 1), activation="relu", algorithm="gemm"),
        conv((7, 300, 7, 7), (33, 300, 1, 1), stride=2, algorithm="gemm"),
    )
    exported = named("exported", (3, 4, 9, 9), (6, 4, 1, 1), stride=2).values[0]

    @pytest.mark.isa
    def test_table_sizes(self):
        """Shapes that the table gives to it, by name and by itself."""
        for case in (
            conv((4, 64, 56, 56), (64, 64, 1, 1)),
            conv((2, 512, 14, 14), (256, 512, 1, 1), stride=2),
        ):
            shapes = (case.shapes["input"], case.shapes["weight"])
            names = d2lfast.explain("conv2d", *shapes, stride=case.options.get("stride", 1))
            assert names["grad_weight"] == "gemm"
            for algorithm in ("gemm", "auto"):
                check(case.replace(options={**case.options, "algorithm": algorithm}))


def test_channels_last_is_not_copied():
    names = d2lfast.explain("conv2d", (4, 64, 56, 56), (64, 64, 1, 1), channels_last=True)
    assert "gemm" not in names.values()
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    with d2lfast.conv2d_algorithm("gemm"):
        y = d2lfast.nn.functional.conv2d(x, torch.randn(4, 8, 1, 1))
    assert y.is_contiguous(memory_format=torch.channels_last)
