"""Launches of recurrent layers on the emulated GPU, which test_emulation.py starts this with."""

import os

import pytest
import torch
from cuda.recorded import Launches, gpu, ops

import d2lfast
from d2lfast.nn import recurrent_layers

pytestmark = gpu
several_blocks = pytest.mark.skipif(
    os.environ.get("D2LFAST_EMULATED_ARCH") == "80", reason="PTX for sm_80 has no clusters"
)

TOLERANCE = {"ieee": 3e-6, "tf32": 2.0**-8}
GATES = {"tanh": 1, "gru": 3, "lstm": 4}
UNITS = {"tanh": 32, "gru": 16, "lstm": 16}
KERNELS = {"persistent_cluster": "ClusterShare", "persistent": ", int)", "persistent_grid": "GridShare"}


def kernels_of(made):
    """The recurrent kernels among the launches."""
    return [name for *_, kernel in made for name, share in KERNELS.items() if share in kernel]


def restrict(monkeypatch, kernel):
    """A GPU on which layers of UNITS take this kernel: with few registers, with little shared memory."""
    if kernel != "persistent_cluster":
        monkeypatch.setenv("D2LFAST_EMULATED_REGISTERS", "32768")
    if kernel == "persistent_grid":
        monkeypatch.setenv("D2LFAST_EMULATED_SHARED_BYTES", "3000")


@torch._dynamo.config.patch(allow_rnn=True)
def test_the_choice_of_a_recurrent_layer_is_traced():
    """An operator that returns a name would break the graph."""
    layer = d2lfast.nn.GRU(4, 5)
    choose = torch.compile(lambda x: recurrent_layers._left_to_cudnn(layer, "gru", x), fullgraph=True)
    assert choose(torch.randn(3, 2, 4)) is False


@pytest.fixture(params=["ieee", "tf32"])
def precision(request):
    """Torch's switch for float32 in recurrent layers."""
    recurrent = torch.backends.cudnn.rnn
    before = recurrent.fp32_precision
    recurrent.fp32_precision = request.param
    yield request.param
    recurrent.fp32_precision = before


def compare(mode, hidden, sizes, dtype, tolerance, inputs=3):
    """A layer of both directions over packed sequences with torch's in float64; the kernels it took."""
    kind = {"tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[mode]
    layer = kind(inputs, hidden, bidirectional=True).to(dtype).double()
    sizes, first = torch.tensor(sizes), 2 if mode == "lstm" else 1
    data = torch.randn(int(sizes.sum()), inputs).to(dtype)
    states = [torch.randn(2, int(sizes[0]), hidden).to(dtype).double().requires_grad_() for _ in range(first)]
    packed = torch.nn.utils.rnn.PackedSequence(data.double(), sizes)
    wanted = layer(packed, tuple(states) if mode == "lstm" else states[0])[0].data
    leaves = [t.detach().to(dtype).requires_grad_() for t in (*states, *layer.parameters())]
    with Launches() as made:
        cell = leaves[1] if mode == "lstm" else None
        arguments = (leaves[0], cell, leaves[first:], mode, True, False, False)
        output = ops._recurrent_layer(data, sizes, *arguments)[0]
        gradient = torch.randn(output.shape).to(dtype)
        found = torch.autograd.grad(output, leaves, gradient)
    expected = torch.autograd.grad(wanted, [*states, *layer.parameters()], gradient.double())
    for ours, exact in zip((output, *found), (wanted, *expected), strict=True):
        assert (ours.double() - exact).norm() <= tolerance * exact.norm()
    return made


@several_blocks
@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize(
    ("hidden", "blocks"),
    [(1, 1), (7, 1), (32, 1), (33, 1), (64, 1), (65, 2), (100, 2), (128, 2), (129, 8), (160, 8), (256, 8)],
)
def test_clusters(mode, hidden, blocks, precision):
    """Up to 17 sequences a block, more than its threads take at once, of which some end early."""
    sizes = [45, 44, 20, 1] if blocks == 1 else [17, 17, 9, 2]
    made = compare(mode, hidden, sizes, torch.float32, TOLERANCE[precision])
    assert kernels_of(made) == ["persistent_cluster"] * 4
    grids = {grid[0] for grid, _, _, kernel in made if "ClusterShare" in kernel}
    if precision == "tf32" and blocks == 2:
        blocks = 4
    assert grids == {3 if blocks == 1 else blocks}


@several_blocks
@pytest.mark.parametrize("mode", GATES)
def test_several_clusters(mode, monkeypatch):
    """The last has fewer sequences."""
    monkeypatch.setenv("D2LFAST_EMULATED_PROCESSORS", "17")
    made = compare(mode, 130, [5, 5, 4], torch.float32, 3e-6)
    assert [grid[0] for grid, _, _, kernel in made if "ClusterShare" in kernel] == [16] * 4


@several_blocks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [30, 64, 70, 132])
@pytest.mark.parametrize("mode", GATES)
def test_clusters_in_16_bits(mode, hidden, dtype):
    made = compare(mode, hidden, [5, 4], dtype, min(0.02, 4 * torch.finfo(dtype).eps))
    assert kernels_of(made) == ["persistent_cluster"] * 4


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", GATES)
def test_products_of_all_steps(mode, kernel, precision, monkeypatch):
    """Of float32 they are implicit GEMM where torch lets them round: one and two of weights each way."""
    restrict(monkeypatch, kernel)
    made = compare(mode, UNITS[mode], [9, 8, 2], torch.float32, TOLERANCE[precision], inputs=8)
    assert kernels_of(made) == [kernel] * 4
    implicit = [name for *_, name in made if "Implicit" in name]
    assert len(implicit) == (0 if precision == "ieee" else 2 * 3)


@several_blocks
@pytest.mark.parametrize("hidden", [1, 40, 200])
def test_tf32_only_where_torch_allows_it(hidden, precision):
    """1 + 2^-12 is 1 in TF32."""
    value = 1 + 2.0**-12
    weights = [torch.zeros(hidden, 1, requires_grad=True), torch.eye(hidden, requires_grad=True)]
    hx = torch.full((1, 9, hidden), value, requires_grad=True)
    arguments = (None, hx, None, weights, "relu", False, False, False)
    output = ops._recurrent_layer(torch.zeros(1, 9, 1), *arguments)[0]
    (grad,) = torch.autograd.grad(output, hx, torch.full_like(output, value))
    rounded = 1.0 if precision == "tf32" else value
    assert (output == rounded).all()
    assert (grad == rounded).all()


@pytest.mark.parametrize("mode", GATES)
def test_grid(mode, monkeypatch):
    """A cooperative launch a direction; the blocks share out the units."""
    monkeypatch.setenv("D2LFAST_EMULATED_REGISTERS", "32768")
    made = compare(mode, {"tanh": 300, "gru": 150, "lstm": 130}[mode], [6, 4, 3], torch.float32, 3e-6)
    assert kernels_of(made) == ["persistent_grid"] * 4
    assert all(grid[0] > 1 for grid, _, _, kernel in made if "GridShare" in kernel)


@pytest.mark.parametrize(
    ("capability", "registers", "layer", "kernel"),
    [
        ("90", "65536", ("gru", 200, torch.float32), "persistent_cluster"),
        ("80", "65536", ("gru", 64, torch.float32), "persistent_cluster"),
        ("80", "65536", ("gru", 65, torch.float32), "persistent"),
        ("80", "65536", ("gru", 160, torch.float16), "persistent"),
        ("80", "65536", ("gru", 160, torch.float32), "persistent_grid"),
        ("90", "32768", ("lstm", 64, torch.bfloat16), "persistent"),
        ("90", "65536", ("tanh", 300, torch.bfloat16), "persistent"),
        ("90", "65536", ("tanh", 300, torch.float32), "persistent_grid"),
        ("90", "65536", ("lstm", 64, torch.float64), "persistent"),
    ],
)
def test_kernel_by_device(capability, registers, layer, kernel, monkeypatch):
    """One launch a direction each way."""
    monkeypatch.setenv("D2LFAST_EMULATED_CAPABILITY", capability)
    monkeypatch.setenv("D2LFAST_EMULATED_REGISTERS", registers)
    mode, hidden, dtype = layer
    weights = [torch.randn(GATES[mode] * hidden, n).to(dtype).requires_grad_() for n in (5, hidden)]
    input, hx = torch.randn(3, 2, 5).to(dtype), torch.zeros(1, 2, hidden, dtype=dtype)
    arguments = (None, hx, hx if mode == "lstm" else None, weights, mode, False, False, False)
    with Launches() as made:
        output = ops._recurrent_layer(input, *arguments)[0]
        torch.autograd.grad(output.float().sum(), weights)
    assert kernels_of(made) == [kernel] * 2
    assert len(made) == 2


@pytest.mark.parametrize(
    ("processors", "layer", "algorithm"),
    [
        (132, ("gru", 32, 32, torch.float32, True), "persistent_cluster"),
        (132, ("lstm", 32, 256, torch.float32, True), "persistent_cluster"),
        (132, ("gru", 128, 256, torch.float32, True), "persistent_cluster"),
        (132, ("lstm", 512, 256, torch.float32, True), "aten"),
        (132, ("gru", 512, 256, torch.bfloat16, True), "persistent_cluster"),
        (132, ("lstm", 1024, 256, torch.bfloat16, True), "aten"),
        (132, ("lstm", 32, 650, torch.bfloat16, True), "aten"),
        (132, ("lstm", 8, 1024, torch.bfloat16, False), "persistent_grid"),
        (132, ("lstm", 8, 1024, torch.bfloat16, True), "aten"),
        (132, ("lstm", 32, 1024, torch.float64, False), "aten"),
        (3, ("lstm", 32, 256, torch.float32, True), "aten"),
    ],
)
def test_algorithm_by_size(processors, layer, algorithm, monkeypatch):
    """By the computed time of a step on a GPU of so many multiprocessors."""
    monkeypatch.setenv("D2LFAST_EMULATED_PROCESSORS", str(processors))
    assert ops._cuda_recurrent_layer_algorithm(*layer) == algorithm


@pytest.mark.parametrize(("mode", "gates"), GATES.items())
def test_no_launch_for_no_sequences(mode, gates):
    weights = [torch.randn(gates * 8, n, requires_grad=True) for n in (5, 8)]
    hx = torch.zeros(1, 0, 8)
    with Launches() as made:
        arguments = (None, hx, hx if mode == "lstm" else None, weights, mode, False, False, False)
        output = ops._recurrent_layer(torch.empty(3, 0, 5), *arguments)[0]
        grads = torch.autograd.grad(output.sum(), weights)
    assert output.shape == (3, 0, 8)
    assert not any(grad.any() for grad in grads)
    assert made == []


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("mode", "gates"), GATES.items())
def test_misaligned_tensors(mode, gates, kernel, monkeypatch):
    restrict(monkeypatch, kernel)

    def misaligned(*shape):
        return (0.5 * torch.randn(torch.Size(shape).numel() + 1))[1:].view(shape)

    hidden, cell = UNITS[mode], mode == "lstm"
    states = [misaligned(1, 3, hidden).requires_grad_() for _ in range(1 + cell)]
    leaves = [*states, *(misaligned(gates * hidden, n).requires_grad_() for n in (5, hidden))]
    leaves += [misaligned(gates * hidden).requires_grad_() for _ in range(2)]
    input, grad = misaligned(4, 3, 5), misaligned(4, 3, hidden)
    with Launches() as made:
        weights = leaves[1 + cell :]
        arguments = (None, leaves[0], leaves[1] if cell else None, weights, mode, True, False, False)
        output = ops._recurrent_layer(input, *arguments)[0]
    assert kernels_of(made) == [kernel]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    native = {"tanh": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[mode]
    state = tuple(exact[:2]) if cell else exact[0]
    wanted = native(input.double(), state, exact[1 + cell :], True, 1, 0.0, False, False, False)[0]
    ours = (output, *torch.autograd.grad(output, leaves, grad))
    theirs = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_misaligned_tensors_of_cells(kind):
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
