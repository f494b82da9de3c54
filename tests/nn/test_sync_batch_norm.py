"""Two processes with parts of a batch against one with the whole: synchronised statistics, data parallelism.

`torchrun` starts this file as the program of both processes; the tests compare what they saved.
"""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn

import d2lfast
from d2lfast.nn import unfused
from d2lfast.testing.cases import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="both processes are the CPU's")

NCHW, NHWC = torch.contiguous_format, torch.channels_last
F64, F32 = torch.float64, torch.float32


def case(make, shape, parts=(2, 3), dtype=F64, layout=NCHW, residual=False):
    """A layer, the shape of an example, and how many of them each process has."""
    return make, shape, parts, dtype, layout, residual


def norm(**options):
    return lambda: nn.BatchNorm2d(5, **options)


def act(name):
    return lambda: unfused.BatchNormAct2d(6, act_layer=name)


CASES = {
    "2d": case(norm(), (5, 7, 6), (3, 3)),
    "channels_last": case(norm(), (5, 7, 6), (3, 3), layout=NHWC),
    "parts_of_other_sizes": case(norm(), (5, 7, 6), (4, 1)),
    "an_empty_part": case(norm(), (5, 7, 6), (0, 4)),
    "1d": case(lambda: nn.BatchNorm1d(9), (9,), (5, 6)),
    "one_value_each": case(lambda: nn.BatchNorm1d(9), (9,), (1, 1)),
    "3d": case(lambda: nn.BatchNorm1d(4), (4, 11)),
    "no_affine": case(norm(affine=False), (5, 4, 4)),
    "no_running": case(norm(track_running_stats=False), (5, 4, 4)),
    "cumulative": case(norm(momentum=None), (5, 4, 4)),
    "float32": case(lambda: nn.BatchNorm2d(16), (16, 9, 9), (3, 4), F32, NHWC),
    "relu": case(act("relu"), (6, 5, 4)),
    "relu_residual": case(act("relu"), (6, 5, 4), residual=True),
    "relu_residual_channels_last": case(act("relu"), (6, 5, 4), layout=NHWC, residual=True),
    "tanh_residual": case(act("tanh"), (6, 5, 4), residual=True),
    "residual": case(act("none"), (6, 5, 4), residual=True),
    "sequential": case(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid()), (3, 6, 6), (2, 2)
    ),
}


def prepare(name):
    """The layer and the whole batch of a case: the same in every process."""
    make, shape, parts, dtype, layout, with_residual = CASES[name]
    torch.manual_seed(3)
    layer = make().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.rand_like(parameter))

    def batch():
        x = torch.randn(sum(parts), *shape, dtype=dtype) * 2 + 5
        return x.to(memory_format=layout) if x.dim() == 4 else x

    inputs = [batch(), batch()] if with_residual else [batch()]
    return layer, inputs, torch.randn(2000, dtype=dtype)


def steps(layer, inputs, rows, weights):
    """Output, gradients and buffers of two training steps on rows of a batch."""
    results = []
    for step in range(2):
        leaves = [(x[rows] * (step + 1)).detach().requires_grad_() for x in inputs]
        layer.zero_grad()
        output = layer(*leaves)
        scale = weights[: output.shape[1:].numel()].view(output.shape[1:])
        ((output * scale).square().sum() + output.sum()).backward()
        results.append(
            {
                "outputs": [output.detach()],
                "inputs": [x.grad for x in leaves],
                "parameters": [p.grad.clone() for p in layer.parameters()],
                "buffers": [b.clone() for b in layer.buffers()],
            }
        )
    if list(layer.buffers()):
        layer.eval()
        results.append({"outputs": [layer(*[x[rows] for x in inputs]).detach()]})
    return results


def network():
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    return net.double(), torch.randn(12, 1, 10, 10, dtype=F64), torch.arange(12) % 5


def train(net, x, y):
    optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def process(path):
    """What each of the two processes does."""
    if "D2LFAST_EMULATED_CUDA" in os.environ:
        torch.ops.load_library(os.environ["D2LFAST_EMULATED_CUDA"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    results = {}
    for name, case in CASES.items():
        layer, inputs, weights = prepare(name)
        parts = case[2]
        rows = slice(0, parts[0]) if rank == 0 else slice(parts[0], sum(parts))
        layer = d2lfast.nn.SyncBatchNorm.convert_sync_batchnorm(d2lfast.convert(layer))
        results[name] = steps(layer, inputs, rows, weights)
    net, x, y = network()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # torch's, then ours
    net = nn.parallel.DistributedDataParallel(d2lfast.convert(net))
    results["training"] = train(net, x[6 * rank : 6 * rank + 6], y[6 * rank : 6 * rank + 6])
    results["weights"] = [p.detach() for p in net.parameters()]
    try:
        d2lfast.nn.SyncBatchNorm(3)(torch.zeros([1, 3] if rank == 0 else [0, 3]))
    except ValueError as error:
        results["one value"] = str(error)
    group = distributed.new_group([0]), distributed.new_group([1])
    alone = d2lfast.nn.SyncBatchNorm(2, process_group=group[rank])
    x = torch.randn(3, 2, 4, 4) + rank
    results["alone"] = alone(x), nn.BatchNorm2d(2)(x)
    torch.save(results, f"{path}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("sync")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        path,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return [torch.load(path / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(saved, name):
    layer, inputs, weights = prepare(name)
    expected = steps(layer, inputs, slice(None), weights)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if CASES[name][3] == F32 else {"rtol": 1e-9, "atol": 1e-9}
    first, second = (results[name] for results in saved)
    for one, a, b in zip(expected, first, second, strict=True):
        for key in ("outputs", "inputs"):
            whole = [torch.cat(pair) for pair in zip(a.get(key, []), b.get(key, []), strict=True)]
            torch.testing.assert_close(whole, one.get(key, []), **tolerance)
        for x, y, whole in zip(*(r.get("parameters", []) for r in (a, b, one)), strict=True):
            torch.testing.assert_close(x + y, whole, **tolerance)
        for x, y, whole in zip(*(r.get("buffers", []) for r in (a, b, one)), strict=True):
            torch.testing.assert_close(x, whole, **tolerance)
            assert torch.equal(x, y)


def test_data_parallel_training_equals_that_of_one_process(saved):
    net, x, y = network()
    losses = train(net, x, y)
    both = [(a + b) / 2 for a, b in zip(saved[0]["training"], saved[1]["training"], strict=True)]
    assert both == pytest.approx(losses, rel=1e-8)
    for a, b, whole in zip(saved[0]["weights"], saved[1]["weights"], net.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, whole.detach())


def test_a_single_value_is_refused_in_all_processes(saved):
    for results in saved:
        assert "Expected more than 1 value per channel" in results["one value"]


def test_a_group_of_its_own(saved):
    for results in saved:
        torch.testing.assert_close(*results["alone"])


class TestAlone:
    """Without other processes it is a batch norm like any other."""

    @pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
    def test_equals_torch(self, shape):
        x = torch.randn(shape)
        ours, native = d2lfast.nn.SyncBatchNorm(3), nn.SyncBatchNorm(3)
        for training in (True, False):
            torch.testing.assert_close(ours.train(training)(x), native.train(training)(x))
        torch.testing.assert_close(ours.state_dict(), native.state_dict())

    def test_errors(self):
        for bad in (torch.zeros(3), torch.zeros(2, 0, 4), torch.zeros(1, 3), torch.zeros(2, 4, 3, 3)):
            for layer in (nn.SyncBatchNorm(3), d2lfast.nn.SyncBatchNorm(3)):
                with pytest.raises((ValueError, RuntimeError)) as error:
                    layer(bad)
                if type(layer) is nn.SyncBatchNorm:
                    expected = error.type
            assert error.type is expected

    def test_conversion_shares_and_keeps(self):
        shared = nn.BatchNorm1d(4)
        model = nn.ModuleDict(
            {
                "a": shared,
                "b": nn.ModuleList([nn.BatchNorm2d(3, momentum=None).eval(), nn.ReLU()]),
                "c": shared,
                "d": d2lfast.nn.BatchNormAct2d(2, act_layer="tanh"),
                "e": nn.BatchNorm3d(2, affine=False),
            }
        )
        keys, parameters = list(model.state_dict()), list(model.parameters())
        new = d2lfast.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert new is model
        assert list(new.state_dict()) == keys
        assert all(a is b for a, b in zip(new.parameters(), parameters, strict=True))
        assert type(new["a"]) is type(new["b"][0]) is type(new["e"]) is d2lfast.nn.SyncBatchNorm
        assert new["a"] is new["c"]
        assert not new["b"][0].training
        assert new["b"][0].momentum is None
        assert type(new["d"]) is d2lfast.nn.SyncBatchNormAct2d
        assert new["d"].activation == "tanh"
        again = d2lfast.nn.SyncBatchNorm.convert_sync_batchnorm(new["d"])
        assert again.activation == "tanh"

    def test_copies(self):
        layer = d2lfast.nn.SyncBatchNormAct2d(3).eval()
        x = torch.randn(2, 3, 4, 4)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x, x), layer(x, x))
        assert "act=relu" in repr(layer)


if __name__ == "__main__":
    process(sys.argv[1])
