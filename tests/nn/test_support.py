"""Operators without kernels for a device leave its tensors to torch, and the report says so."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast import _support

pytestmark = pytest.mark.cpu


@pytest.fixture
def without_conv2d(monkeypatch):
    some = _support._OPERATORS["cpu"] - {"conv2d", "max_pool2d", None}
    monkeypatch.setitem(_support._OPERATORS, "cpu", some)


def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers), torch.randn(2, 2, 8, 8)


def test_every_operator_runs_on_the_cpu():
    for device in ("cpu", "meta"):
        assert _support.has_kernels(None, device)
        assert {"conv2d", "max_pool2d", "batch_norm_act", "gru_cell"} <= _support._OPERATORS[device]
    assert not _support.has_kernels("conv2d", "xla")
    assert not _support.has_kernels("conv3d", "cpu")
    assert _support.supported(torch.zeros(2), "conv2d")
    assert not _support.supported(torch.zeros(2, dtype=torch.int32), "conv2d")
    assert not _support.supported(torch.zeros(2).to_sparse(), "conv2d")


@pytest.mark.usefixtures("without_conv2d")
def test_torch_computes_what_has_no_kernels():
    net, x = model()
    expected = net(x)
    converted = d2lfast.convert(net)
    calls = []
    with torch.autograd.profiler.profile() as profile:
        torch.testing.assert_close(converted(x), expected)
    calls = {event.name for event in profile.function_events}
    assert "aten::conv2d" in calls
    assert "aten::max_pool2d" in calls
    assert "d2lfast::batch_norm_act" in {name for name in calls if name.startswith("d2lfast")}
    assert not any(name in ("d2lfast::conv2d", "d2lfast::max_pool2d") for name in calls)


@pytest.mark.usefixtures("without_conv2d")
def test_the_report_names_the_reason():
    rows = {row.path: row for row in d2lfast.report(d2lfast.convert(model()[0]))}
    for path in ("0", "4"):
        assert rows[path].status == "native"
        assert rows[path].reason == "this build has no cpu kernels for it"
    assert rows["2"].status == "swapped"
    assert rows["3"].status == "fused"
    assert rows["1"].reason == "not fused: torch computes the layer before it"


def test_a_backward_without_kernels_counts_as_none():
    """Kernels for a device that this build does not serve: forward alone is not enough."""
    code = """
import torch
from d2lfast import _extension
_extension.load()
library = torch.library.Library("d2lfast", "IMPL")
library.impl("avg_pool2d", lambda *args: args[0], "CUDA")
library.impl("rnn_cell", lambda *args: args[0], "CUDA")
library.impl("_rnn_cell_backward", lambda *args: args[0], "CUDA")
from d2lfast import _support
import importlib
importlib.reload(_support)
print(_support.has_kernels("avg_pool2d", "cuda"), _support.has_kernels("rnn_cell", "cuda"))
"""
    if d2lfast._extension.build_info()["cuda"]:
        pytest.skip("this build has kernels of its own")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
