import pytest
import torch
from ops.op_tester import RecordOperators
from torch.nn import functional as native

import d2lfast.nn
from d2lfast.nn import functional
from d2lfast.testing import DTYPES, assert_accurate
from d2lfast.testing.cases import DEVICE

REDUCTIONS = ("mean", "sum", "none")
# Logits [N,C,...] whose classes are dense in memory, by what is done to [N,...,C].
SHAPES = {
    "one_row": (1, 10),
    "rows": (33, 10),
    "one_class": (5, 1),
    "vocabulary": (7, 1000),
    "lanes": (9, 16),
    "beyond_lanes": (9, 17),
    "sequences": (6, 5, 28),
    "pictures": (2, 3, 4, 21),
    "many_rows": (3000, 13),
}


def logits_of(shape, dtype=torch.float32, seed=0):
    """[N,C,...] from [N,...,C]."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).movedim(-1, 1)


def target_of(logits, ignored=True, seed=1):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    target = torch.randint(logits.shape[1], (logits.shape[0], *logits.shape[2:]), generator=generator)
    if ignored:
        target.view(-1)[:: max(2, target.numel() // 3)] = -100
    return target


def calls(*arguments, **options):
    """Whether d2lfast's operator computes it, and the result."""
    with RecordOperators() as recorder:
        result = functional.cross_entropy(*arguments, **options)
    return bool(recorder.calls), result


def run(function, logits, target, **options):
    logits = logits.detach().requires_grad_()
    loss = function(logits, target, **options)
    weight = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).view(loss.shape).to(loss.dtype)
    loss.backward(weight)
    return loss.detach(), logits.grad


def compare(logits, target, additions=1, **options):
    ours, native_result = (
        run(function.cross_entropy, logits, target, **options) for function in (functional, native)
    )
    exact = run(native.cross_entropy, logits.double(), target, **options)
    for name, a, b, c in zip(("loss", "gradient"), ours, native_result, exact):
        assert_accurate(a, b, c, additions, name)
    return ours


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradient(shape, reduction, dtype):
    logits = logits_of(shape, dtype)
    target = target_of(logits)
    assert calls(logits, target, reduction=reduction)[0]
    compare(logits, target, max(logits.shape[1], target.numel()), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_strides(reduction):
    """Steps first, shifted, cut out of something larger, repeated, with a strided target."""
    base = torch.randn(7, 6, 20)
    text = torch.randint(12, (6, 8))
    for logits, target in (
        (base[..., :12].swapaxes(0, 1), text[:, :-1]),
        (base[1:, ::2, 3:15].swapaxes(0, 1), text[::2, 1:-1]),
        (base[:, :1, :12].expand(7, 6, 12), text[:, 1:].t()),
        (base[0, :, :12].t().contiguous().t(), text[:, 0]),
    ):
        logits = logits.movedim(-1, 1)
        _, gradient = compare(logits, target, 100, reduction=reduction)
        assert gradient.shape == logits.shape
    swapped = base[..., :12].contiguous().swapaxes(0, 1).movedim(-1, 1)
    assert run(functional.cross_entropy, swapped, text[:, :-1])[1].stride() == swapped.stride()


def test_ignored_rows():
    logits, target = logits_of((6, 5)), torch.tensor([0, 3, 4, 3, 1, 3])
    loss, gradient = compare(logits, target, 6, ignore_index=3)
    assert (gradient[[1, 3, 5]] == 0).all()
    assert loss > 0
    everywhere = torch.full((6,), -100)
    loss, gradient = run(functional.cross_entropy, logits, everywhere)
    assert loss.isnan()
    assert (gradient == 0).all()
    assert functional.cross_entropy(logits, everywhere, reduction="sum") == 0
    # An index within the classes and one that is no class at all.
    compare(logits, torch.tensor([0, 77, 4, 77, 1, 2]), 6, ignore_index=77)


@pytest.mark.isa
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 3, 18])
def test_nonfinite_logits(value, place):
    logits = logits_of((4, 19)).clone()
    logits[1, place] = value
    logits[2] = value
    compare(logits, torch.tensor([0, 3, 18, 5]), 20, reduction="none")


@pytest.mark.isa
def test_large_logits_lose_no_digits():
    logits = logits_of((50, 30)) + 1e4 * torch.arange(50).view(-1, 1)
    compare(logits, target_of(logits), 50)
    logits = 500 * logits_of((50, 30))
    compare(logits, target_of(logits), 50)


@pytest.mark.cpu
def test_out_of_range():
    logits = logits_of((5, 4))
    for wrong in (4, -1, 1 << 40):
        target = torch.tensor([0, 1, wrong, 2, 3])
        for function in (native, functional):
            with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
                function.cross_entropy(logits, target)


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE != "cpu", reason="ends the context of a real GPU")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("classes", [4, 3000])
def test_assertion_on_the_device(classes, reduction):
    logits = logits_of((5, classes))
    for wrong in (classes, -1, 1 << 40):
        target = torch.tensor([0, 1, wrong, 2, 3])
        with pytest.raises(RuntimeError, match="device-side assertion: target >= 0"):
            functional.cross_entropy(logits, target, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(reduction):
    logits, target = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    ours, theirs = (run(f.cross_entropy, logits, target, reduction=reduction) for f in (functional, native))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_left_to_torch():
    """With torch's result, or torch's error."""
    logits, target = logits_of((6, 5)), torch.tensor([0, 3, 4, 3, 1, 3])
    for arguments, options in (
        ((logits, target), {"weight": torch.rand(5)}),
        ((logits, target), {"label_smoothing": 0.1}),
        ((logits, logits.softmax(1)), {}),
        ((logits[0], target[0]), {}),
        ((torch.randn(2, 5, 3), target.view(2, 3)), {}),
        ((logits, target), {"size_average": False}),
    ):
        ours, result = calls(*arguments, **options)
        assert not ours
        torch.testing.assert_close(result, native.cross_entropy(*arguments, **options), rtol=0, atol=0)
    for arguments, options in (
        ((logits, target[:5]), {}),
        ((logits, target.int()), {}),
        ((logits.long(), target), {}),
        ((logits, target), {"reduction": "median"}),
    ):
        for function in (native, functional):
            with pytest.raises((ValueError, RuntimeError)):
                function.cross_entropy(*arguments, **options)


def test_derivatives():
    target = torch.tensor([[0, 3, -100], [1, 2, 0]])
    logits = logits_of((2, 3, 4), torch.float64).requires_grad_()
    for reduction in REDUCTIONS:

        def loss(x, reduction=reduction):
            return functional.cross_entropy(x, target, reduction=reduction)

        assert calls(logits, target, reduction=reduction)[0]
        assert torch.autograd.gradcheck(loss, (logits,))
        assert torch.autograd.gradgradcheck(loss, (logits,))


@pytest.mark.parametrize("reduction", range(3))
def test_contract_of_the_dispatcher(reduction):
    logits = logits_of((2, 3, 4)).requires_grad_()
    target = target_of(logits)
    operator = torch.ops.d2lfast._cross_entropy.default
    torch.library.opcheck(operator, (logits, target, reduction, -100))
    loss, statistics = operator(logits.detach(), target, reduction, -100)
    torch.library.opcheck(
        torch.ops.d2lfast._cross_entropy_backward.default,
        (torch.ones_like(loss), logits.detach(), target, statistics, reduction, -100),
    )


def test_refused_by_the_operator():
    logits, target = logits_of((2, 3, 4)), torch.zeros(2, 3, dtype=torch.int64)
    operator = torch.ops.d2lfast._cross_entropy
    for arguments in (
        (logits, target[:1], 1, -100),
        (logits, target.int(), 1, -100),
        (logits[0], target, 1, -100),
        (logits, target, 3, -100),
        (logits.long(), target, 1, -100),
        (torch.zeros(2, 0, 3), target, 1, -100),
    ):
        with pytest.raises(RuntimeError):
            operator(*arguments)


def test_threads():
    logits = logits_of((40, 100, 28))
    target = target_of(logits)
    for reduction in REDUCTIONS:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(functional.cross_entropy, logits, target, reduction=reduction))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_autocast():
    for dtype in (torch.bfloat16, torch.float32):
        logits = logits_of((6, 5), dtype)
        target = target_of(logits)
        with torch.autocast(DEVICE, torch.bfloat16):
            ours, loss = calls(logits, target)
            expected = native.cross_entropy(logits, target)
        assert ours
        assert loss.dtype is expected.dtype is torch.float32
        torch.testing.assert_close(loss, expected)


def test_compiled_and_transformed():
    logits, target = logits_of((6, 5)), torch.tensor([0, 3, 4, 3, 1, 3])
    expected = native.cross_entropy(logits, target)
    compiled = torch.compile(functional.cross_entropy, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, target), expected)
    gradients = torch.func.vmap(torch.func.grad(functional.cross_entropy))(logits[:, None], target[:, None])
    wanted = torch.func.vmap(torch.func.grad(native.cross_entropy))(logits[:, None], target[:, None])
    torch.testing.assert_close(gradients, wanted)
    _, tangent = torch.func.jvp(lambda x: functional.cross_entropy(x, target), (logits,), (logits,))
    _, wanted = torch.func.jvp(lambda x: native.cross_entropy(x, target), (logits,), (logits,))
    torch.testing.assert_close(tangent, wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits, logits)
        loss = functional.cross_entropy(dual, target)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(loss).tangent, wanted)


def test_layer():
    logits, target = logits_of((6, 5)), torch.tensor([0, 3, 4, 3, 1, 3])
    for options in (
        {},
        {"reduction": "none", "ignore_index": 3},
        {"label_smoothing": 0.2, "weight": torch.rand(5)},
    ):
        ours, theirs = (n.CrossEntropyLoss(**options) for n in (d2lfast.nn, torch.nn))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert repr(ours) == repr(theirs)
        torch.testing.assert_close(ours(logits, target), theirs(logits, target))


def test_saved_for_backward():
    """The logits themselves and two numbers a row, where torch keeps the logarithms of all shares."""
    logits = logits_of((100, 64)).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        functional.cross_entropy(logits, target_of(logits))
    kept = sum(x.nbytes for x in saved if x.data_ptr() != logits.data_ptr() and x.is_floating_point())
    assert kept == 4 * (2 * 100 + 1)
