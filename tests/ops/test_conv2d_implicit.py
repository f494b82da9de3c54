"""Dense convolutions as implicit matrix products of CUDA, forced."""

from functools import partial

import pytest
from ops.op_tester import OpTester, naming
from ops.test_conv2d import conv

pytestmark = pytest.mark.cuda

named = naming(partial(conv, algorithm="implicit_gemm"))


def last(parameter):
    return pytest.param(
        parameter.values[0].replace(layouts={"input": "channels_last"}), id=f"{parameter.id}_last"
    )


class TestConv2dImplicitGemm(OpTester):
    operator = "conv2d"
    planar_cases = (
        named("3x3", (2, 16, 9, 13), (72, 16, 3, 3), padding=1),
        named("1x1", (2, 24, 7, 7), (40, 24, 1, 1), bias=False),
        named("large_tile", (3, 64, 15, 15), (136, 64, 1, 1), activation="relu"),
        named("many_channels", (1, 264, 5, 6), (136, 264, 3, 3), padding=1),
        named("strided", (2, 16, 13, 12), (32, 16, 3, 3), padding=1, stride=2, activation="tanh"),
        named("strided_1x1", (2, 32, 9, 9), (64, 32, 1, 1), stride=2),
        named("strided_over_kernel", (2, 8, 11, 14), (16, 8, 2, 2), stride=(3, 4)),
        named("dilated", (2, 8, 12, 11), (16, 8, 3, 2), padding=(2, 3), dilation=(2, 3)),
        named("padding_over_kernel", (1, 8, 4, 3), (8, 8, 2, 2), padding=(4, 3)),
        named("odd_results", (2, 8, 6, 6), (7, 8, 3, 3), padding=1, activation="sigmoid"),
        named("odd_channels_are_the_tables", (2, 5, 6, 6), (8, 5, 3, 3), padding=1),
        named("pixel", (3, 16, 1, 1), (16, 16, 1, 1)),
        named("empty_batch", (0, 8, 8, 8), (16, 8, 3, 3)),
        named("unbatched", (8, 9, 9), (16, 8, 3, 3), padding=1),
    )
    cases = (*planar_cases, *map(last, planar_cases[:-1]))
    small_cases = (
        named("plain", (1, 8, 4, 3), (8, 8, 3, 2), padding=1),
        named("strided_relu", (1, 8, 5, 4), (8, 8, 2, 2), stride=(2, 1), activation="relu"),
    )
    refused = ()
    test_gradcheck = None  # float64 is another algorithm's
    nonfinite_cases = (
        named("plain", (2, 8, 9, 9), (16, 8, 3, 3), padding=1),
        named("strided", (2, 8, 9, 9), (16, 8, 3, 3), stride=2),
    )
    threaded = ()
    exported = named("", (3, 8, 9, 9), (16, 8, 3, 3), padding=1, stride=2).values[0]
