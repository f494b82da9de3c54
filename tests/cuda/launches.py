"""Launch parameters on the emulated GPU, which test_emulation.py starts this with."""

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu, ops

import d2lfast
from d2lfast.nn import recurrent_layers

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


@torch._dynamo.config.patch(allow_rnn=True)
def test_the_choice_of_a_recurrent_layer_is_traced():
    """An operator that returns a name would break the graph."""
    layer = d2lfast.nn.GRU(4, 5)
    choose = torch.compile(lambda x: recurrent_layers._left_to_cudnn(layer, "gru", x), fullgraph=True)
    assert choose(torch.randn(3, 2, 4)) is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_layer_is_one_launch(mode, gates, dtype):
    """Each way; the weight that no longer fits into shared memory in float32 may in 16 bits."""
    hidden, wide = 8, {"tanh": 300, "gru": 160, "lstm": 140}[mode]
    alone = ops._cuda_recurrent_layer_algorithm(mode, 2, wide, dtype, True) == "persistent"
    assert alone == (dtype.itemsize == 2)
    weights = [torch.randn(gates * hidden, n).to(dtype).requires_grad_() for n in (5, hidden)]
    input, hx = torch.randn(3, 2, 5).to(dtype), torch.zeros(1, 2, hidden, dtype=dtype)
    cx = hx if mode == "lstm" else None
    with Launches() as made:
        output = ops._recurrent_layer(input, None, hx, cx, weights, mode, False, False, False)[0]
    assert len(made) == 1
    with Launches() as made:
        torch.autograd.grad(output.float().sum(), weights)
    assert len(made) == 1


@pytest.mark.parametrize("mode", ["tanh", "gru", "lstm"])
def test_recurrent_layer_of_several_blocks(mode):
    """A cooperative launch a direction, of packed sequences too; the blocks share out the units."""
    hidden = {"tanh": 300, "gru": 150, "lstm": 130}[mode]
    kind = {"tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[mode]
    layer = kind(3, hidden, bidirectional=True).double()
    data, sizes = torch.randn(13, 3).double(), torch.tensor([6, 4, 3])
    states = [torch.randn(2, 6, hidden).double().requires_grad_() for _ in range(2 if mode == "lstm" else 1)]
    packed = torch.nn.utils.rnn.PackedSequence(data, sizes)
    wanted = layer(packed, tuple(states) if mode == "lstm" else states[0])[0].data
    leaves = [t.detach().float().requires_grad_() for t in (*states, *layer.parameters())]
    first = len(states)
    with Launches() as made:
        cell = leaves[1] if mode == "lstm" else None
        arguments = (data.float(), sizes, leaves[0], cell, leaves[first:], mode, True, False, False)
        output = ops._recurrent_layer(*arguments)[0]
    assert len(made) == 2
    assert all(grid[0] > 1 and "GridShare" in kernel for grid, _, _, kernel in made)
    gradient = torch.randn(output.shape)
    with Launches() as made:
        found = torch.autograd.grad(output, leaves, gradient)
    assert len([kernel for *_, kernel in made if "GridShare" in kernel]) == 2
    expected = torch.autograd.grad(wanted, [*states, *layer.parameters()], gradient.double())
    for ours, exact in zip((output, *found), (wanted, *expected), strict=True):
        assert (ours.double() - exact).norm() < 3e-6 * exact.norm()


@pytest.mark.parametrize(
    ("processors", "layer", "algorithm"),
    [
        (132, ("gru", 32, 32, torch.float32, True), "persistent"),
        (132, ("lstm", 32, 256, torch.float32, True), "persistent_grid"),
        (132, ("lstm", 32, 650, torch.bfloat16, True), "aten"),
        (132, ("lstm", 8, 1024, torch.bfloat16, False), "persistent_grid"),
        (132, ("lstm", 8, 1024, torch.bfloat16, True), "aten"),
        (132, ("lstm", 32, 1024, torch.float64, False), "aten"),
        (3, ("lstm", 32, 256, torch.float32, True), "aten"),
    ],
)
def test_recurrent_layers_by_their_size(processors, layer, algorithm, monkeypatch):
    """By the computed time of a step on a GPU of so many multiprocessors."""
    monkeypatch.setenv("D2LFAST_EMULATED_PROCESSORS", str(processors))
    assert ops._cuda_recurrent_layer_algorithm(*layer) == algorithm


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


@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_no_recurrent_launch_for_no_sequences(mode, gates):
    weights = [torch.randn(gates * 8, n, requires_grad=True) for n in (5, 8)]
    hx = torch.zeros(1, 0, 8)
    with Launches() as made:
        arguments = (None, hx, hx if mode == "lstm" else None, weights, mode, False, False, False)
        output = ops._recurrent_layer(torch.empty(3, 0, 5), *arguments)[0]
        grads = torch.autograd.grad(output.sum(), weights)
    assert output.shape == (3, 0, 8)
    assert not any(grad.any() for grad in grads)
    assert made == []


@pytest.mark.parametrize("shared_bytes", ["3000", ""])
@pytest.mark.parametrize(("mode", "gates"), [("tanh", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_layers_of_misaligned_tensors(mode, gates, shared_bytes, monkeypatch):
    """In one block and, with little shared memory, in several."""
    if shared_bytes:
        monkeypatch.setenv("D2LFAST_EMULATED_SHARED_BYTES", shared_bytes)

    def misaligned(*shape):
        return (0.5 * torch.randn(torch.Size(shape).numel() + 1))[1:].view(shape)

    hidden, cell = 32 if mode == "tanh" else 16, mode == "lstm"
    states = [misaligned(1, 3, hidden).requires_grad_() for _ in range(1 + cell)]
    leaves = [*states, *(misaligned(gates * hidden, n).requires_grad_() for n in (5, hidden))]
    leaves += [misaligned(gates * hidden).requires_grad_() for _ in range(2)]
    input, grad = misaligned(4, 3, 5), misaligned(4, 3, hidden)
    with Launches() as made:
        weights = leaves[1 + cell :]
        arguments = (None, leaves[0], leaves[1] if cell else None, weights, mode, True, False, False)
        output = ops._recurrent_layer(input, *arguments)[0]
    assert ["GridShare" in kernel for *_, kernel in made] == [bool(shared_bytes)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    native = {"tanh": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[mode]
    state = tuple(exact[:2]) if cell else exact[0]
    wanted = native(input.double(), state, exact[1 + cell :], True, 1, 0.0, False, False, False)[0]
    ours = (output, *torch.autograd.grad(output, leaves, grad))
    theirs = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_recurrent_cells_of_misaligned_tensors(kind):
    cell = getattr(torch.nn, kind)(5, 9).double()
    wanted_state = [torch.randn(3, 9).double() for _ in range(2 if kind == "LSTMCell" else 1)]
    input = torch.randn(3 * 5 + 1)[1:].view(3, 5)
    parameters = []
    for tensor in (*wanted_state, *cell.parameters()):
        moved = torch.empty(tensor.numel() + 1)[1:].view(tensor.shape)
        parameters.append(moved.copy_(tensor.detach()).requires_grad_())
    states = len(wanted_state)
    exact = [tensor.detach().double().requires_grad_() for tensor in parameters]
    own = parameters[:states] if states == 2 else [parameters[0]]
    op = {"RNNCell": ops.rnn_cell, "GRUCell": ops.gru_cell, "LSTMCell": ops.lstm_cell}[kind]
    native = {"RNNCell": torch.rnn_tanh_cell, "GRUCell": torch.gru_cell, "LSTMCell": torch.lstm_cell}[kind]
    output = op(input, *own, *parameters[states:], *(("tanh",) if states == 1 and "RNN" in kind else ()))
    state = tuple(exact[:2]) if states == 2 else exact[0]
    wanted = native(input.double(), state, *exact[states:])
    output, wanted = (value[0] if isinstance(value, tuple) else value for value in (output, wanted))
    ours = (output, *torch.autograd.grad(output.sum(), parameters))
    theirs = (wanted, *torch.autograd.grad(wanted.sum(), exact))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-5)


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
