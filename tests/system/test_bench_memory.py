"""`d2lfast bench memory`: what it counts, and that it runs."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import d2lfast
from d2lfast import memory
from d2lfast.bench import app, memory_commands
from d2lfast.bench.memory_commands import measure_saved
from d2lfast.bench.saved import saved_bytes
from d2lfast.bench.step_worker import step_times


def counted(layers, *make):
    model = nn.Sequential(*(layer(layers) for layer in make))
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    return saved_bytes(model, lambda: model(x).sum()), x.nbytes


def test_each_storage_counts_once():
    saved, image = counted(
        nn, lambda layers: nn.Sigmoid(), lambda layers: nn.Tanh(), lambda layers: nn.Tanh()
    )
    assert saved.total == saved.elementwise == 3 * image
    saved, image = counted(nn, lambda layers: nn.ReLU(), lambda layers: nn.Conv2d(8, 8, 1, bias=False))
    assert saved.total == saved.elementwise == image  # the convolution's input is the ReLU's output


def test_parameters_do_not_count():
    saved, image = counted(nn, lambda layers: nn.Conv2d(8, 100, 1, bias=False))
    assert saved.total == image
    assert saved.elementwise == 0
    assert saved.peak >= 100 * image // 8


@pytest.mark.parametrize("name", ["BatchNorm2d", "MaxPool2d"])
def test_layers_of_ours_are_recognised(name):
    argument = {"BatchNorm2d": 8, "MaxPool2d": 2}[name]
    make = [lambda layers: getattr(layers, name)(argument), lambda layers: nn.ReLU()]
    for layers in (nn, d2lfast.nn):
        saved, image = counted(layers, *make)
        assert saved.elementwise == saved.total > 0
        assert image // 4 <= saved.total <= 3 * image


def test_pooling_keeps_bytes_where_torch_keeps_indices():
    (native, image), (ours, _) = (counted(layers, lambda of: of.MaxPool2d(2)) for layers in (nn, d2lfast.nn))
    assert native.total == image + image // 4 * 2
    assert ours.total <= image // 16 + 1024


def test_steps_of_both_processes_are_timed():
    times = step_times(0, batch=2, pixels=32, threads=1)
    assert len(times["plain"]) == len(times["cached"]) == 5
    assert min(times["plain"] + times["cached"]) > 0


def test_resnet18():
    ours, native = (measure_saved("resnet18", layers, torch.contiguous_format) for layers in (d2lfast.nn, nn))
    assert 0 < ours.elementwise <= 0.6 * native.elementwise
    assert ours.total < native.total
    assert ours.peak <= native.peak


def test_command(tmp_path, monkeypatch):
    lenet = memory_commands._NETWORKS["bn-lenet"][0]
    monkeypatch.setattr(memory_commands, "_NETWORKS", {"lenet": (lenet, (4, 1, 28, 28))})
    path = tmp_path / "memory.json"
    enabled = memory.stats().enabled
    done = CliRunner().invoke(app, ["memory", "--skip-steps", "--seconds", "0.1", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert "lenet channels_last" in done.output
    document = json.loads(path.read_text())
    assert set(document["saved"]) == {
        f"lenet {layout} {side}" for layout in ("NCHW", "channels_last") for side in ("ours", "native")
    }
    assert document["fill_seconds"]["cached"] > 0
    assert memory.stats().enabled == enabled


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("sizes", [(9, 32, 28, 32), (5, 20, 150, 200)])
def test_recurrent_layers_keep_no_more_than_torch(kind, sizes):
    steps, batch, inputs, hidden = sizes
    results = []
    for layers in (d2lfast.nn, nn):
        layer = getattr(layers, kind)(inputs, hidden)
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        results.append(saved_bytes(layer, lambda layer=layer, x=x: layer(x)[0].sum()).total)
    assert results[0] <= {"RNN": 1.0, "GRU": 0.8, "LSTM": 0.5}[kind] * results[1]
