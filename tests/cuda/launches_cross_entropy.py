"""Launches of the cross-entropy on the emulated GPU, which test_emulation.py starts this with."""

import pytest
import torch
from cuda.recorded import Launches, gpu, kernels, ops

pytestmark = gpu

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NONE, MEAN, SUM = range(3)
IGNORED = -100


def rows(count, classes, dtype=torch.float32, shift=0, gap=0):
    """Logits [N,C] that begin `shift` elements off a 16-byte boundary, in rows `gap` elements apart."""
    flat = 3 * torch.randn(shift + count * (classes + gap))
    return flat.to(dtype)[shift:].view(count, -1)[:, :classes]


def targets(count, classes):
    target = torch.randint(classes, (count,))
    target[::3] = IGNORED
    return target


def compare(logits, target, reduction):
    logits = logits.detach().requires_grad_()
    loss, statistics = ops._cross_entropy(logits, target, reduction, IGNORED)
    exact = logits.detach().double().requires_grad_()
    name = ("none", "mean", "sum")[reduction]
    wanted = torch.nn.functional.cross_entropy(exact, target, reduction=name)
    gradient = torch.linspace(0.5, 1.5, loss.numel()).view(loss.shape).to(loss.dtype)
    ours, theirs = (
        torch.autograd.grad(x, leaf, gradient.to(x)) for x, leaf in ((loss, logits), (wanted, exact))
    )
    close = {"rtol": 4 * torch.finfo(loss.dtype).eps, "atol": 1e-6 if loss.dtype is torch.float32 else None}
    close["atol"] = close["atol"] or 4 * torch.finfo(loss.dtype).eps
    torch.testing.assert_close(loss.double(), wanted, **close)
    torch.testing.assert_close(ours[0].double(), theirs[0], **close)
    counted = (target != IGNORED).sum() if reduction != NONE else 0
    assert statistics[-1] == counted


@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_takes_the_launches_it_needs(reduction):
    logits, target = rows(40, 28).requires_grad_(), targets(40, 28)
    with Launches() as made:
        loss, _ = ops._cross_entropy(logits, target, reduction, IGNORED)
    assert len(made) == (1 if reduction == NONE else 2)
    assert all("CrossEntropyLoss" in kernel for _, kernel in kernels(made))
    with Launches() as made:
        torch.autograd.grad(loss, logits, torch.ones_like(loss))
    assert ["CrossEntropyGradient" in kernel for _, kernel in kernels(made)] == [True]


@pytest.mark.parametrize("gap", [0, 1, 8])
@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("classes", [1, 10, 28, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_rows(dtype, classes, shift, gap):
    """Vectors where they lie within a row, elements at its ends."""
    for reduction in (NONE, MEAN):
        compare(rows(37, classes, dtype, shift, gap), targets(37, classes), reduction)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("classes", [2048, 10007, 16385])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_vocabularies(dtype, classes, shift):
    """A block a row, of 1024 threads where there is enough to do (of 512 in float64)."""
    logits, target = rows(5, classes, dtype, shift), targets(5, classes)
    with Launches("dry") as made:
        ops._cross_entropy(logits, target, NONE, IGNORED)
    most = 512 if dtype is torch.float64 else 1024
    assert [(grid, block[0]) for grid, block, *_ in made] == [((5, 1, 1), most if classes > 16384 else 256)]
    compare(logits, target, SUM)


@pytest.mark.parametrize(("classes", "rows_of_block"), [(1, 256), (8, 256), (9, 128), (28, 64), (1000, 8)])
def test_parts_of_warps(classes, rows_of_block):
    with Launches("dry") as made:
        ops._cross_entropy(torch.zeros(1024, classes), torch.zeros(1024, dtype=torch.int64), MEAN, IGNORED)
    assert [grid[0] for grid, *_ in made] == [1024 // rows_of_block, 1]


def test_more_rows_than_a_grid_has():
    """Blocks take rows in turns; their sums stay few."""
    count = 3 * 2048 * 256 + 77
    logits = torch.zeros(count, 1, dtype=torch.float16).requires_grad_()
    with Launches("dry") as made:
        loss, _ = ops._cross_entropy(logits, torch.zeros(count, dtype=torch.int64), MEAN, IGNORED)
    assert [grid for grid, *_ in made] == [(2048, 1, 1), (1, 1, 1)]
    with Launches("dry") as made:
        torch.autograd.grad(loss, logits)
    assert made[0][0] == (6145, 1, 1)
    rows_first = torch.randn(3, 6000, 2, dtype=torch.float64).movedim(-1, 1)
    target = torch.randint(2, (3, 6000))
    found = [ops._cross_entropy(x, t, MEAN, IGNORED)[0] for x, t in ((rows_first, target),)]
    torch.testing.assert_close(found[0], torch.nn.functional.cross_entropy(rows_first, target))


@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_no_rows(reduction):
    """Only the sum of nothing is launched: zero, or NaN for the mean."""
    logits, target = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    with Launches() as made:
        loss, statistics = ops._cross_entropy(logits, target, reduction, IGNORED)
    assert len(made) == (0 if reduction == NONE else 1)
    assert statistics.tolist() == [0]
    torch.testing.assert_close(
        loss,
        torch.nn.functional.cross_entropy(logits, target, reduction=("none", "mean", "sum")[reduction]),
        equal_nan=True,
    )
    with Launches() as made:
        assert torch.autograd.grad(loss.sum(), logits)[0].shape == (0, 5)
    assert made == []


@pytest.mark.parametrize("classes", [10, 3000])
def test_ignored_rows_of_nan(classes):
    """What a row that does not count holds changes nothing."""
    logits, target = rows(6, classes), targets(6, classes)
    logits[::3] = float("nan")
    logits.requires_grad_()
    loss, _ = ops._cross_entropy(logits, target, MEAN, IGNORED)
    keep = target != IGNORED
    wanted = torch.nn.functional.cross_entropy(logits.detach()[keep].double(), target[keep])
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-6)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert not gradient[::3].any()
    assert gradient[keep].isfinite().all()


def test_results_do_not_depend_on_neighbours():
    """A row's statistics are the same alone and among others, if it begins as far from a boundary of 16
    bytes, and of a run and its repetition."""
    logits, target = rows(300, 50), torch.randint(50, (300,))
    loss, statistics = ops._cross_entropy(logits, target, MEAN, IGNORED)
    again = ops._cross_entropy(logits, target, MEAN, IGNORED)
    assert torch.equal(loss, again[0])
    assert torch.equal(statistics, again[1])
    _, alone = ops._cross_entropy(logits[212:213].clone(), target[212:213], MEAN, IGNORED)
    assert torch.equal(statistics[424:426], alone[:2])
