"""Tensors of more than 2^31 elements on the emulated GPU, which test_emulation.py starts this with.

Memory is what is touched: tensors are zero but for their ends, and of each launch only the last block runs,
whose threads go through the whole tensor where the grid is smaller than it. Sizes are powers of two, so that
the last block has the last elements.
"""

import os

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu, ops

pytestmark = gpu
HALF = torch.float16
SHAPE = (2**14, 64, 64, 64)  # 2^32 elements
BLOCK = 256


def ended(shape, layout, images=1, dtype=HALF):
    """A tensor of zeros, and normal numbers in the last images."""
    tensor = torch.empty(shape, dtype=dtype, memory_format=layout)
    tensor[-images:] = torch.randn(images, *shape[1:])
    return tensor


def end_of(tensor, layout, count=BLOCK):
    """The last elements in the order of memory."""
    order = (0, 1, 2, 3) if layout is torch.contiguous_format else (0, 2, 3, 1)
    return tensor.detach().permute(order).flatten()[-count:].clone()


def compare(tensor, wanted, layout, count=BLOCK, **tolerances):
    """The ends of a tensor and of what its last images should be."""
    assert tensor.is_contiguous(memory_format=layout)
    ours, exact = end_of(tensor, layout, count), end_of(wanted, layout, count)
    assert ours.count_nonzero() > count // 8
    torch.testing.assert_close(ours, exact.to(ours.dtype), **tolerances)


def gradient(output, inputs, grad):
    with Launches("far") as made:
        grads = torch.autograd.grad(output, inputs, grad)
    assert made
    return grads


POOLS = {
    "max_pool2d": (([2, 2], [2, 2], [0, 0], [1, 1], False), lambda x: torch.nn.functional.max_pool2d(x, 2)),
    "avg_pool2d": (
        ([2, 2], [2, 2], [0, 0], False, True, None),
        lambda x: torch.nn.functional.avg_pool2d(x, 2),
    ),
    "adaptive_avg_pool2d": (([32, 32],), lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 32)),
    "adaptive_max_pool2d": (([32, 32],), lambda x: torch.nn.functional.adaptive_max_pool2d(x, 32)),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("op", POOLS)
def test_pooling(op, layout):
    arguments, reference = POOLS[op]
    input = ended(SHAPE, layout).requires_grad_()
    leaf = input.detach()[-1:].clone(memory_format=torch.preserve_format).requires_grad_()
    with Launches("far") as made:
        output = getattr(ops, op)(input, *arguments)
    output = output[0] if isinstance(output, tuple) else output
    by_planes = op == "max_pool2d" and layout == torch.contiguous_format  # two a block
    assert [grid for grid, *_ in made] == [(2**19 if by_planes else 2**16, 1, 1)]
    wanted = reference(leaf)
    compare(output, wanted, layout)
    grad = ended(output.shape, layout)
    theirs = torch.autograd.grad(wanted, leaf, grad[-1:])[0]
    compare(gradient(output, input, grad)[0], theirs, layout)


def test_planes_in_shared_memory():
    layout = torch.contiguous_format
    input = ended(SHAPE, layout).requires_grad_()
    leaf = input.detach()[-1:].float().requires_grad_()
    with Launches("far") as made:
        output = ops.max_pool2d(input, [3, 3], [1, 1], [1, 1], [1, 1], False)
    assert made[0][0] == (2**19, 1, 1)
    wanted = torch.nn.functional.max_pool2d(leaf, 3, 1, 1)
    compare(output, wanted, layout, count=2 * 64 * 64)
    grad = ended(output.shape, layout)
    theirs = torch.autograd.grad(wanted, leaf, grad[-1:].float())[0]
    compare(gradient(output, input, grad)[0], theirs, layout, count=2 * 64 * 64)


def test_means_of_planes():
    input = ended(SHAPE, torch.contiguous_format)
    with Launches("far"):
        output = ops.adaptive_avg_pool2d(input, [1, 1])
    wanted = input[-1, -8:].float().mean((1, 2)).half()
    torch.testing.assert_close(output[-1, -8:].flatten(), wanted)


CHANNELS = 2**20  # of 4096 elements, whose statistics one block computes


PLANES = [*((layout, 8) for layout in LAYOUTS), (torch.contiguous_format, 2)]
of_planes = pytest.mark.parametrize(("layout", "size"), PLANES, ids=["planes", "columns", "images"])


def last_channels(layout, size):
    """The last block's: of planes it sums one, of columns and images it finishes a warp's each."""
    return slice(-1 if layout is torch.contiguous_format and size == 8 else -8, None)


def of_last_channels(layout, size):
    tensor = torch.empty((4096 // size**2, CHANNELS, size, size), dtype=HALF, memory_format=layout)
    part = tensor[:, last_channels(layout, size)]
    part[:] = torch.randn(part.shape)
    return tensor


def compare_last_channels(ours, theirs, layout, size):
    """Of the last image: the last plane, or 8 of the last pixels or planes."""
    ours, theirs = ours.detach()[-1:, last_channels(layout, size)], theirs.detach()[-1:]
    ours = ours.clone(memory_format=torch.preserve_format).contiguous(memory_format=layout)
    compare(ours, theirs, layout, 64 if size == 8 else 32, atol=2e-3, rtol=2e-3)


def of_channels(value):
    return torch.full((CHANNELS,), value)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
@of_planes
def test_batch_norm(layout, size, training, residual, inplace):
    own = last_channels(layout, size)
    input = of_last_channels(layout, size)
    added = of_last_channels(layout, size) if residual else None
    inputs = [tensor.requires_grad_() for tensor in (input, added) if tensor is not None]
    statistics = [of_channels(value) for value in (0.25, 2.0)]
    arguments = (training, 0.1, 1e-5)
    leaves = [tensor.detach()[:, own].float().requires_grad_() for tensor in inputs]
    kept = [value[own].clone() for value in statistics]
    with Launches("far") as made:
        if inplace:
            output = input.detach()
            ops.batch_norm_act_(
                output, None, None, *statistics, *arguments, "relu", added.detach() if residual else None
            )
        else:
            output = ops.batch_norm_act(input, None, None, *statistics, *arguments, "relu", added)
    assert len(made) == (3 if training else 2)
    wanted = torch.nn.functional.batch_norm(leaves[0], *kept, None, None, *arguments)
    wanted = (wanted + leaves[1] if residual else wanted).relu()
    for ours, theirs in zip(statistics, kept):
        torch.testing.assert_close(ours[own], theirs)
    compare_last_channels(output, wanted, layout, size)
    if inplace or (training and residual):
        return  # Backward's sums read the bits of elements whose blocks did not run.
    grad = of_last_channels(layout, size)
    theirs = torch.autograd.grad(wanted, leaves, grad[:, own].float())
    for mine, exact in zip(gradient(output, inputs, grad), theirs, strict=True):
        compare_last_channels(mine, exact, layout, size)


@of_planes
def test_batch_norm_backward_from_the_output(layout, size):
    own = last_channels(layout, size)
    output, grad = of_last_channels(layout, size), of_last_channels(layout, size)
    weight, bias, invstd = (of_channels(value) for value in (2.0, 0.5, 0.25))
    rows = torch.stack([bias, invstd, bias])
    with Launches("far") as made:
        found = ops._batch_norm_inplace_backward(
            grad, output, weight, bias, rows, True, "none", [True, True, True, False]
        )
    assert len(made) == 3
    g, x_hat = grad[:, own].float(), (output[:, own].float() - 0.5) / 2
    sums = [(g * x_hat).sum((0, 2, 3)), g.sum((0, 2, 3))]
    for ours, theirs in zip(found[1:3], sums, strict=True):
        torch.testing.assert_close(ours[own], theirs, atol=2e-3, rtol=1e-4)
    mean_product, mean = (total.view(1, -1, 1, 1) / 4096 for total in sums)
    compare_last_channels(found[0], 0.5 * (g - mean - x_hat * mean_product), layout, size)


@of_planes
def test_synchronised_batch_norm(layout, size):
    own = last_channels(layout, size)
    input, grad = of_last_channels(layout, size), of_last_channels(layout, size)
    with Launches("far") as made:
        moments = ops._sync_batch_norm_moments(input)
    assert len(made) == 2
    x, g = (tensor[:, own].double() for tensor in (input, grad))
    torch.testing.assert_close(moments[0, own], x.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moments[1, own], 4096 * x.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    mean, invstd, means = 0.25, 0.5, [0.125, -0.25]
    columns = torch.stack([of_channels(value) for value in means]).double()
    rows = torch.stack([of_channels(value) for value in (mean, invstd, 0.0)])
    with Launches("far") as made:
        found, _ = ops._sync_batch_norm_backward(grad, input, None, rows, None, None, "none", columns, False)
    assert len(made) == 2
    wanted = invstd * (g - means[0] - (x - mean) * invstd * means[1])
    compare_last_channels(found, wanted, layout, size)


CLOSE = {"atol": 2e-2, "rtol": 2e-3}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("groups", "dtype", "tf32"),
    [(64, HALF, False), (32, HALF, False), (32, torch.float32, False), (32, torch.float32, True)],
)
def test_direct_convolution(groups, dtype, tf32, layout, monkeypatch):
    """Depthwise tiles, products on tensor cores, and tiles. A block of the products, or of channels_last,
    has some columns of 8 channels; there are so many multiprocessors that none has two tiles."""
    products = groups == 32 and (dtype == HALF or tf32)
    by_groups = products or (groups == 32 and layout is torch.channels_last)
    monkeypatch.setenv("D2LFAST_EMULATED_PROCESSORS", str(2**20))

    def check(*tensors):
        if by_groups:
            tensors = (tensor[-1:, -8:, -1:, -8:].contiguous(memory_format=layout) for tensor in tensors)
        compare(*tensors, layout, **CLOSE)

    input = ended(SHAPE, layout, dtype=dtype).requires_grad_()
    weight = torch.randn(64, 64 // groups, 3, 3).to(dtype).to(memory_format=layout)
    arguments = (None, [1, 1], [1, 1], [1, 1])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32), Launches("far") as made:
        output = ops.conv2d(input, weight, *arguments, groups, "none", "direct")
    assert ["Conv2dDirectParams" in kernel for *_, kernel in made] == [True]
    assert ("ProductTiles" in made[0][3]) == products
    leaf = input.detach()[-1:].float().requires_grad_()
    wanted = torch.nn.functional.conv2d(leaf, weight.float(), *arguments, groups)
    check(output, wanted)
    grad = ended(output.shape, layout, dtype=dtype)
    theirs = torch.autograd.grad(wanted, leaf, grad[-1:].float())[0]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        ours = gradient(output, input, grad)[0]
    check(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("own", [1, 4])
def test_direct_weight_gradient(own, layout):
    """Groups of `own` channels of 256 elements, the last of whose gradients one block computes."""
    channels = 2**24
    input, grad = (torch.empty((4, channels, 8, 8), dtype=HALF, memory_format=layout) for _ in range(2))
    for tensor in (input, grad):
        tensor[:, -32:] = torch.randn(4, 32, 8, 8)
    weight = torch.zeros(channels, own, 1, 1, dtype=HALF, requires_grad=True)
    with Launches("dry"):
        arguments = (None, [1, 1], [0, 0], [1, 1], channels // own)
        output = ops.conv2d(input, weight, *arguments, "none", "direct")
    of_block = 1 if layout is torch.contiguous_format and own == 1 else 16
    last = gradient(output, weight, grad)[0][-of_block:]
    groups = (
        tensor[:, -of_block:].float().unflatten(1, (-1, own)).permute(1, 2, 0, 3, 4).flatten(2)
        for tensor in (grad, input)
    )
    results, sources = groups
    wanted = (results @ sources.transpose(1, 2)).flatten(0, 1)
    torch.testing.assert_close(last.flatten(1), wanted.half(), **CLOSE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_direct_weight_gradient_in_float(layout):
    """Groups of 2 channels of 512 elements; the last block has the last one."""
    channels = 2**23
    input, grad = (torch.empty((4, channels, 8, 16), memory_format=layout) for _ in range(2))
    for tensor in (input, grad):
        tensor[:, -2:] = torch.randn(4, 2, 8, 16)
    weight = torch.zeros(channels, 2, 3, 3, requires_grad=True)
    with Launches("dry"):
        arguments = (None, [1, 1], [1, 1], [1, 1], channels // 2)
        output = ops.conv2d(input, weight, *arguments, "none", "direct")
    last = gradient(output, weight, grad)[0][-2:]
    ends = (tensor[:, -2:].double() for tensor in (input, grad))
    wanted = torch.nn.grad.conv2d_weight(next(ends), (2, 2, 3, 3), next(ends), padding=1)
    torch.testing.assert_close(last.double(), wanted, rtol=1e-5, atol=1e-4)


LAST = torch.channels_last


def test_implicit_gemm():
    input = ended(SHAPE, LAST)
    weight = torch.randn(8, 64, 3, 3).half()
    arguments = (None, [1, 1], [1, 1], [1, 1])
    with Launches("far") as made:
        output = ops.conv2d(input, weight, *arguments, 1, "relu", "implicit_gemm")
    pixels = 256 if os.environ.get("D2LFAST_EMULATED_CAPABILITY") == "90" else 128
    assert [grid for grid, *_ in made] == [(2**26 // pixels, 1, 1)]
    wanted = torch.nn.functional.conv2d(input[-1:].float(), weight.float(), *arguments).relu()
    compare(output, wanted, LAST, pixels * 8, atol=3e-2, rtol=2e-3)


def test_implicit_gemm_data_gradient():
    with Launches("dry"):
        input = torch.empty(SHAPE, dtype=HALF, memory_format=LAST).requires_grad_()
        weight = torch.randn(8, 64, 3, 3).half()
        arguments = (None, [1, 1], [1, 1], [1, 1])
        output = ops.conv2d(input, weight, *arguments, 1, "none", "implicit_gemm")
    grad = ended(output.shape, LAST)
    wanted = torch.nn.functional.conv_transpose2d(grad[-1:].float(), weight.float(), None, 1, 1)
    compare(gradient(output, input, grad)[0], wanted, LAST, 128 * 64, **CLOSE)


def test_implicit_gemm_weight_gradient():
    """4096 pixels of 2^20 channels: a block has the last 128 of these."""
    channels = 2**20
    input = torch.empty((64, channels, 8, 8), dtype=HALF, memory_format=LAST)
    input[:, -128:] = torch.randn(64, 128, 8, 8)
    weight = torch.zeros(8, channels, 1, 1, dtype=HALF, requires_grad=True)
    with Launches("dry"):
        output = ops.conv2d(input, weight, None, [1, 1], [0, 0], [1, 1], 1, "none", "implicit_gemm")
    grad = torch.randn(output.shape).half().to(memory_format=LAST)
    ours = gradient(output, weight, grad)[0][:, -32:].flatten(1)
    wanted = torch.einsum("nohw,nchw->oc", grad.float(), input[:, -32:].float()).half()
    torch.testing.assert_close(ours, wanted, atol=0.25, rtol=2e-3)


@pytest.mark.parametrize("classes", [64, 2**20])
def test_cross_entropy(classes):
    """A part of a warp a row, and a block."""
    rows = 2**32 // classes
    input, target = torch.empty(rows, classes, dtype=HALF), torch.zeros(rows, dtype=torch.int64)
    input[-1], target[-1] = torch.randn(classes), classes - 3
    leaf = input[-1:].float().requires_grad_()
    input.requires_grad_()
    with Launches("far"):
        loss = ops._cross_entropy(input, target, 0, -100)[0]
    wanted = torch.nn.functional.cross_entropy(leaf, target[-1:], reduction="none")
    torch.testing.assert_close(loss[-1:].float(), wanted, **CLOSE)
    grad = torch.ones(rows, dtype=HALF)
    ours = gradient(loss, input, grad)[0][-1:].float()
    theirs = torch.autograd.grad(wanted.sum(), leaf)[0]
    assert ours[0, classes - 3] < -0.5
    torch.testing.assert_close(ours, theirs, **CLOSE)
