"""Max pooling on a CUDA device against torch's own: values, indices, gradients and layout."""

import itertools

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.sanitizer,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# shape, kernel_size, stride, padding, dilation, ceil_mode
CASES = [
    ((2, 6, 28, 28), 2, 2, 0, 1, False),
    ((2, 8, 27, 29), 3, 2, 1, 1, False),
    ((2, 16, 14, 13), 3, 1, 1, 1, False),
    ((2, 16, 14, 13), 3, 2, 1, 1, True),
    ((3, 7, 12, 17), (4, 3), (2, 3), (2, 1), (2, 1), True),
    ((1, 8, 11, 11), 5, 3, 2, 2, False),
    ((2, 5, 40, 41), 17, 3, 8, 1, False),
    ((2, 8, 1, 9), (1, 3), 1, (0, 1), 1, False),
    ((0, 4, 8, 8), 2, 2, 0, 1, False),
]


@pytest.fixture(scope="module")
def max_pool2d():
    from d2lfast import _extension

    if _extension.build_info()["cuda"] is None:
        pytest.skip("d2lfast was built without CUDA")
    from d2lfast.nn.functional import max_pool2d

    return max_pool2d


def image(shape, dtype, layout, seed=0):
    """Few distinct values, so that windows hold ties; some NaN and infinities."""
    generator = torch.Generator("cuda").manual_seed(seed)
    values = torch.randint(-4, 5, shape, generator=generator, device="cuda").to(dtype)
    kind = torch.rand(shape, generator=generator, device="cuda")
    values[kind < 0.02] = float("nan")
    values[(kind >= 0.02) & (kind < 0.06)] = -float("inf")
    return values.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_torch(max_pool2d, case, dtype, layout):
    shape, *window = case
    results = []
    for pool in (max_pool2d, torch.nn.functional.max_pool2d):
        leaf = image(shape, dtype, layout).requires_grad_()
        output, indices = pool(leaf, *window, return_indices=True)
        plain = pool(leaf.detach(), *window)
        # Integers: the sum of a gradient is exact in every order.
        torch.manual_seed(1)
        grad = torch.randint(-4, 5, output.shape, device="cuda").to(output)
        (leaf_grad,) = torch.autograd.grad(output, leaf, grad)
        results.append((output, indices, plain, leaf_grad))
    for ours, native in zip(*results):
        assert ours.dtype == native.dtype
        assert ours.is_contiguous(memory_format=layout) or not native.is_contiguous(memory_format=layout)
        torch.testing.assert_close(ours, native, rtol=0, atol=0, equal_nan=True, check_stride=False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_same_gradient_every_time(max_pool2d, layout):
    leaf = torch.randn(4, 32, 33, 33, device="cuda").contiguous(memory_format=layout).requires_grad_()
    output = max_pool2d(leaf, 3, 1, 1)
    grad = torch.randn_like(output)
    first = torch.autograd.grad(output, leaf, grad, retain_graph=True)[0]
    for _ in range(5):
        assert torch.equal(first, torch.autograd.grad(output, leaf, grad, retain_graph=True)[0])


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_misaligned_channels_last(max_pool2d, shift):
    """A view that starts off a 16-byte boundary must not take the wide accesses."""
    size = 2 * 8 * 9 * 10
    flat = torch.randn(size + shift, device="cuda")
    view = flat[shift:].view(2, 9, 10, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(max_pool2d(view, 3, 2, 1), torch.nn.functional.max_pool2d(view, 3, 2, 1))


def test_expanded_gradient(max_pool2d):
    for layout, pad in itertools.product(LAYOUTS, (0, 1)):
        leaf = torch.randn(2, 8, 9, 10, device="cuda").contiguous(memory_format=layout).requires_grad_()
        wanted = torch.autograd.grad(torch.nn.functional.max_pool2d(leaf, 3, 2, pad).sum(), leaf)[0]
        torch.testing.assert_close(torch.autograd.grad(max_pool2d(leaf, 3, 2, pad).sum(), leaf)[0], wanted)


def test_follows_the_current_stream(max_pool2d):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        values = torch.randn(2, 3, 64, 64, device="cuda")
        output = max_pool2d(values, 2)
    stream.synchronize()
    assert torch.equal(output, torch.nn.functional.max_pool2d(values, 2))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_input(max_pool2d):
    values = torch.randn(2, 3, 8, 8, device="cuda:1")
    assert torch.equal(max_pool2d(values, 2), torch.nn.functional.max_pool2d(values, 2))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_more_than_int32_elements(max_pool2d, layout):
    shape = (33, 64, 1024, 1024)
    if torch.cuda.mem_get_info()[0] < 3 * 2**31 * 2:
        pytest.skip("needs 12 GiB of free memory")
    values = torch.empty(shape, device="cuda", dtype=torch.float16, memory_format=layout)
    values.normal_()
    output = max_pool2d(values, 2)
    for n in (0, 31, 32):
        assert torch.equal(output[n], torch.nn.functional.max_pool2d(values[n : n + 1], 2)[0])
