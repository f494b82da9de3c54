import torch
from ops.op_tester import OpTester, naming
from ops.opinfo import OpInfoTester

import d2lfast
from d2lfast.testing import Case


def pool(operator):
    def case(input, output_size, values="normal"):
        return Case(operator, {"input": input}, {"output_size": output_size}, values=values)

    return case, naming(case)


def sizes(named):
    return (
        named("global", (4, 37, 7, 7), 1),
        named("global_oblong", (2, 16, 5, 13), (1, 1)),
        named("global_long", (2, 3, 37, 41), 1),
        named("divisible", (2, 8, 12, 18), (4, 6)),
        named("overlapping", (2, 5, 13, 17), (5, 7)),
        named("identity", (2, 5, 6, 7), (6, 7)),
        named("larger_than_image", (2, 3, 4, 5), (7, 9)),
        named("one_axis_larger", (2, 3, 12, 5), (5, 9)),
        named("rows", (2, 3, 12, 9), (12, 1)),
        named("output_none", (2, 3, 12, 9), (None, 4)),
        named("height_1", (2, 3, 1, 11), (1, 4)),
        named("width_1", (2, 3, 11, 1), (4, 1)),
        named("pixel", (2, 7, 1, 1), 1),
        named("prime_channels", (1, 41, 9, 9), 2),
        named("many_channels", (1, 130, 8, 8), 3),
        named("unbatched", (5, 9, 11), (3, 4)),
        named("empty_batch", (0, 3, 8, 8), 2),
    )


def small(named):
    return (
        named("overlapping", (2, 3, 5, 7), (2, 3)),
        named("global", (2, 3, 4, 5), 1),
        named("larger", (1, 2, 3, 4), (5, 3)),
        named("unbatched", (3, 5, 6), 2),
    )


def refusals(named):
    return (
        named("rank_2", (8, 8), 2),
        named("rank_5", (1, 2, 3, 8, 8), 2),
        named("size_negative", (2, 3, 8, 8), (2, -1)),
        named("size_of_1", (2, 3, 8, 8), (2,)),
        named("size_of_3", (2, 3, 8, 8), (2, 2, 2)),
        named("empty_image", (2, 3, 0, 8), 2),
    )


def threaded(case):
    return (case((5, 64, 33, 35), (7, 6)), case((3, 65, 64, 64), 1), case((1, 3, 200, 200), 11))


class TestAdaptiveAvgPool2d(OpTester):
    operator = "adaptive_avg_pool2d"
    case, named = pool("adaptive_avg_pool2d")
    cases = sizes(named)
    small_cases = small(named)
    nonfinite_cases = (named("overlapping", (2, 3, 9, 9), 4), named("global", (2, 3, 9, 9), 1))
    refused = refusals(named)
    threaded = threaded(case)
    exported = case((3, 5, 9, 9), 4)


class TestAdaptiveMaxPool2d(OpTester):
    operator = "adaptive_max_pool2d"
    case, named = pool("adaptive_max_pool2d")
    cases = (*sizes(named), named("ties", (2, 8, 13, 11), (4, 5), values="ties"))
    small_cases = small(named)
    nonfinite_cases = (named("overlapping", (2, 3, 9, 9), 4), named("global", (2, 3, 9, 9), 1))
    refused = (*refusals(named), named("no_channels", (2, 0, 8, 8), 2))
    threaded = threaded(case)
    exported = case((3, 5, 9, 9), 4)

    def test_without_indices(self):
        x = torch.randn(2, 3, 9, 9)
        ours, theirs = (f.adaptive_max_pool2d(x, 4) for f in (d2lfast.nn.functional, torch.nn.functional))
        assert torch.equal(ours, theirs)


class TestAdaptiveAvgPool2dSamples(OpInfoTester):
    function = "adaptive_avg_pool2d"


class TestAdaptiveMaxPool2dSamples(OpInfoTester):
    function = "adaptive_max_pool2d"
