"""Launch parameters on the emulated GPU, which test_emulation.py starts this with."""

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu, ops

pytestmark = gpu


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_more_than_int32_elements(op, layout):
    """Offsets get 64 bits, and the grid stays within its limits, which the emulation checks."""
    wide = torch.empty(33, 64, 1024, 1024, dtype=torch.float16, memory_format=layout)
    small = torch.empty(2, 64, 8, 8, dtype=torch.float16).to(memory_format=layout)
    arguments = {
        "max_pool2d": ([2, 2], [2, 2], [0, 0], [1, 1], False),
        "avg_pool2d": ([2, 2], [2, 2], [0, 0], False, True, None),
        "adaptive_avg_pool2d": ([7, 7],),
    }[op]
    for tensor, index in ((wide, "long"), (small, "int")):
        with Launches("dry") as made:
            getattr(ops, op)(tensor, *arguments)
        assert len(made) == 1
        assert f"PoolItems<{index}>" in made[0][3]


def test_nothing_is_launched_for_nothing():
    empty = torch.empty(0, 3, 8, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    channels = [torch.zeros(3), torch.ones(3)]
    with Launches() as made:
        outputs = [
            ops.max_pool2d(empty, [2, 2], [2, 2], [0, 0], [1, 1], False),
            ops.avg_pool2d(empty, [2, 2], [2, 2], [0, 0], False, True, None),
            ops.adaptive_avg_pool2d(empty, [4, 4]),
            ops.adaptive_max_pool2d(empty, [4, 4])[0],
            ops.batch_norm_act(empty, None, None, *channels, False, 0.1, 1e-5, "relu"),
        ]
        for algorithm in ("direct", "implicit_gemm", "winograd"):
            outputs.append(ops.conv2d(empty, weight, None, [1, 1], [1, 1], [1, 1], 1, "relu", algorithm))
        for output in outputs:
            grads = torch.autograd.grad(output.sum(), (empty, weight), allow_unused=True)
            assert grads[0].shape == empty.shape
            assert grads[1] is None or not grads[1].any()
    shapes = [(0, 3, 4, 4)] * 4 + [(0, 3, 8, 8)] + [(0, 4, 8, 8)] * 3
    assert [output.shape for output in outputs] == shapes
    assert made == []


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_wide_accesses_need_aligned_tensors(shift, dtype):
    """Off a 16-byte boundary a thread takes single elements; the emulation stops on a misaligned access."""
    flat = torch.randn(2 * 8 * 9 * 10 + shift).to(dtype)
    view = flat[shift:].view(2, 9, 10, 8).permute(0, 3, 1, 2)
    with Launches() as made:
        output = ops.max_pool2d(view, [3, 3], [2, 2], [1, 1], [1, 1], False)
        mean = ops.avg_pool2d(view, [3, 3], [2, 2], [1, 1], False, True, None)
    wanted = torch.nn.functional.max_pool2d(view.float(), 3, 2, 1).to(dtype)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(
        mean.float(), torch.nn.functional.avg_pool2d(view.float(), 3, 2, 1), atol=1e-3, rtol=1e-3
    )
    items = output.numel()
    lanes = 16 // dtype.itemsize if shift * dtype.itemsize % 16 == 0 else 1
    assert made[0][0][0] == -(-items // lanes // 256)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_planes_are_read_by_16_bytes(dtype, window, shift):
    """Where they are aligned, else by whole planes; with NaN, and an odd number of rows."""
    kernel, stride, padding = window
    flat = torch.randint(-3, 4, (2 * 3 * 9 * 32 + shift,)).to(dtype)
    flat[::31] = float("nan")
    input = flat[shift:].view(2, 3, 9, 32).requires_grad_()
    pairs = [[kernel] * 2, [stride] * 2, [padding] * 2]
    leaf = input.detach().clone().requires_grad_()
    aligned = shift * dtype.itemsize % 16 == 0
    lanes = 16 // dtype.itemsize if aligned else stride
    with Launches() as made:
        output = ops.max_pool2d(input, *pairs, [1, 1], False)
    wanted = torch.nn.functional.max_pool2d(leaf, kernel, stride, padding)
    torch.testing.assert_close(output, wanted, equal_nan=True, rtol=0, atol=0)
    if aligned:
        assert made[0][0][0] == -(-output.numel() * stride // lanes // 256)
    else:
        assert "PlaneRun" in made[0][3]
    gradient = torch.randint(-3, 4, output.shape).to(dtype)
    ours = torch.autograd.grad(output, input, gradient)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted, leaf, gradient), rtol=0, atol=0)
    if window != (2, 2, 0):
        return
    for divisor in (None, 3):
        with Launches() as made:
            mean = ops.avg_pool2d(input, *pairs, False, True, divisor)
        exact = torch.nn.functional.avg_pool2d(leaf.double(), 2, 2, 0, divisor_override=divisor)
        torch.testing.assert_close(mean, exact.to(dtype), equal_nan=True)
        assert made[0][0][0] == -(-output.numel() * stride // lanes // 256)
        ours = torch.autograd.grad(mean, input, gradient)[0]
        theirs = torch.autograd.grad(exact, leaf, gradient.double())[0]
        torch.testing.assert_close(ours, theirs.to(dtype))


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("width", [13, 14, 24, 31])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_rows_of_planes_are_taken_in_groups(dtype, window, width, shift):
    """Forward by planes but for whole rows, gradients by bands, of which the last may be less than whole."""
    kernel, stride, padding = window
    pairs = [[kernel] * 2, [stride] * 2, [padding] * 2]
    flat = torch.randint(-3, 4, (8 * 8 * 9 * width + shift,)).to(dtype)
    flat[::31] = float("nan")
    input = flat[shift:].view(8, 8, 9, width).requires_grad_()
    leaf = input.detach().clone().requires_grad_()
    for ceil in (False, True):
        with Launches() as made:
            output = ops.max_pool2d(input, *pairs, [1, 1], ceil)
        wanted = torch.nn.functional.max_pool2d(leaf, kernel, stride, padding, ceil_mode=ceil)
        torch.testing.assert_close(output, wanted, equal_nan=True, rtol=0, atol=0)
        rows = 64 * output.shape[2]
        whole = width == stride * output.shape[3] and width * dtype.itemsize % 16 == 0
        if shift * dtype.itemsize % 16 == 0 and whole and (kernel, padding) != (3, 0):
            assert made[0][0][0] == -(-rows * width * dtype.itemsize // 16 // 256)
        else:
            assert "PlaneRun" in made[0][3]
        flat_gradient = torch.randint(-3, 4, (output.numel() + shift,)).to(dtype)
        gradient = flat_gradient[shift:].view(output.shape)
        with Launches() as made:
            ours = torch.autograd.grad(output, input, gradient)
        bands = (9 + padding - 1) // stride + 1 - padding // stride
        assert made[-1][0][0] == -(-64 * bands * -(-width // 8) // 256)
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, leaf, gradient), rtol=0, atol=0)


def special_values(shape, dtype):
    """Few values, for ties across every edge of tiles, with NaN, infinities and both zeros."""
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 1.0, 2.0, -torch.inf, torch.inf, torch.nan])
    rare = torch.randint(0, 10, shape)
    kinds = torch.where(torch.rand(shape) < 0.2, rare, rare % 4)
    kinds[:1] = torch.where(torch.rand(kinds[:1].shape) < 0.5, 7, 2)
    return values[kinds].to(dtype)


def assert_same_bits(ours, wanted):
    """But for those of NaN."""
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)
    numbers = ~wanted.isnan()
    assert torch.equal(ours.signbit()[numbers], wanted.signbit()[numbers])


STRIDE_1 = [3, 3], [1, 1], [1, 1], [1, 1]


def pooled_with_stride_1(input):
    """Launches and positions of windows of 3, and a leaf with torch's result, which ours is equal to."""
    leaf = input.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    wanted = torch.nn.functional.max_pool2d(leaf, 3, 1, 1)
    with Launches() as made:
        output, position = ops._max_pool2d_with_position(input, *STRIDE_1, False)
    assert_same_bits(output, wanted.detach())
    return made, position, leaf, wanted


@pytest.mark.parametrize("padding", [[1, 1], [0, 1], [1, 0]], ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 9, 12, 14, 27])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_windows_of_3_with_stride_1(dtype, layout, width, padding):
    """With tiles and strips of planes that reach beyond the image, and an odd number of planes."""
    window = [3, 3], [1, 1], padding, [1, 1]
    for height in (1, 2, 3, 6, 7, 17):
        if height + 2 * padding[0] < 3 or width + 2 * padding[1] < 3:
            continue
        channels = 16 if layout == torch.channels_last else 5
        input = special_values((3, channels, height, width), dtype)
        leaf = input.clone().requires_grad_()
        wanted, index = torch.nn.functional.max_pool2d(leaf, 3, 1, padding, return_indices=True)
        input = input.to(memory_format=layout)
        with Launches() as made:
            output, position = ops._max_pool2d_with_position(input, *window, False)
        assert_same_bits(output, wanted.detach())
        assert_same_bits(ops.max_pool2d(input, *window, False), wanted.detach())
        assert torch.equal(ops._max_pool2d_position_to_index(position, [height, width], *window), index)
        wide = layout == torch.channels_last
        gradient = torch.randint(-3, 4, output.shape).to(dtype).to(memory_format=layout)
        gradient[torch.rand(gradient.shape) < 0.03] = torch.inf
        with Launches() as back:
            ours = ops._max_pool2d_backward(gradient, position, [height, width], *window, wide)
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, leaf, gradient)[0], rtol=0, atol=0)
        sizes = (output.shape[2:], made), ((height, width), back)
        for (size, launches), tile in zip(sizes, ((2, 2), (3, 2)), strict=True):
            (kernel,) = launches
            if wide:
                tiles = [-(-length // side) for length, side in zip(size, tile, strict=True)]
                assert kernel[0][0] == -(-3 * dtype.itemsize * tiles[0] * tiles[1] // 256)
            else:
                assert "PlaneRun" in kernel[3]


@pytest.mark.parametrize("shift", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_windows_of_3_with_stride_1_off_16_bytes(dtype, shift):
    for shape in ((2, 5, 7, 8), (2, 5, 7, 12)):
        values = special_values((2 * 5 * 7 * 12 + shift,), dtype)
        view = values[shift : shift + 70 * shape[3]].view(shape)
        for input in (view, view.permute(0, 3, 1, 2)):
            _, position, leaf, wanted = pooled_with_stride_1(input)
            moved = torch.empty(position.numel() + shift, dtype=position.dtype)[shift:]
            taps = moved.as_strided(position.shape, position.stride(), shift).copy_(position)
            gradient = torch.randint(-3, 4, wanted.shape).to(dtype)
            wide = input is not view
            for chosen in (position, taps):
                ours = ops._max_pool2d_backward(gradient, chosen, list(input.shape[2:]), *STRIDE_1, wide)
                exact = torch.autograd.grad(wanted, leaf, gradient, retain_graph=True)[0]
                torch.testing.assert_close(ours, exact, rtol=0, atol=0)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "side", "whole", "split"),
    [
        (torch.float16, 7, 128, 128),
        (torch.bfloat16, 13, 32, 32),
        (torch.bfloat16, 6, 64, 64),
        (torch.bfloat16, 9, 40, 42),
        (torch.float16, 12, 32, 32),
        (torch.float32, 7, 128, 128),
        (torch.float32, 8, 42, 42),
        (torch.float32, 9, 40, 42),
        (torch.float64, 5, 64, 64),
        (torch.float64, 7, 42, 42),
    ],
    ids=str,
)
def test_blocks_of_planes(dtype, side, whole, split, shift):
    """Halves of blocks begin on 16 bytes where tensors do, and the last block has less than the others."""
    planes = 4 * whole + 5
    half = whole if shift == 0 else split
    values = special_values((planes * side * side + shift,), dtype)
    input = values[shift:].view(1, planes, side, side)
    made, position, leaf, wanted = pooled_with_stride_1(input)
    blocks = -(-planes // (half * (2 if dtype.itemsize == 2 else 1)))
    assert made[0][0] == (blocks, 1, 1)
    gradient = torch.randint(-3, 4, (wanted.numel() + shift,)).to(dtype)[shift:].view(wanted.shape)
    with Launches() as back:
        ours = ops._max_pool2d_backward(gradient, position, [side, side], *STRIDE_1, False)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted, leaf, gradient)[0], rtol=0, atol=0)
    assert back[0][0] == (blocks, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_planes_beyond_shared_memory(dtype):
    for side, taken in ((96, True), (300, False)):
        input = special_values((1, 3, side, side - 1), dtype)
        made, position, leaf, wanted = pooled_with_stride_1(input)
        assert ("PlaneRun" in made[0][3]) == taken
        gradient = torch.randint(-3, 4, wanted.shape).to(dtype)
        ours = ops._max_pool2d_backward(gradient, position, list(input.shape[2:]), *STRIDE_1, False)
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, leaf, gradient)[0], rtol=0, atol=0)


@pytest.mark.parametrize("shift", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_misaligned_positions(dtype, shift):
    window = [3, 3], [2, 2], [1, 1], [1, 1], False
    input = torch.randn(2, 3, 8, 16).to(dtype)
    output, position = ops._max_pool2d_with_position(input, *window)
    moved = torch.empty(position.numel() + shift, dtype=position.dtype)[shift:].view_as(position)
    moved.copy_(position)
    ours, wanted = (
        ops._max_pool2d_backward(output, taps, input.shape[2:], *window) for taps in (moved, position)
    )
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_means_of_planes(dtype, shift, side):
    input = torch.randint(-3, 4, (6 * side * side + shift,)).to(dtype)[shift:].view(2, 3, side, side)
    wanted = input.double().mean((2, 3), keepdim=True).to(dtype)
    torch.testing.assert_close(ops.adaptive_avg_pool2d(input, [1, 1]), wanted)
