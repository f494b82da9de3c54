import pytest
import torch
from ops.op_tester import OpTester, naming
from ops.opinfo import OpInfoTester

import d2lfast
from d2lfast.testing import Case, check, inputs_of, run
from d2lfast.testing.compare import same


def conv(input, weight, bias=True, residual=None, **options):
    shapes = {"input": input, "weight": weight}
    if bias:
        shapes["bias"] = weight[:1]
    if residual is not None:
        shapes["residual"] = residual
    return Case("conv2d", shapes, options)


named = naming(conv)


class TestConv2d(OpTester):
    operator = "conv2d"

    cases = (
        named("lenet1", (4, 1, 28, 28), (6, 1, 5, 5), padding=2),
        named("lenet2", (4, 6, 14, 14), (16, 6, 5, 5)),
        named("3x3", (2, 8, 16, 16), (16, 8, 3, 3), padding=1),
        named("3x3_no_bias", (2, 8, 16, 16), (16, 8, 3, 3), bias=False, padding=1),
        named("3x3_wide_channels", (1, 65, 9, 9), (67, 65, 3, 3), padding=1),
        named("1x1", (3, 17, 7, 7), (19, 17, 1, 1)),
        named("1x1_stride2", (2, 16, 15, 15), (32, 16, 1, 1), stride=2),
        named("3x3_stride2", (2, 5, 15, 17), (7, 5, 3, 3), stride=2, padding=1),
        named("7x7_stride2", (2, 3, 33, 33), (8, 3, 7, 7), stride=2, padding=3),
        named("11x11_stride4", (1, 3, 67, 67), (9, 3, 11, 11), stride=4, padding=2),
        named("stride_over_kernel", (2, 3, 17, 19), (4, 3, 2, 2), stride=(3, 5)),
        named("dilation", (2, 4, 19, 23), (5, 4, 3, 3), dilation=(2, 3), padding=2),
        named("dilation_stride", (2, 4, 19, 23), (5, 4, 3, 3), dilation=2, stride=(2, 3), padding=(1, 4)),
        named("groups", (2, 12, 10, 10), (18, 4, 3, 3), groups=3, padding=1),
        named("depthwise", (2, 17, 12, 12), (17, 1, 3, 3), groups=17, padding=1),
        named("depthwise_multiplier_stride", (2, 6, 13, 13), (12, 1, 5, 5), groups=6, padding=2, stride=2),
        named("same", (2, 3, 9, 11), (4, 3, 3, 5), padding="same"),
        named("same_even_kernel_dilated", (2, 3, 9, 11), (4, 3, 2, 4), padding="same", dilation=(3, 1)),
        named("valid", (2, 3, 9, 11), (4, 3, 3, 5), padding="valid"),
        named("padding_over_kernel", (1, 2, 4, 4), (3, 2, 2, 2), padding=(3, 5)),
        named("kernel_is_padded_image", (2, 3, 5, 7), (4, 3, 7, 9), padding=1),
        named("height_1", (2, 3, 1, 21), (4, 3, 1, 3), padding=(0, 1)),
        named("width_1", (2, 3, 21, 1), (4, 3, 3, 1), padding=(1, 0)),
        named("pixel", (2, 7, 1, 1), (5, 7, 3, 3), padding=1),
        named("one_channel", (2, 1, 9, 9), (1, 1, 3, 3), padding=1),
        named("prime_channels", (1, 37, 8, 8), (41, 37, 3, 3), padding=1),
        named("empty_batch", (0, 3, 8, 8), (4, 3, 3, 3)),
        named("unbatched", (3, 9, 9), (4, 3, 3, 3), padding=1),
        named("relu", (2, 8, 16, 16), (16, 8, 3, 3), padding=1, activation="relu"),
        named("sigmoid", (2, 8, 13, 13), (6, 8, 3, 3), stride=2, activation="sigmoid"),
        named("tanh", (2, 8, 13, 13), (6, 4, 3, 3), groups=2, activation="tanh"),
        named("residual", (2, 8, 16, 16), (16, 8, 3, 3), residual=(2, 16, 16, 16), padding=1),
        named(
            "residual_relu_1x1",
            (2, 16, 13, 15),
            (17, 16, 1, 1),
            residual=(2, 17, 13, 15),
            activation="relu",
        ),
        named(
            "residual_sigmoid_strided_groups",
            (2, 12, 13, 13),
            (18, 4, 3, 3),
            residual=(2, 18, 6, 6),
            groups=3,
            stride=2,
            activation="sigmoid",
        ),
        named(
            "residual_tanh_depthwise",
            (2, 17, 12, 12),
            (17, 1, 3, 3),
            bias=False,
            residual=(2, 17, 12, 12),
            groups=17,
            padding=1,
            activation="tanh",
        ),
        named("residual_unbatched", (3, 9, 9), (4, 3, 3, 3), residual=(4, 7, 7), activation="relu"),
        named("residual_empty_batch", (0, 3, 8, 8), (4, 3, 3, 3), residual=(0, 4, 6, 6)),
    )
    small_cases = (
        named("plain", (2, 3, 5, 6), (4, 3, 3, 2), padding=1),
        named("strided", (2, 4, 7, 5), (6, 2, 3, 3), stride=(2, 1), padding=(1, 0), groups=2),
        named("dilated_relu", (2, 2, 6, 7), (3, 2, 2, 3), dilation=2, padding=1, activation="relu"),
        named("depthwise_tanh", (2, 3, 5, 5), (3, 1, 3, 3), groups=3, padding=1, activation="tanh"),
        named("unbatched", (3, 5, 6), (4, 3, 3, 3), padding=1),
        named("1x1_sigmoid", (2, 5, 4, 3), (4, 5, 1, 1), activation="sigmoid"),
        named("residual_tanh", (2, 3, 5, 5), (4, 3, 3, 3), residual=(2, 4, 3, 3), activation="tanh"),
    )
    nonfinite_cases = (
        named("3x3", (2, 4, 9, 9), (5, 4, 3, 3)),
        named("3x3_padded", (2, 4, 9, 9), (5, 4, 3, 3), padding=1),
        named("strided", (2, 4, 11, 11), (5, 4, 3, 3), stride=2),
    )
    refused = (
        named("rank_2", (8, 8), (4, 3, 3, 3)),
        named("rank_5", (1, 2, 3, 8, 8), (4, 3, 3, 3)),
        named("weight_rank_3", (2, 3, 8, 8), (4, 3, 3)),
        named("channels", (2, 3, 8, 8), (4, 5, 3, 3)),
        named("groups_of_channels", (2, 6, 8, 8), (4, 6, 3, 3), groups=2),
        named("groups_of_outputs", (2, 6, 8, 8), (5, 3, 3, 3), groups=2),
        named("groups_0", (2, 3, 8, 8), (4, 3, 3, 3), groups=0),
        named("groups_negative", (2, 3, 8, 8), (4, 3, 3, 3), groups=-1),
        named("kernel_over_image", (2, 3, 4, 4), (4, 3, 5, 5)),
        named("dilated_kernel_over_image", (2, 3, 4, 4), (4, 3, 3, 3), dilation=3),
        named("stride_0", (2, 3, 8, 8), (4, 3, 3, 3), stride=0),
        named("stride_negative", (2, 3, 8, 8), (4, 3, 3, 3), stride=(1, -1)),
        named("padding_negative", (2, 3, 8, 8), (4, 3, 3, 3), padding=-1),
        named("dilation_0", (2, 3, 8, 8), (4, 3, 3, 3), dilation=0),
        named("stride_of_3", (2, 3, 8, 8), (4, 3, 3, 3), stride=(1, 1, 1)),
        named("padding_of_3", (2, 3, 8, 8), (4, 3, 3, 3), padding=(1, 1, 1)),
        named("same_with_stride", (2, 3, 8, 8), (4, 3, 3, 3), padding="same", stride=2),
        named("no_such_padding", (2, 3, 8, 8), (4, 3, 3, 3), padding="full"),
        named("empty_image", (2, 3, 0, 8), (4, 3, 3, 3)),
        named("residual_size", (2, 3, 8, 8), (4, 3, 3, 3), residual=(2, 4, 6, 5)),
        named("residual_rank", (2, 3, 8, 8), (4, 3, 3, 3), residual=(2, 4, 6)),
        pytest.param(
            Case("conv2d", {"input": (2, 3, 8, 8), "weight": (4, 3, 3, 3), "bias": (5,)}), id="bias_length"
        ),
        pytest.param(
            Case("conv2d", {"input": (2, 3, 8, 8), "weight": (4, 3, 3, 3), "bias": (4, 1)}), id="bias_rank"
        ),
    )
    threaded = (
        conv((5, 16, 30, 30), (24, 16, 3, 3), padding=1),
        conv((1, 64, 31, 31), (48, 64, 3, 3), padding=1, activation="relu"),
        conv((3, 32, 29, 29), (32, 1, 3, 3), padding=1, groups=32),
        conv((7, 3, 65, 65), (16, 3, 7, 7), padding=3, stride=2),
        conv((3, 96, 14, 14), (128, 96, 1, 1)),
    )
    exported = conv((3, 4, 9, 9), (6, 4, 3, 3), padding=1, stride=2)

    @pytest.mark.cpu
    def test_threads_do_not_change_a_bit(self):
        """But for the passes that the table gives to torch: oneDNN splits its sums by threads."""
        names = {"output": "forward", "input": "grad_input", "weight": "grad_weight", "bias": "grad_weight"}
        compared = 0
        for case in self.threaded:
            shapes = (case.shapes["input"], case.shapes["weight"])
            geometry = {k: v for k, v in case.options.items() if k in ("stride", "padding", "groups")}
            with d2lfast.conv2d_algorithm(case.options.get("algorithm", "auto")):
                algorithms = d2lfast.explain("conv2d", *shapes, **geometry)
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                result = self.ours(case)
                results.append({"output": result.outputs[0], **result.gradients})
            for name, algorithm in names.items():
                if algorithms[algorithm] in ("direct", "channels", "planes", "batch"):
                    assert same(results[0][name], results[1][name]), name
                    compared += 1
        assert compared >= 5

    def test_no_such_activation(self):
        inputs, groups = inputs_of(self.exported), dict(self.exported.options).get("groups", 1)
        with pytest.raises(ValueError, match="activation"):
            d2lfast.nn.functional.conv2d(inputs["input"], inputs["weight"], groups=groups, activation="gelu")

    @pytest.mark.isa
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_large(self, memory_format):
        """Sizes at which the algorithms for large channels take over."""
        for case in (
            conv((2, 128, 28, 28), (128, 128, 3, 3), padding=1),
            conv((2, 256, 14, 14), (64, 256, 1, 1)),
            conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1, activation="relu"),
        ):
            layout = "channels_last" if memory_format == torch.channels_last else "contiguous"
            check(case.replace(layouts={"input": layout}))

    def test_weight_decides_the_layout_too(self):
        """torch gives a channels_last output if either of the two is."""
        for layouts in ({"weight": "channels_last"}, {"input": "channels_last"}):
            check(conv((2, 3, 9, 9), (4, 3, 3, 3)).replace(layouts=layouts))

    def test_zero_weights_times_infinity(self):
        case = conv((1, 1, 6, 6), (1, 1, 3, 3), bias=False)
        results = []
        for function in (d2lfast.nn.functional.conv2d, torch.nn.functional.conv2d):
            x = torch.zeros(1, 1, 6, 6)
            x[0, 0, 2, 2] = torch.inf
            results.append(function(x, torch.zeros(1, 1, 3, 3)))
        assert torch.equal(*(torch.isnan(r) for r in results))
        assert run(case, self.entry.ours, inputs_of(case)).outputs[0].isfinite().all()


def directly(parameter):
    case = parameter.values[0]
    return pytest.param(case.replace(options={**case.options, "algorithm": "direct"}), id=parameter.id)


class TestConv2dDirect(TestConv2d):
    """The kernels of this library, also where the table prefers those of torch."""

    cases = tuple(map(directly, TestConv2d.cases))
    small_cases = tuple(map(directly, TestConv2d.small_cases))
    nonfinite_cases = tuple(map(directly, TestConv2d.nonfinite_cases))
    refused = tuple(map(directly, TestConv2d.refused))
    threaded = tuple(directly(pytest.param(case)).values[0] for case in TestConv2d.threaded)
    exported = directly(pytest.param(TestConv2d.exported)).values[0]
    test_threads_do_not_change_a_bit = OpTester.test_threads_do_not_change_a_bit


def along_channels(parameter):
    case = parameter.values[0]
    options = {**case.options, "algorithm": "channels"}
    layouts = {"input": "channels_last"}
    return pytest.param(case.replace(options=options, layouts=layouts), id=parameter.id)


class TestConv2dChannels(TestConv2d):
    """Vectors along the channels; a case that these kernels cannot compute is not one of theirs."""

    cases = tuple(
        map(
            along_channels,
            (
                named("depthwise", (2, 32, 12, 12), (32, 1, 3, 3), groups=32, padding=1),
                named(
                    "depthwise_5x5_relu",
                    (2, 24, 11, 30),
                    (24, 1, 5, 5),
                    groups=24,
                    padding=2,
                    activation="relu",
                ),
                named("depthwise_stride", (2, 19, 13, 33), (19, 1, 3, 3), groups=19, padding=1, stride=2),
                named("depthwise_multiplier", (2, 16, 13, 13), (32, 1, 3, 3), groups=16, padding=1),
                named("groups_of_4", (2, 32, 30, 30), (32, 4, 3, 3), groups=8, padding=1),
                named("groups_of_8_stride", (2, 64, 15, 14), (64, 8, 3, 3), groups=8, padding=1, stride=2),
                named("groups_of_40", (1, 80, 7, 9), (80, 40, 3, 3), groups=2, padding=1),
                named(
                    "groups_dilated_stride",
                    (1, 32, 19, 23),
                    (32, 4, 3, 2),
                    groups=8,
                    dilation=3,
                    stride=(2, 3),
                ),
                named("even_kernel", (2, 32, 9, 30), (32, 2, 2, 4), groups=16, padding=(1, 3)),
                named("padding_over_kernel", (1, 16, 4, 4), (16, 1, 2, 2), groups=16, padding=(3, 5)),
                named("11x11_stride4", (1, 3, 67, 67), (33, 3, 11, 11), stride=4, padding=2),
                named("one_result_sigmoid", (2, 16, 9, 17), (1, 16, 3, 3), activation="sigmoid"),
                named("empty_batch", (0, 32, 8, 8), (32, 1, 3, 3), groups=32),
            ),
        )
    )
    small_cases = tuple(
        map(
            along_channels,
            (
                named("depthwise", (2, 16, 4, 5), (16, 1, 3, 2), groups=16, padding=1),
                named(
                    "strided_relu", (1, 16, 5, 4), (16, 2, 3, 3), groups=8, stride=(2, 1), activation="relu"
                ),
                named("broadcast", (1, 2, 4, 4), (17, 2, 3, 3), padding=1),
            ),
        )
    )
    # Planes, which the test sets elements of, are read by broadcasts alone.
    nonfinite_cases = tuple(
        pytest.param(case.replace(options={**case.options, "algorithm": "channels"}), id=f"stem_{number}")
        for number, case in enumerate(
            (conv((2, 2, 9, 9), (17, 2, 3, 3)), conv((1, 3, 19, 19), (16, 3, 7, 7), stride=2))
        )
    )
    refused = ()
    threaded = (
        along_channels(named("", (3, 32, 29, 29), (32, 1, 3, 3), padding=1, groups=32)).values[0],
        along_channels(named("", (3, 64, 30, 30), (64, 4, 3, 3), padding=1, groups=16, stride=2)).values[0],
    )
    exported = along_channels(named("", (3, 16, 9, 9), (16, 2, 3, 3), padding=1, stride=2, groups=8)).values[
        0
    ]
    test_threads_do_not_change_a_bit = OpTester.test_threads_do_not_change_a_bit


def along_columns(parameter):
    case = parameter.values[0]
    return pytest.param(
        case.replace(options={**case.options, "algorithm": "planes"}, layouts={"input": "contiguous"}),
        id=parameter.id,
    )


class TestConv2dPlanes(TestConv2d):
    """Vectors along the columns of planes that are read in place."""

    cases = tuple(
        map(
            along_columns,
            (
                named("depthwise", (2, 5, 12, 56), (5, 1, 3, 3), groups=5, padding=1),
                named(
                    "depthwise_5x5_relu", (2, 4, 11, 30), (4, 1, 5, 5), groups=4, padding=2, activation="relu"
                ),
                named("depthwise_stride", (2, 7, 13, 33), (7, 1, 3, 3), groups=7, padding=1, stride=2),
                named("depthwise_multiplier", (2, 6, 13, 29), (18, 1, 3, 3), groups=6, padding=1),
                named("groups_of_4", (2, 8, 30, 57), (8, 4, 3, 3), groups=2, padding=1),
                named(
                    "groups_of_8_tanh", (2, 16, 9, 28), (16, 8, 3, 3), groups=2, padding=1, activation="tanh"
                ),
                named("groups_stride", (2, 16, 15, 28), (16, 8, 3, 3), groups=2, padding=1, stride=2),
                named("groups_stride_3", (1, 8, 16, 40), (8, 4, 4, 5), groups=2, padding=(1, 7), stride=3),
                named(
                    "groups_dilated", (2, 8, 19, 45), (8, 4, 3, 3), groups=2, padding=(2, 4), dilation=(2, 3)
                ),
                named("even_kernel", (2, 8, 9, 50), (8, 2, 2, 4), groups=4, padding=(1, 3)),
                named("padding_over_kernel", (1, 4, 4, 4), (4, 1, 3, 3), groups=4, padding=(3, 18)),
                named("dense", (2, 3, 20, 40), (6, 3, 5, 5), padding=2),
                named("stride_over_height", (2, 4, 1, 9), (4, 1, 3, 3), groups=4, padding=1, stride=4),
                named("empty_batch", (0, 4, 8, 8), (4, 1, 3, 3), groups=4),
            ),
        )
    )
    small_cases = tuple(
        map(
            along_columns,
            (
                named("depthwise", (2, 2, 5, 5), (2, 1, 3, 3), groups=2, padding=1),
                named("grouped_relu", (1, 4, 5, 4), (4, 2, 3, 3), groups=2, stride=2, activation="relu"),
            ),
        )
    )
    nonfinite_cases = (
        along_columns(named("depthwise", (2, 4, 9, 9), (4, 1, 3, 3), groups=4)),
        along_columns(named("groups_padded", (2, 8, 9, 20), (8, 4, 3, 3), groups=2, padding=1)),
    )
    refused = ()
    threaded = (
        along_columns(named("", (3, 32, 29, 29), (32, 1, 3, 3), padding=1, groups=32)).values[0],
        along_columns(named("", (1, 4, 60, 60), (4, 4, 3, 3), padding=1)).values[0],
    )
    exported = along_columns(named("", (3, 4, 9, 9), (4, 2, 3, 3), padding=1, groups=2)).values[0]
    test_threads_do_not_change_a_bit = OpTester.test_threads_do_not_change_a_bit


@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sliced", [("weight",), ("input",), ("input", "weight")], ids="-".join)
def test_layout_of_one_element_channels(sliced, channels, size, kernel):
    """Where strides name no layout torch's choice is that of its copies."""

    def tensor(name, *shape):
        if name not in sliced:
            return torch.randn(shape)
        larger = torch.randn([2 * n for n in shape]).contiguous(memory_format=torch.channels_last)
        return larger[tuple(slice(n) for n in shape)]

    input, weight = tensor("input", 2, channels, size, size), tensor("weight", 5, channels, kernel, kernel)
    arguments = (input, weight, None, [1, 1], [1, 1], [1, 1], 1, "none", "direct")
    output = torch.ops.d2lfast.conv2d(*arguments)
    assert output.stride() == torch.conv2d(input, weight, padding=1).stride()
    torch.library.opcheck(torch.ops.d2lfast.conv2d.default, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
@pytest.mark.parametrize("algorithm", ["planes", "channels"])
@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((3, 32, 29, 29), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
        ((17, 16, 12, 30), (16, 1, 5, 5), {"padding": 0, "groups": 16}),
        ((2, 32, 20, 18), (32, 4, 3, 3), {"padding": 1, "groups": 8}),
        ((2, 64, 15, 14), (64, 8, 3, 3), {"padding": 1, "groups": 8, "stride": 2}),
        ((2, 32, 14, 13), (32, 1, 2, 2), {"padding": 3, "groups": 32, "stride": 2}),
        ((2, 32, 9, 9), (32, 2, 1, 1), {"padding": 0, "groups": 16, "stride": 3}),
        # Past the caches.
        pytest.param(
            (3, 32, 240, 240), (32, 1, 3, 3), {"padding": 1, "groups": 32}, marks=pytest.mark.cpu, id="large"
        ),
    ],
)
def test_gradients_together_are_those_alone(shape, weight, options, algorithm, activation, dtype):
    large = shape[-1] > 100
    if large and (dtype is not torch.float32 or activation == "tanh"):
        pytest.skip("one is enough")
    torch.manual_seed(0)
    layout = torch.channels_last if algorithm == "channels" else torch.contiguous_format
    groups, stride, padding = options["groups"], options.get("stride", 1), options["padding"]
    x = torch.randn(shape, dtype=dtype).to(memory_format=layout)
    w = torch.randn(weight, dtype=dtype)
    settings = ([stride] * 2, [padding] * 2, [1, 1], groups, activation, algorithm)
    y = torch.ops.d2lfast.conv2d(x, w, None, *settings)
    grad = torch.randn_like(y)
    output = y if activation != "none" else None

    def gradients(*mask):
        return torch.ops.d2lfast._conv2d_backward(grad, x, w, output, *settings, mask)

    together = gradients(True, True, True)
    assert torch.equal(together[0], gradients(True, False, False)[0])
    for one, other in zip(together[1:], gradients(False, True, True)[1:], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(together[1], gradients(True, True, False)[1])


class TestConv2dSamples(OpInfoTester):
    function = "conv2d"
