"""Vectors along the batch, forced, and where the table takes it."""

from functools import partial

import pytest
import torch
from ops.op_tester import OpTester, naming
from ops.test_conv2d import conv

import d2lfast
from d2lfast.testing import check

pytestmark = pytest.mark.cpu

named = naming(partial(conv, algorithm="batch"))


class TestConv2dBatch(OpTester):
    operator = "conv2d"
    cases = (
        named("lenet1", (17, 1, 28, 28), (6, 1, 5, 5), padding=2),
        named("lenet2", (33, 6, 14, 14), (16, 6, 5, 5)),
        named("one_image", (1, 3, 9, 11), (5, 3, 3, 3), padding=1),
        named("many_images", (50, 2, 5, 4), (3, 2, 3, 3), padding=1, bias=False),
        named("narrow", (5, 2, 8, 8), (3, 2, 3, 5)),
        named("uneven", (3, 4, 7, 10), (7, 4, 4, 3), padding=(2, 1)),
        named("padding_over_kernel", (4, 2, 4, 6), (3, 2, 3, 3), padding=(4, 3)),
        named("padding_under_kernel", (4, 2, 12, 13), (3, 2, 5, 5), padding=1),
        named("long_rows", (2, 1, 5, 61), (2, 1, 3, 3), padding=1),
        named("empty_batch", (0, 3, 8, 8), (4, 3, 3, 3)),
        named("unbatched", (3, 9, 9), (4, 3, 3, 3), padding=1),
        named("relu", (19, 8, 16, 16), (5, 8, 3, 3), padding=1, activation="relu"),
        named("sigmoid", (3, 4, 13, 13), (6, 4, 5, 5), activation="sigmoid"),
        named("tanh", (2, 4, 13, 13), (6, 4, 3, 3), padding=1, activation="tanh"),
        named("strided_is_the_tables", (2, 3, 9, 9), (4, 3, 3, 3), stride=2),
        named("grouped_is_the_tables", (2, 4, 9, 9), (4, 2, 3, 3), groups=2),
        named("wide_is_the_tables", (2, 3, 9, 9), (4, 3, 7, 7), padding=3),
    )
    small_cases = (
        named("plain", (2, 3, 5, 6), (4, 3, 3, 3), padding=1),
        named("relu", (2, 2, 6, 7), (3, 2, 3, 3), activation="relu"),
        named("unbatched_tanh", (3, 5, 6), (4, 3, 3, 3), padding=2, activation="tanh"),
    )
    nonfinite_cases = (
        named("plain", (18, 2, 9, 9), (5, 2, 3, 3)),
        named("padded", (2, 4, 9, 9), (5, 4, 5, 5), padding=2),
        named("relu", (3, 4, 9, 9), (5, 4, 3, 3), padding=1, activation="relu"),
    )
    refused = (named("channels", (2, 3, 8, 8), (4, 5, 3, 3)),)
    threaded = (
        conv((70, 6, 14, 14), (16, 6, 5, 5), algorithm="batch"),
        conv((129, 1, 12, 12), (6, 1, 5, 5), padding=2, activation="relu", algorithm="batch"),
        conv((300, 2, 5, 6), (5, 2, 3, 3), padding=1, algorithm="batch"),
    )
    exported = named("exported", (3, 4, 9, 9), (6, 4, 3, 3), padding=1).values[0]

    @pytest.mark.isa
    def test_table_sizes(self):
        """A shape that the table gives to it, by name and by itself."""
        case = conv((256, 6, 14, 14), (16, 6, 5, 5))
        for algorithm in ("batch", "auto"):
            check(case.replace(options={**case.options, "algorithm": algorithm}))


def test_table():
    batch = {"forward": "batch", "grad_input": "batch", "grad_weight": "batch"}
    assert d2lfast.explain("conv2d", (256, 6, 14, 14), (16, 6, 5, 5)) == batch
    few = d2lfast.explain("conv2d", (16, 6, 14, 14), (16, 6, 5, 5))
    large = d2lfast.explain("conv2d", (256, 6, 56, 56), (16, 6, 5, 5))
    double = d2lfast.explain("conv2d", (256, 6, 14, 14), (16, 6, 5, 5), dtype=torch.float64)
    for names in (few, large, double):
        assert "batch" not in names.values()
