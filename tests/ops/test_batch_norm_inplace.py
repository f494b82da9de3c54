"""`batch_norm_act(inplace=True)` and the operator behind it, `batch_norm_act_`."""

import pytest
import torch
from ops.op_tester import naming
from ops.test_batch_norm import norm
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import d2lfast
from d2lfast.bench.saved import saved_bytes
from d2lfast.convert import convert, revert
from d2lfast.nn import functional as F
from d2lfast.testing import DTYPES, OPERATORS, compare, inputs_of, run
from d2lfast.testing.cases import DEVICE

ENTRY = OPERATORS["batch_norm_act"]
ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")
FROZEN = ("input", "residual")  # what wants a gradient beside a frozen weight


def usual_inputs(case):
    """Weights and biases between 0.5 and a few, as the output must give back the normalised values."""
    t = inputs_of(case)
    for name in ("weight", "bias"):
        if t[name] is not None:
            t[name] = torch.copysign(t[name].abs() + 0.5, t[name])
    return t


def call(x, t, o, inplace=True):
    tensors = (t[n] for n in ("running_mean", "running_var", "weight", "bias"))
    scalars = (
        o.get("training", True),
        o.get("momentum", 0.1),
        o.get("eps", 1e-5),
        o.get("activation", "none"),
    )
    return F.batch_norm_act(x, *tensors, *scalars, t["residual"], inplace)


def overwritten(case):
    """Whether a permitted case writes over its input: not on a GPU where backward would divide by weights."""
    return DEVICE == "cpu" or not (case.options.get("training", True) or "weight" in case.gradients())


def ours(overwrites, make=lambda x: x * 1):
    """The function of a case; asserts that it wrote over the tensor that `make` gives it, or did not."""

    def function(t, options):
        x = make(t["input"])
        before = x.detach().clone()
        y = call(x, t, options)
        assert (y is x) == overwrites
        assert overwrites or torch.equal(x, before)
        return (y, *(s for s in (t["running_mean"], t["running_var"]) if s is not None))

    return function


def is_as_good_as_torch(case, function):
    exact = run(case, ENTRY.native, usual_inputs(case), exact=True)
    mine, theirs = run(case, function, usual_inputs(case)), run(case, ENTRY.native, usual_inputs(case))
    compare(case, mine, theirs, exact, strides=False)


def inside_of_nan(x):
    base = x.new_full([n + 2 for n in x.shape], torch.nan) * 1
    view = base[tuple(slice(1, n + 1) for n in x.shape)]
    return view.copy_(x)


@naming
def named(input, differentiable=None, **options):
    return norm(input, **options).replace(differentiable=differentiable)


PERMITTED = [
    named("train", (4, 8, 14, 14)),
    named("train_odd", (3, 5, 9, 7)),
    named("train_no_affine", (4, 8, 7, 7), affine=False),
    named("train_no_statistics", (4, 8, 7, 7), running=False),
    named("train_2d", (32, 10)),
    named("train_2d_joined_rows", (67, 120)),
    named("train_3d", (5, 7, 23)),
    named("train_frozen", (4, 8, 7, 7), FROZEN),
    named("eval", (4, 8, 14, 14), training=False),
    named("eval_relu", (4, 17, 9, 9), training=False, activation="relu"),
    named("eval_relu_2d", (33, 120), training=False, activation="relu"),
    named("eval_frozen_none", (3, 7, 8, 8), FROZEN, training=False, residual=True),
    *(
        named(f"eval_frozen_{name}", (3, 7, 8, 8), FROZEN, training=False, residual=True, activation=name)
        for name in ACTIVATIONS[1:]
    ),
]
REFUSED = [
    named("train_relu", (4, 8, 7, 7), activation="relu"),
    named("train_frozen_relu", (4, 8, 7, 7), FROZEN, activation="relu"),
    named("train_tanh", (4, 8, 7, 7), activation="tanh"),
    named("train_residual", (4, 8, 7, 7), residual=True),
    named("eval_tanh", (4, 8, 7, 7), training=False, activation="tanh"),
    named("eval_residual", (4, 8, 7, 7), training=False, residual=True),
]


@pytest.mark.isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PERMITTED)
def test_permitted(case, dtype, layout):
    case = case.replace(dtype=dtype, layouts=dict.fromkeys(("input", "residual", "grad_output"), layout))
    is_as_good_as_torch(case, ours(overwritten(case)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", PERMITTED[:1] + PERMITTED[9:10])
def test_float32_parameters(case, dtype):
    """The weight's gradient has the roundings of the 16-bit output, of which it is a sum."""
    parameters = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.float32)
    case = case.replace(dtype=dtype, dtypes=parameters)
    frozen = case.replace(differentiable=("input", "bias"))
    is_as_good_as_torch(frozen, ours(overwritten(frozen)))
    mine, exact = (
        run(case, function, usual_inputs(case), exact=function is ENTRY.native).gradients["weight"].double()
        for function in (ours(overwritten(case)), ENTRY.native)
    )
    assert (mine - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("case", PERMITTED)
def test_view(case):
    """Part of a larger tensor, whose history is written anew."""
    case = case.replace(layouts={"grad_output": "strided"})
    exact = run(case, ENTRY.native, usual_inputs(case), exact=True)
    mine = run(case, ours(overwritten(case), inside_of_nan), usual_inputs(case))
    compare(case, mine, run(case, ENTRY.native, usual_inputs(case)), exact, strides=False)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """Where backward needs the input: a new tensor, and the same bits as without `inplace`."""
    is_as_good_as_torch(case, ours(False))
    t = usual_inputs(case)
    x = t["input"].requires_grad_() * 1
    if "weight" in case.gradients():
        t["weight"].requires_grad_()
    with pytest.raises(RuntimeError, match="would write over"):
        torch.ops.d2lfast.batch_norm_act_(*ENTRY.arguments({**t, "input": x}, dict(case.options)))


@pytest.mark.parametrize(("weight", "bias"), [(0.0, 0.0), (1e-30, 0.0), (1.0, 17.0), (float("nan"), 0.0)])
def test_weight_that_loses_the_values(weight, bias):
    t = usual_inputs(norm((4, 8, 7, 7)))
    t["weight"][3], t["bias"][3] = weight, bias
    t["weight"].requires_grad_()
    x = t["input"] * 1
    assert call(x, t, {}) is not x
    t["weight"].requires_grad_(False)
    assert call(x, t, {"training": False}) is x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_gradients(activation, residual, training, layout):
    case = norm((3, 7, 9, 8), residual=residual, activation=activation, training=training)
    case = case.replace(layouts={"input": layout})
    t, again = inputs_of(case), inputs_of(case)
    t["weight"][2] = again["weight"][2] = 0
    with torch.no_grad():
        t["weight"].requires_grad_()
        version = t["input"]._version
        assert call(t["input"], t, case.options) is t["input"]
        expected = call(again["input"], again, case.options, inplace=False)
    assert torch.equal(t["input"], expected)
    assert t["input"]._version == version + 1
    assert t["input"].stride() == inputs_of(case)["input"].stride()
    for name in ("running_mean", "running_var"):
        assert torch.equal(t[name], again[name])


def test_residual_is_the_input():
    t = inputs_of(norm((3, 7, 9, 8)))
    x = t["input"]
    expected = torch.relu(call(x.clone(), {**t, "residual": None}, {"training": False}) + x)
    torch.testing.assert_close(
        call(x, {**t, "residual": x}, {"training": False, "activation": "relu"}), expected
    )


def test_empty_batch():
    x = torch.randn(0, 3, 4, 4, device=DEVICE)
    t = inputs_of(norm((2, 3, 4, 4)))
    assert call(x, t, {}) is x


def test_what_torch_refuses_in_place():
    t = inputs_of(norm((3, 4, 5, 5)))
    leaf = torch.randn(3, 4, 5, 5, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        call(leaf, t, {})
    with pytest.raises(RuntimeError, match="a view of a leaf Variable"):
        call(leaf[1:], t, {})
    with torch.no_grad(), pytest.raises(RuntimeError, match="single memory location"):
        call(torch.randn(1, 4, 5, 5, device=DEVICE).expand(3, 4, 5, 5), t, {})
    buffer = torch.randn(4, 4, 5, 5, device=DEVICE)
    with torch.no_grad(), pytest.raises(RuntimeError, match="single memory location"):
        call(buffer[:3], {**t, "residual": buffer[1:]}, {})


SAVES_ITS_OUTPUT = pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {}, marks=pytest.mark.skipif(DEVICE != "cpu", reason="a new tensor on a GPU"), id="train"
        ),
        pytest.param({"training": False, "activation": "relu"}, id="eval_relu"),
    ],
)


@SAVES_ITS_OUTPUT
def test_version_counters(options):
    """What somebody saved before, and what batch norm saves, must not be written."""
    t = usual_inputs(norm((3, 4, 5, 5)))
    x = torch.randn(3, 4, 5, 5, device=DEVICE, requires_grad=True)
    y = call(x.sigmoid(), t, options)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = call(x * 1, t, options)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("case", PERMITTED[:1] + PERMITTED[8:])
def test_gradcheck(case):
    small = {name: (2, 3, 3, 2)[: len(s)] if len(s) > 1 else (3,) for name, s in case.shapes.items()}
    case = case.replace(shapes=small, dtype=torch.float64)
    names = case.gradients()

    def function(*values):
        t = {**usual_inputs(case), **dict(zip(names, values))}
        return call(t["input"] * 1, t, case.options)

    leaves = [usual_inputs(case)[name].requires_grad_() for name in names]
    torch.autograd.gradcheck(function, leaves, atol=1e-6)


@SAVES_ITS_OUTPUT
def test_double_backward_is_refused(options):
    t = usual_inputs(norm((3, 4, 5, 5)))
    x = torch.randn(3, 4, 5, 5, device=DEVICE, requires_grad=True)
    (grad,) = torch.autograd.grad(call(x * 1, t, options).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(training, layout):
    case = norm((3, 4, 5, 5), residual=True, activation="relu", training=training)
    case = case.replace(layouts={"input": layout})
    arguments = ENTRY.arguments(inputs_of(case), dict(case.options))
    ops = torch.ops.d2lfast
    torch.library.opcheck(ops.batch_norm_act_.default, arguments)
    torch.library.opcheck(ops._batch_norm_inplace_saving.default, arguments)
    t = inputs_of(case)
    statistics = torch.rand(3, 4, device=DEVICE) + 0.5
    backward = (t["residual"], t["input"], t["weight"], t["bias"], statistics, training, "none", [True] * 4)
    torch.library.opcheck(ops._batch_norm_inplace_backward.default, backward)


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    """A traced graph gets a new tensor, and the same gradients."""
    layer = d2lfast.nn.BatchNormAct2d(4, act_layer="none", inplace=True).train(training)
    twin = d2lfast.nn.BatchNormAct2d(4, act_layer="none").train(training)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x * 2).sin(), backend="aot_eager", fullgraph=True)
    results = []
    for function in (compiled, lambda x: twin(x * 2).sin()):
        y = function(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(layer.running_mean, twin.running_mean)


def test_fake_tensors():
    """Weights without values cannot be looked at."""
    with FakeTensorMode():
        layer = d2lfast.nn.BatchNormAct2d(4, act_layer="none", inplace=True)
        x = torch.randn(3, 4, 5, 5)
        assert layer(x) is not x
        with torch.no_grad():
            assert layer(x) is x


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    """Half-precision products, float32 parameters."""
    torch.manual_seed(0)
    conv, x, factor = nn.Conv2d(3, 8, 3), torch.randn(4, 3, 9, 9), torch.randn(4, 8, 7, 7)
    results = []
    for inplace in (True, False):
        layer = d2lfast.nn.BatchNormAct2d(8, act_layer="none", inplace=inplace).train(training)
        with torch.autocast(DEVICE, torch.bfloat16):
            y = layer(conv(x))
        assert y.dtype == torch.bfloat16
        results.append((y, *torch.autograd.grad((y * factor).sum(), (conv.weight, layer.weight))))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1:], results[1][1:]):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * b.abs().max().item())


@pytest.mark.cpu
@pytest.mark.parametrize("training", [True, False])
def test_bytes_saved(training):
    """The input of the norm is not kept: between convolutions only the output is, which the second keeps."""
    x = torch.randn(4, 8, 12, 12)
    totals = []
    for inplace in (True, False):
        norm_layer = d2lfast.nn.BatchNormAct2d(8, act_layer="none", inplace=inplace)
        model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm_layer, nn.Conv2d(8, 8, 3, padding=1))
        model.train(training)
        totals.append(saved_bytes(model, lambda model=model: model(x).sum()))
    assert totals[1].total - totals[0].total == x.nbytes
    assert totals[1].peak - totals[0].peak >= x.nbytes // 2


def test_module():
    layer = d2lfast.nn.BatchNormAct2d(4, inplace=True).eval()
    assert "inplace=True" in repr(layer)
    assert "inplace" not in repr(d2lfast.nn.BatchNormAct2d(4))
    assert convert(revert(layer)).inplace
    x = torch.randn(2, 4, 5, 5)
    expected = revert(layer)(x)
    with torch.no_grad():
        assert layer(x) is x
    torch.testing.assert_close(x, expected)
