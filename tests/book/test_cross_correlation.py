"""Numbers that the book prints (chapter 7)."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import d2lfast
from d2lfast import nn
from d2lfast.cross_correlation import (
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
    pool2d,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "learn_edge_kernel.py"
X2 = torch.stack([torch.arange(9.0).view(3, 3), torch.arange(1.0, 10).view(3, 3)])
K2 = torch.tensor([[[0.0, 1], [2, 3]], [[1, 2], [3, 4]]])


def equal(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-5)


def test_they_are_exported():
    names = ["corr2d", "corr2d_multi_in", "corr2d_multi_in_out", "corr2d_multi_in_out_1x1", "pool2d"]
    assert all(getattr(d2lfast, name) is globals()[name] and name in d2lfast.__all__ for name in names)


def test_corr2d():
    equal(corr2d(torch.arange(9.0).view(3, 3), torch.tensor([[0.0, 1], [2, 3]])), [[19, 25], [37, 43]])


def test_corr2d_takes_integers_as_the_book_does():
    result = corr2d(torch.arange(9).view(3, 3), torch.tensor([[0, 1], [2, 3]]))
    assert result.dtype == torch.float32
    equal(result, [[19, 25], [37, 43]])
    mixed = corr2d(torch.arange(9).view(3, 3), torch.tensor([[0.0, 1], [2, 3]], dtype=torch.float64))
    assert mixed.dtype == torch.float64


def test_edges():
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    kernel = torch.tensor([[1.0, -1.0]])
    equal(corr2d(image, kernel), [[0.0, 1, 0, 0, 0, -1, 0]] * 6)
    equal(corr2d(image.t(), kernel), [[0.0] * 5] * 8)


def test_corr2d_against_the_definition_with_gradients():
    torch.manual_seed(0)
    X = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    K = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    rows = [[(X[i : i + 3, j : j + 2] * K).sum() for j in range(4)] for i in range(5)]
    expected = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(corr2d(X, K), expected)
    seed = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(corr2d(X, K), (X, K), seed), torch.autograd.grad(expected, (X, K), seed)
    )


def test_convolution_is_correlation_with_the_kernel_flipped_both_ways():
    X, K = torch.randn(5, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            expected[i, j] = sum(X[i + 1 - a, j + 2 - b] * K[a, b] for a in range(2) for b in range(3))
    torch.testing.assert_close(corr2d(X, K.flip(0, 1)), expected)


def test_several_input_channels():
    equal(corr2d_multi_in(X2, K2), [[56, 72], [104, 120]])


def test_several_output_channels():
    result = corr2d_multi_in_out(X2, torch.stack([K2, K2 + 1, K2 + 2]))
    equal(result, [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]])


def test_1x1_is_a_matrix_product():
    torch.manual_seed(0)
    X, K = torch.randn(3, 3, 3), torch.randn(2, 3, 1, 1)
    product = (K.view(2, 3) @ X.view(3, 9)).view(2, 3, 3)
    torch.testing.assert_close(corr2d_multi_in_out_1x1(X, K), product, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(corr2d_multi_in_out_1x1(X, K), corr2d_multi_in_out(X, K), rtol=0, atol=1e-6)


def test_pool2d():
    X = torch.arange(9.0).view(3, 3)
    equal(pool2d(X, (2, 2)), [[4, 5], [7, 8]])
    equal(pool2d(X, (2, 2), "avg"), [[2, 3], [5, 6]])
    equal(pool2d(torch.arange(9).view(3, 3), (2, 2), "avg"), [[2, 3], [5, 6]])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"kernel_size": 3}, [[10]]),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, [[5, 7], [13, 15]]),
        ({"kernel_size": (2, 3), "stride": (2, 3), "padding": (0, 1)}, [[5, 7], [13, 15]]),
    ],
)
def test_max_pool_layer(arguments, expected):
    equal(nn.MaxPool2d(**arguments)(torch.arange(16.0).view(1, 1, 4, 4))[0, 0], expected)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"kernel_size": 3, "padding": 1}, (8, 8)),
        ({"kernel_size": (5, 3), "padding": (2, 1)}, (8, 8)),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (4, 4)),
        ({"kernel_size": (3, 5), "padding": (0, 1), "stride": (3, 4)}, (2, 2)),
    ],
)
def test_shapes_of_convolutions(arguments, shape):
    assert nn.Conv2d(1, 1, **arguments)(torch.rand(1, 1, 8, 8)).shape == (1, 1, *shape)
    assert nn.LazyConv2d(1, **arguments)(torch.rand(1, 1, 8, 8)).shape == (1, 1, *shape)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: corr2d(torch.ones(1, 3, 3), torch.ones(2, 2)), "corr2d: expected X with 2"),
        (lambda: corr2d(torch.ones(3, 3), torch.ones(2)), "corr2d: expected a kernel with 2"),
        (lambda: corr2d_multi_in(torch.ones(3, 3), torch.ones(2, 2)), "corr2d_multi_in: expected X with 3"),
        (lambda: corr2d_multi_in_out(torch.ones(1, 3, 3), torch.ones(1, 2, 2)), "a kernel with 4"),
        (lambda: corr2d_multi_in_out_1x1(torch.ones(1, 3, 3), torch.ones(1, 1, 2, 1)), "c_out, c_in, 1, 1"),
        (lambda: pool2d(torch.ones(1, 3, 3), (2, 2)), "pool2d: expected X with 2"),
        (lambda: pool2d(torch.ones(3, 3), (2, 2), "median"), "'max' or 'avg', got 'median'"),
    ],
)
def test_wrong_arguments_are_named(call, error):
    with pytest.raises(ValueError, match=error):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: corr2d(torch.ones(2, 2), torch.ones(3, 3)),
        lambda: corr2d_multi_in(torch.ones(2, 3, 3), torch.ones(3, 2, 2)),
        lambda: pool2d(torch.ones(2, 2), (3, 3)),
    ],
)
def test_sizes_that_do_not_fit(call):
    with pytest.raises(RuntimeError):
        call()


def test_the_edge_kernel_is_learned_from_any_start():
    learn = runpy.run_path(str(EXAMPLE))["learn"]
    for seed in range(20):
        losses, kernel = learn(seed=seed)
        assert len(losses) == 10
        assert losses[-1] < 0.5
        # By 200 random starts of the book's own code: within .084 of [1, -1].
        assert (kernel - torch.tensor([[1.0, -1.0]])).abs().max() < 0.1


def test_the_example_runs():
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 10
    assert "learned kernel" in done.stdout
