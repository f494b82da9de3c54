"""The benchmark of networks measures both sides, and refuses a network that is wrong."""

import csv
import dataclasses

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import d2lfast
from d2lfast.bench import networks
from d2lfast.bench.commands import app
from d2lfast.models.registry import NETWORKS


def run(*arguments):
    return CliRunner().invoke(app, ["networks", *arguments])


@pytest.mark.parametrize("name", ["bn-lenet", "dropout-mlp", "lstm", "names", "seq2seq", "linear"])
def test_rows(name):
    outcome = networks.run_network(name, seconds=0, batch_size=2)
    assert not outcome.failures
    assert [row.what for row in outcome.rows] == ["inference", "training"]
    images = NETWORKS[name].resize is not None
    for row in outcome.rows:
        assert row.network == name
        assert row.batch_size == 2
        times = [row.native_ms, row.ours_ms]
        assert (row.ours_channels_last_ms is not None) == images
        if images:
            times += [row.native_channels_last_ms, row.ours_channels_last_ms]
        assert min(times) > 0
        assert row.speedup_same_layout == pytest.approx(row.native_ms / row.ours_ms)
        best = [
            min(x for x in pair if x is not None)
            for pair in (
                (row.native_ms, row.native_channels_last_ms),
                (row.ours_ms, row.ours_channels_last_ms),
            )
        ]
        assert row.speedup_best == pytest.approx(best[0] / best[1])
        assert row.samples >= 5


def test_batches():
    network = NETWORKS["alexnet"]
    assert networks.default_batch(network, 10) == 128
    batch = networks.default_batch(network, 938_000_000)
    assert batch * 938_000_000 <= networks._MACS < 2 * batch * 938_000_000
    assert networks.default_batch(network, 10**12) == 1


@pytest.mark.parametrize("what", ["output", "gradient"])
def test_a_wrong_network_is_not_timed(monkeypatch, what):
    right = NETWORKS["lenet"]

    def build(num_classes=10, in_channels=1, *, layers=d2lfast.nn):
        model = right.builder(num_classes, in_channels, layers=layers)
        if layers is not nn:
            spoil = (lambda m, i, o: o * 1.01) if what == "output" else (lambda m, i, o: Half.apply(o))
            model.register_forward_hook(spoil)
        return model

    spoilt = dataclasses.replace(right, builder=build)
    monkeypatch.setitem(NETWORKS, "lenet", spoilt)
    outcome = networks.run_network("lenet", seconds=0, batch_size=2)
    assert not outcome.rows
    assert any(what in failure for failure in outcome.failures)
    result = run("--filter", "^lenet$", "--seconds", "0", "--batch-size", "2")
    assert result.exit_code == 1
    assert "GATE RED lenet" in result.output


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def test_the_command_writes_a_table(tmp_path):
    path = tmp_path / "networks.csv"
    result = run("--filter", "^(lenet|rnn)$", "--seconds", "0", "--batch-size", "2", "--csv", str(path))
    assert result.exit_code == 0, result.output
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# cpu: ")
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [(row["network"], row["what"]) for row in rows] == [
        ("lenet", "inference"),
        ("lenet", "training"),
        ("rnn", "inference"),
        ("rnn", "training"),
    ]
    assert "61,706" in result.output
    assert "geometric mean of 2" in result.output


def test_the_default_networks_exist():
    assert set(networks.DEFAULT) <= set(NETWORKS)


@pytest.mark.parametrize(
    "arguments",
    [["--filter", "("], ["--filter", "nothing"], ["--csv", "/no/such/x.csv"], ["--device", "nonsense"]],
)
def test_wrong_use(arguments):
    assert run(*arguments).exit_code == 2
