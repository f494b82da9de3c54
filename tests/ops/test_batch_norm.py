import pytest
import torch
from ops.op_tester import OpTester, naming
from ops.opinfo import OpInfoTester

import d2lfast
from d2lfast.testing import DTYPES, Case, check, inputs_of, run


def norm(input, affine=True, running=True, residual=False, **options):
    channels = input[1:2]
    shapes = {"input": input}
    if affine:
        shapes |= {"weight": channels, "bias": channels}
    if running:
        shapes |= {"running_mean": channels, "running_var": channels}
    if residual:
        shapes["residual"] = input
    return Case("batch_norm_act", shapes, options)


named = naming(norm)


class TestBatchNorm(OpTester):
    operator = "batch_norm_act"
    cases = (
        named("train", (4, 8, 14, 14)),
        named("train_relu", (4, 16, 9, 9), activation="relu"),
        named("train_sigmoid", (4, 5, 9, 9), activation="sigmoid"),
        named("train_tanh", (4, 5, 9, 9), activation="tanh"),
        named("train_residual", (3, 7, 8, 8), residual=True),
        named("train_residual_relu", (3, 17, 8, 8), residual=True, activation="relu"),
        named("train_no_affine", (4, 8, 7, 7), affine=False),
        named("train_no_statistics", (4, 8, 7, 7), running=False),
        named("train_nothing", (4, 8, 7, 7), affine=False, running=False),
        named("train_momentum_1", (4, 8, 7, 7), momentum=1.0),
        named("train_momentum_0", (4, 8, 7, 7), momentum=0.0),
        named("train_eps", (4, 8, 7, 7), eps=0.1),
        named("train_prime_channels", (2, 41, 7, 5)),
        named("train_many_channels", (2, 130, 5, 5)),
        named("train_one_channel", (3, 1, 31, 33)),
        named("train_height_1", (3, 5, 1, 19)),
        named("train_width_1", (3, 5, 19, 1)),
        named("train_pixel", (16, 6, 1, 1)),
        named("train_2d", (32, 10)),
        named("train_2d_relu", (19, 33), activation="relu"),
        named("train_3d", (5, 7, 23)),
        named("train_large", (2, 3, 65, 67)),
        named("train_empty_batch", (0, 5, 4, 4)),
        named("eval", (4, 8, 14, 14), training=False),
        named("eval_relu", (4, 17, 9, 9), training=False, activation="relu"),
        named("eval_residual_relu", (3, 7, 8, 8), training=False, residual=True, activation="relu"),
        named("eval_residual_tanh", (3, 7, 8, 8), training=False, residual=True, activation="tanh"),
        named("eval_no_affine", (4, 8, 7, 7), training=False, affine=False),
        named("eval_2d", (32, 10), training=False),
        named("eval_3d", (5, 7, 23), training=False),
        named("eval_one_image", (1, 3, 5, 5), training=False),
        named("eval_empty_batch", (0, 5, 4, 4), training=False),
    )
    small_cases = (
        named("train", (3, 2, 3, 2)),
        named("train_residual_relu", (3, 2, 2, 3), residual=True, activation="relu"),
        named("train_tanh_2d", (5, 3), activation="tanh"),
        named("train_nothing_3d", (3, 2, 4), affine=False, running=False),
        named("eval", (2, 3, 2, 3), training=False),
        named("eval_residual_sigmoid", (2, 3, 2, 3), training=False, residual=True, activation="sigmoid"),
    )
    nonfinite_cases = (
        named("train", (3, 8, 5, 5), running=False),
        named("eval_relu", (3, 4, 5, 5), training=False, activation="relu"),
    )
    refused = (
        named("train_one_value", (1, 3, 1, 1)),
        named("train_one_value_2d", (1, 3)),
        pytest.param(
            Case("batch_norm_act", {"input": (2, 3, 4, 4)}, {"training": False}), id="eval_no_statistics"
        ),
        *(
            pytest.param(
                Case("batch_norm_act", {"input": (2, 3, 4, 4), name: (3,)}, {"training": training}),
                id=f"{name}_alone_{'train' if training else 'eval'}",
            )
            for name in ("running_mean", "running_var")
            for training in (True, False)
        ),
        *(
            pytest.param(
                Case(
                    "batch_norm_act",
                    {**norm((2, 3, 4, 4)).shapes, name: (5,)},
                    {"training": training},
                ),
                id=f"{name}_{'train' if training else 'eval'}",
            )
            for name in ("weight", "bias", "running_mean", "running_var")
            for training in (True, False)
        ),
    )
    threaded = (
        norm((5, 16, 33, 31)),
        norm((7, 3, 65, 65), activation="relu", residual=True),
        norm((64, 128)),
        norm((3, 67, 29, 29), training=False, activation="relu"),
        norm((5, 32, 17, 19)).replace(layouts={"input": "channels_last", "grad_output": "channels_last"}),
    )
    exported = norm((3, 5, 6, 6), training=False, activation="relu")

    @pytest.mark.isa
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_float32_parameters(self, case, dtype):
        """Low-precision activations with float32 parameters and statistics, as under autocast."""
        parameters = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.float32)
        check(case.replace(dtype=dtype, dtypes=parameters))

    @pytest.mark.isa
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_mean_far_from_zero(self, dtype, layout):
        """The variance must not be lost in the difference of two large numbers."""
        case = norm((6, 5, 13, 11)).replace(dtype=dtype, layouts={"input": layout})
        results = []
        for function, exact in (
            (self.entry.ours, False),
            (self.entry.native, False),
            (self.entry.native, True),
        ):
            inputs = inputs_of(case)
            inputs["input"] = inputs["input"] + (1000 if dtype == torch.float32 else 100)
            results.append(run(case, function, inputs, exact).outputs[0].double())
        ours, theirs, exact = results
        # In float64 torch is its own reference and has no error: the inputs' rounding is left.
        rounding = torch.finfo(dtype).eps * inputs["input"].abs().max().double()
        allowed = 2 * (theirs - exact).abs().max() + 16 * rounding
        assert (ours - exact).abs().max() <= allowed

    def test_residual_is_added_after_the_norm(self):
        case = norm((3, 4, 5, 5), residual=True, activation="relu")
        t = inputs_of(case)
        y = torch.nn.functional.batch_norm(t["input"], None, None, t["weight"], t["bias"], True)
        torch.testing.assert_close(run(case, self.entry.ours, t).outputs[0], torch.relu(y + t["residual"]))

    def test_running_statistics_version(self):
        """Training writes the statistics, and autograd can see that; eval does not touch them."""
        for training in (True, False):
            t = inputs_of(norm((3, 4, 5, 5)))
            before = [t[n].clone() for n in ("running_mean", "running_var")]
            torch.ops.d2lfast.batch_norm_act(*self.entry.arguments(t, {"training": training}))
            for name, old in zip(("running_mean", "running_var"), before):
                assert (t[name]._version > 0) == training
                assert torch.equal(t[name], old) != training

    def test_no_such_activation(self):
        t = inputs_of(self.exported)
        with pytest.raises(ValueError, match="activation"):
            torch.ops.d2lfast.batch_norm_act(*self.entry.arguments(t, {"activation": "gelu"}))

    def test_functional(self):
        t = inputs_of(norm((3, 4, 5, 5)))
        arguments = [t[n] for n in ("input", "running_mean", "running_var", "weight", "bias")]
        ours, theirs = (
            f.batch_norm(*(x.clone() for x in arguments), training=True, momentum=0.3, eps=1e-3)
            for f in (d2lfast.nn.functional, torch.nn.functional)
        )
        torch.testing.assert_close(ours, theirs)


class TestBatchNormSamples(OpInfoTester):
    function = "batch_norm"
