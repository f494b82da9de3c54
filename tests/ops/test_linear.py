import pytest
import torch
from ops.op_tester import RecordOperators
from torch.nn import functional as native

from d2lfast import models
from d2lfast.nn import functional
from d2lfast.testing import assert_accurate
from d2lfast.testing.cases import DEVICE

TYPES = (torch.float32, torch.float64)
# Rows, in and out features.
SIZES = {
    "characters": ((32, 64), 32, 28),
    "rows_beyond_a_part": ((2051,), 28, 10),
    "one_feature": ((2048,), 1, 1),
    "two_panels": ((2100,), 70, 5),
    "most": ((2048,), 128, 128),
}


def tensors(rows, inputs, outputs, dtype, bias=True):
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(*rows, inputs), (outputs, inputs), *([(outputs,)] if bias else [])]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def is_ours(*arguments):
    with RecordOperators() as recorder:
        functional.linear(*arguments)
    return bool(recorder.calls)


def results(function, arguments, dtype=None):
    arguments = [x.detach().to(dtype or x.dtype).requires_grad_(x.requires_grad) for x in arguments]
    output = function(*arguments)
    generator = torch.Generator(DEVICE).manual_seed(1)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype))
    return [output.detach(), *(x.grad for x in arguments if x.grad is not None)]


def compare(arguments):
    exact = results(native.linear, arguments, torch.float64)
    rows = exact[0].numel() // exact[0].shape[-1]
    for ours, theirs, wanted in zip(
        results(functional.linear, arguments), results(native.linear, arguments), exact, strict=True
    ):
        assert_accurate(ours, theirs, wanted, rows)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients(size, dtype, bias):
    arguments = tensors(*size, dtype, bias)
    assert is_ours(*arguments) == (DEVICE == "cpu")
    compare(arguments)


def test_some_gradients():
    for wanted in range(1, 8):
        arguments = tensors((2100,), 9, 7, torch.float32)
        for i, x in enumerate(arguments):
            x.requires_grad_(bool(wanted >> i & 1))
        compare(arguments)


def test_strided_gradient():
    """Of an output whose axes are swapped, and of one that is expanded."""
    arguments = tensors((40, 60), 12, 20, torch.float32)
    for function in (
        lambda y: y.swapaxes(0, 1).square().flatten().cumsum(0)[-1],
        lambda y: y.sum(),
    ):
        gradients = [
            torch.autograd.grad(function(f(*arguments)), arguments)
            for f in (functional.linear, native.linear)
        ]
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_derivatives():
    """Of the operator itself, whose number of rows is up to the function."""
    operator = torch.ops.d2lfast._linear
    for bias in (True, False):
        arguments = (*tensors((2, 3), 4, 5, torch.float64, bias), *(() if bias else (None,)))
        assert torch.autograd.gradcheck(operator, arguments)
        assert torch.autograd.gradgradcheck(operator, arguments)


def test_contract_of_the_dispatcher():
    arguments = tensors((6,), 4, 5, torch.float32)
    torch.library.opcheck(torch.ops.d2lfast._linear.default, tuple(arguments))
    x, weight, _ = (x.detach() for x in arguments)
    for mask in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.d2lfast._linear_backward.default, (torch.ones(6, 5), x, weight, mask))


@pytest.mark.cpu
def test_refuses_16_bits():
    x, weight, bias = (x.detach().half() for x in tensors((6,), 4, 5, torch.float32))
    with pytest.raises(RuntimeError, match="float32 and float64"):
        torch.ops.d2lfast._linear(x, weight, bias)


def test_refused_by_the_operator():
    x, weight, bias = (x.detach() for x in tensors((6,), 4, 5, torch.float32))
    for arguments in (
        (x[:, :3], weight, bias),
        (x, weight.double(), bias),
        (x, weight, bias[:2]),
        (x, weight[0], None),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.d2lfast._linear(*arguments)
    with pytest.raises(RuntimeError):
        torch.ops.d2lfast._linear_backward(torch.ones(5, 5), x, weight, [True] * 3)


def test_left_to_torch():
    x, weight, bias = tensors((2100,), 8, 9, torch.float32)
    few, wide = tensors((2000,), 8, 9, torch.float32), tensors((2100,), 8, 129, torch.float32)
    strided = tensors((8,), 2100, 9, torch.float32)[0].t()
    for arguments in (few, wide, (strided, weight, bias), (x.bfloat16(), weight.bfloat16(), None)):
        assert not is_ours(*arguments)
        torch.testing.assert_close(functional.linear(*arguments), native.linear(*arguments), rtol=0, atol=0)
    with torch.no_grad():
        assert not is_ours(x, weight, bias)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert functional.linear(x, weight, bias).dtype is torch.bfloat16
    for arguments in ((x, weight.t(), bias), (x, weight, bias[:3]), (x, weight.double(), bias)):
        for function in (native.linear, functional.linear):
            with pytest.raises(RuntimeError):
                function(*arguments)


def test_compiled_and_transformed():
    x, weight, bias = tensors((2100,), 8, 9, torch.float32)
    expected = native.linear(x, weight, bias)
    compiled = torch.compile(functional.linear, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, weight, bias), expected)
    several = torch.stack((x, 2 * x)).detach()
    torch.testing.assert_close(
        torch.func.vmap(lambda x: functional.linear(x, weight, bias))(several),
        native.linear(several, weight, bias),
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), x.detach())
        output = functional.linear(dual, weight, bias)
        tangent = torch.autograd.forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, native.linear(x, weight))


@pytest.mark.cpu
def test_threads():
    arguments = tensors((5000,), 28, 33, torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(functional.linear, arguments))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_language_model():
    """The book's model runs on it, and its parameters keep their names."""
    ours, theirs = (
        models.RNNLM(models.recurrent.RNN(28, 32, layers=layers), 28, layers=layers)
        for layers in (models.language_model.d2lfast.nn, torch.nn)
    )
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(28, (128, 32))
    with RecordOperators() as recorder:
        outputs = ours(tokens)
    ours_too = any(operator is torch.ops.d2lfast._linear.default for operator, *_ in recorder.calls)
    assert ours_too == (DEVICE == "cpu")
    torch.testing.assert_close(outputs, theirs(tokens))
    assert isinstance(ours.linear, torch.nn.Linear)
