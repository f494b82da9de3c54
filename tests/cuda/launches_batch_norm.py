"""Launch parameters of batch norm on the emulated GPU, which test_emulation.py starts this with."""

import math

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu, kernels, ops

pytestmark = gpu


def images(layout, shift=0, dtype=torch.float32, size=8):
    """[4,16,size,size] that begins `shift` elements off a boundary."""
    flat = torch.randn(4 * 16 * size * size + shift).to(dtype)[shift:]
    planar = layout is torch.contiguous_format
    return flat.view(4, 16, size, size) if planar else flat.view(4, size, size, 16).permute(0, 3, 1, 2)


def statistics(channels=16):
    return torch.zeros(channels), torch.ones(channels)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_more_than_int32_elements(layout):
    """Sums of parts, their merging, normalisation; in place the same, without a copy."""
    input = torch.empty(33, 64, 1024, 1024, dtype=torch.float16, memory_format=layout)
    arguments = (None, None, *statistics(64), True, 0.1, 1e-5, "relu")
    for call, count in (
        (lambda: ops.batch_norm_act(input, *arguments), 3),
        (lambda: ops.batch_norm_act_(input, *arguments), 3),
        (lambda: ops._sync_batch_norm_moments(input), 2),
    ):
        with Launches("dry") as made:
            call()
        assert len(made) == count
        assert all("BatchNorm" in kernel for _, kernel in kernels(made))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_takes_the_launches_it_needs(layout, shift, inplace):
    """Training: three forward and three backward; evaluation: two, and one without parameters."""
    leaf = images(layout, shift).requires_grad_()
    activation = "none" if inplace else "relu"
    for training, forward, backward in ((True, 3, 3), (False, 2, 1)):
        input = leaf.view_as(leaf) * 1 if inplace else leaf
        arguments = (None, None, *statistics(), training, 0.1, 1e-5, activation)
        with Launches() as made:
            output = (
                ops.batch_norm_act_(input, *arguments) if inplace else ops.batch_norm_act(input, *arguments)
            )
        output = input if inplace else output
        assert len(made) == forward
        with Launches() as made:
            torch.autograd.grad(output.sum(), leaf)
        assert len(made) == backward


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_synchronised_launches(layout):
    input = images(layout)
    with Launches() as made:
        ops._sync_batch_norm_moments(input)
    assert len(made) == 2
    rows = torch.rand(3, 16)
    with Launches() as made:
        ops._sync_batch_norm_backward(
            input, input, None, rows, None, None, "relu", torch.rand(2, 16).double(), True
        )
    assert len(made) == 2


def test_nothing_is_launched_for_nothing():
    empty, rows = torch.empty(0, 3, 8, 8), torch.zeros(3, 3)
    with Launches() as made:
        ops.batch_norm_act_(empty, None, None, *statistics(3), False, 0.1, 1e-5, "relu")
        ops._batch_norm_inplace_backward(empty, empty, None, None, rows, True, "none", [True] * 4)
        moments = ops._sync_batch_norm_moments(empty)
        ops._sync_batch_norm_backward(
            empty, empty, None, rows, None, None, "relu", torch.zeros(2, 3).double(), True
        )
    assert not moments.any()
    assert made == []


@pytest.mark.parametrize("shift", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("layout", "size"), [(LAYOUTS[0], 8), (LAYOUTS[0], 7), (LAYOUTS[1], 8)])
def test_misaligned_tensors(layout, size, activation, dtype, shift):
    """One tensor at a time begins off a boundary, the others on one: both ways have the same mask."""
    for moved in range(3):
        input, residual, grad = (images(layout, shift if i == moved else 0, dtype, size) for i in range(3))
        leaves = [tensor.requires_grad_() for tensor in (input, residual)]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        arguments = (True, 0.1, 1e-5, activation)
        output = ops.batch_norm_act(input, None, None, *statistics(), *arguments, residual)
        normal = torch.nn.functional.batch_norm(exact[0], None, None, None, None, True)
        wanted = getattr(torch, activation)(normal + exact[1])
        ours = (output, *torch.autograd.grad(output, leaves, grad))
        theirs = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
        close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps}
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.double(), reference, **close)
        with torch.no_grad():
            ops.batch_norm_act_(input, None, None, *statistics(), *arguments, residual)
        torch.testing.assert_close(input.detach(), output.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_backward_from_the_output_of_misaligned_tensors(layout, dtype, shift):
    """In evaluation with ReLU and in training; the output or its gradient begins off a boundary."""
    weight, bias = torch.rand(16).to(dtype) + 0.5, torch.randn(16).to(dtype)
    # In float64 the reference has errors too.
    eps = torch.finfo(dtype).eps * (4 if dtype == torch.float64 else 1)
    for moved in range(2):
        for training, activation in ((True, "none"), (False, "relu")):
            input, grad = (images(layout, shift if i == moved else 0, dtype) for i in range(2))
            kept = [tensor.to(dtype) for tensor in statistics()]
            leaf = input.double().clone().requires_grad_()
            parameters = [tensor.double().clone().requires_grad_() for tensor in (weight, bias)]
            exact = torch.nn.functional.batch_norm(
                leaf, *(tensor.double() for tensor in kept), *parameters, training
            )
            exact = exact.relu() if activation == "relu" else exact
            rows = ops._batch_norm_inplace_saving(
                input, weight, bias, *kept, training, 0.1, 1e-5, activation, None
            )
            theirs = torch.autograd.grad(exact, (leaf, *parameters), grad.double())
            *ours, residual = ops._batch_norm_inplace_backward(
                grad, input, weight, bias, rows, training, activation, [True] * 4
            )
            passed = grad * (input > 0) if activation == "relu" else grad
            assert torch.equal(residual, passed)
            torch.testing.assert_close(input.double(), exact.detach(), rtol=4 * eps, atol=4 * eps)
            torch.testing.assert_close(ours[0].double(), theirs[0], rtol=8 * eps, atol=16 * eps)
            for mine, reference in zip(ours[1:], theirs[1:], strict=True):
                # 256 terms with the roundings of the output.
                torch.testing.assert_close(mine.double(), reference, rtol=8 * eps, atol=64 * eps)


PARTS = [(64, 8, 9, 9), (5, 3, 130, 7), (700, 24), (2, 16, 64, 64)]
# Planes of no whole pieces: several channels a block, several blocks a channel, both ways a few images.
PARTS += [(130, 40, 3, 3), (33, 24, 27, 27), (2, 16, 54, 54), (1, 8, 65, 65), (3, 8, 13, 13), (70, 6, 2, 2)]


@pytest.mark.parametrize("shape", PARTS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_moments_of_several_parts(layout, shape):
    """Of values far from zero but for the first, from which distances must not be taken."""
    input = 1000 + torch.randn(shape)
    input[(0, slice(None), *[0] * (len(shape) - 2))] = 0
    if len(shape) == 4:
        input = input.to(memory_format=layout)
    moments = ops._sync_batch_norm_moments(input)
    exact, axes = input.double(), [0, *range(2, input.dim())]
    torch.testing.assert_close(moments[0], exact.mean(axes), rtol=1e-7, atol=0)
    squares = exact.var(axes, correction=0) * (input.numel() // shape[1])
    torch.testing.assert_close(moments[1], squares, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equal_values_have_their_own_mean(layout):
    input = torch.full((3, 16, 7, 9), 0.1).to(memory_format=layout)
    moments = ops._sync_batch_norm_moments(input)
    assert torch.equal(moments[0], input[0, :, 0, 0].double())
    assert not moments[1].any()


# More pieces than one a thread, and no multiple of them: by 8 elements and singly, by planes and by columns.
MANY = {
    "planes": ((3, 17, 256, 256), torch.contiguous_format),
    "single planes": ((2, 3, 261, 261), torch.contiguous_format),
    "columns": ((2, 256, 97, 70), torch.channels_last),
    "single columns": ((2, 33, 97, 70), torch.channels_last),
    "images": ((323, 24, 7, 7), torch.contiguous_format),
    "images of 2 channels a piece": ((80, 12, 6, 6), torch.contiguous_format),
    "images of tiny planes": ((70, 12, 2, 2), torch.contiguous_format),
    "single images of tiny planes": ((70, 8, 2, 1), torch.contiguous_format),
    "images of large planes": ((3, 8, 54, 54), torch.contiguous_format),
    "one image": ((1, 8, 27, 27), torch.contiguous_format),
    "single images": ((37, 3, 7, 7), torch.contiguous_format),
    "one single image": ((1, 5, 27, 27), torch.contiguous_format),
    "pixels": ((70, 24, 1, 1), torch.contiguous_format),
    "single pixels": ((37, 11, 1, 1), torch.contiguous_format),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "layout"), MANY.values(), ids=MANY)
def test_threads_with_several_pieces(shape, layout, dtype):
    """With a residual, whose mask is kept; exact, since all numbers are small integers and halves."""
    leaf, residual, grad = (
        torch.randint(-4, 5, shape).to(dtype).to(memory_format=layout).requires_grad_() for _ in range(3)
    )
    weight, channels = torch.arange(shape[1]) % 2 + 1.0, shape[1]
    mean, variance = torch.arange(channels) % 3.0, torch.ones(channels)
    arguments = [tensor.to(dtype) for tensor in (weight, mean, mean, variance)]
    output = ops.batch_norm_act(leaf, *arguments, False, 0.1, 0.0, "relu", residual)
    column = [tensor.view(-1, 1, 1) for tensor in (weight.to(dtype), mean.to(dtype))]
    sums = (leaf - column[1]) * column[0] + column[1] + residual
    assert torch.equal(output, sums.relu())
    ours = torch.autograd.grad(output, (leaf, residual), grad)
    kept = torch.where(sums > 0, grad, 0)
    assert torch.equal(ours[1], kept)
    assert torch.equal(ours[0], kept * column[0])


def ragged(shape, dtype, shift=0):
    """Of channels far from each other, that begin `shift` elements off a boundary."""
    flat = torch.empty(math.prod(shape) + shift, dtype=dtype)[shift:]
    return flat.view(shape).copy_(torch.randn(shape) + 4 * torch.arange(shape[1]).view(-1, 1, 1) % 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
@pytest.mark.parametrize(
    "shape",
    [(40, 16, 7, 7), (33, 4, 14, 14), (21, 8, 3, 3), (9, 8, 27, 27), (1, 8, 7, 7), (6, 3, 5, 5)],
    ids=str,
)
def test_planes_of_no_whole_pieces(shape, activation, dtype):
    """Training, with a residual and without."""
    channels, axes = shape[1], (0, 2, 3)
    weight, bias = torch.rand(channels).to(dtype) + 0.5, torch.randn(channels).to(dtype)
    for with_residual in (False, True):
        input, residual, grad = ragged(shape, dtype), *(torch.randn(shape).to(dtype) for _ in range(2))
        leaves = [input, weight, bias, *([residual] if with_residual else [])]
        leaves = [tensor.detach().requires_grad_() for tensor in leaves]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        arguments = (None, None, True, 0.1, 1e-5, activation)
        output = ops.batch_norm_act(*leaves[:3], *arguments, *leaves[3:])
        wanted = torch.nn.functional.batch_norm(exact[0], None, None, exact[1], exact[2], True)
        wanted = wanted + exact[3] if with_residual else wanted
        wanted = wanted if activation == "none" else getattr(torch, activation)(wanted)
        eps, wide = torch.finfo(dtype).eps, torch.promote_types(dtype, torch.float32)
        # Near zero ReLU's decisions may differ.
        grad = torch.where(wanted.detach().abs() < 64 * eps, 0, grad) if activation == "relu" else grad
        ours = (output, *torch.autograd.grad(output, leaves, grad))
        theirs = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
        # Of sums of the accumulator's type, and of the rounded outputs that sigmoid keeps.
        terms = 16 * float(grad.double().abs().sum(axes).max()) * torch.finfo(wide).eps
        terms += 4 * (input.numel() // channels) ** 0.5 * eps if activation == "sigmoid" else 0
        for i, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
            allowed = {"rtol": 4 * eps, "atol": terms if i in (2, 3) else 64 * eps}
            torch.testing.assert_close(mine.double(), reference, **allowed)


@pytest.mark.parametrize(
    ("shape", "shift", "sums", "elements"),
    [
        # Blocks across and down, of threads across and down.
        ((128, 64, 14, 14), 0, ((49, 2), (32, 8)), ((49, 4), (32, 8))),
        ((128, 64, 7, 7), 0, ((13, 2), (32, 8)), ((13, 4), (32, 8))),
        ((2, 64, 54, 54), 0, ((92, 1), (256, 1)), ((92, 1), (256, 1))),
        ((2, 64, 54, 54), 1, ((64, 2), (256, 1)), ((729, 1), (256, 1))),
        ((9, 64, 2, 2), 0, ((1, 1), (32, 8)), ((1, 1), (32, 8))),
        ((9, 64, 2, 1), 0, ((64, 1), (256, 1)), ((1, 2), (128, 2))),
        ((3, 64, 12, 12), 0, ((64, 1), (256, 1)), ((14, 1), (256, 1))),
        ((64, 3, 7, 7), 0, ((3, 1), (256, 1)), ((5, 2), (32, 8))),
    ],
    ids=str,
)
def test_blocks_of_planes(shape, shift, sums, elements):
    """By 8 elements where an image is whole pieces, beginning at 16 bytes: by whole planes or by images."""
    input = ragged(shape, torch.bfloat16, shift)
    with Launches("dry") as made:
        ops.batch_norm_act(input, None, None, None, None, True, 0.1, 1e-5, "relu")
    found = [(grid[:2], block[:2]) for grid, block, *_ in made]
    assert (found[0], found[2]) == (sums, elements)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_running_mean_of_infinities(layout, size, value):
    """As torch's on the CPU, not NaN: the numbers from which distances are taken are finite."""
    input = torch.randn(16, 16, size, size).to(memory_format=layout)
    input[:8, 3] = value
    ours, theirs = statistics(), statistics()
    ops.batch_norm_act(input, None, None, *ours, True, 0.1, 1e-5, "none")
    torch.nn.functional.batch_norm(input, *theirs, training=True)
    assert theirs[0][3] == value
    torch.testing.assert_close(ours, theirs, equal_nan=True)
