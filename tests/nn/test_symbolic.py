"""`torch.fx` records a layer or function of d2lfast as it records torch's."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import d2lfast
from d2lfast.nn import functional


def targets(graph, kind):
    return [node.target for node in graph.graph.nodes if node.op == kind]


class Images(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.body = layers.Sequential(
            layers.Conv2d(3, 8, 3, padding=1), layers.BatchNorm2d(8), nn.ReLU(), layers.MaxPool2d(2)
        )
        self.pools = nn.ModuleList(
            [layers.AvgPool2d(2), layers.AdaptiveAvgPool2d(2), layers.AdaptiveMaxPool2d((1, 2))]
        )
        self.norm = layers.BatchNorm1d(16)

    def forward(self, x):
        x = self.body(x)
        for pool in self.pools:
            x = pool(x)
        return self.norm(x.flatten(1))


def test_layers_for_images():
    graph = symbolic_trace(Images(d2lfast.nn))
    wanted = symbolic_trace(Images(nn))
    assert [n.op for n in graph.graph.nodes] == [n.op for n in wanted.graph.nodes]
    assert targets(graph, "call_module") == targets(wanted, "call_module")
    graph.load_state_dict(wanted.state_dict())
    x = torch.randn(4, 3, 12, 12)
    # In training, and so with the running statistics of each batch.
    for _ in range(2):
        torch.testing.assert_close(graph(x), wanted(x))
    torch.testing.assert_close(graph.state_dict(), wanted.state_dict())


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = d2lfast.nn.Conv2dAct(3, 4, 1)
        self.norm = d2lfast.nn.BatchNormAct2d(4)
        self.block = d2lfast.nn.ConvNormAct(4, 4, 3)
        self.sync = d2lfast.nn.SyncBatchNorm(4)

    def forward(self, x, residual):
        return self.sync(self.block(self.norm(self.conv(x), residual), residual))


def test_fused_layers():
    model = Fused().eval()
    graph = symbolic_trace(model)
    assert targets(graph, "call_module") == ["conv", "norm", "block.conv", "block.bn", "sync"]
    inputs = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(graph(*inputs), model(*inputs))


class Sequences(nn.Module):
    def __init__(self, layers, kind):
        super().__init__()
        self.layer = getattr(layers, kind)(4, 5)
        self.cell = getattr(layers, f"{kind}Cell")(5, 5)
        self.pair = kind == "LSTM"

    def forward(self, x, state):
        output, last = self.layer(x)
        output, _ = self.layer(x, last)
        hidden = self.cell(output[0], state)
        return self.cell(hidden[0] if self.pair else hidden)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers(kind):
    graph, wanted = (symbolic_trace(Sequences(layers, kind)) for layers in (d2lfast.nn, nn))
    assert graph.code == wanted.code
    graph.load_state_dict(wanted.state_dict())
    state = torch.randn(3, 5)
    arguments = torch.randn(2, 3, 4), (state, state.cos()) if kind == "LSTM" else state
    torch.testing.assert_close(graph(*arguments), wanted(*arguments))


def test_functions():
    weight, mean, variance = torch.randn(4, 3, 3, 3), torch.zeros(4), torch.ones(4)

    def function(x):
        x = functional.conv2d(x, weight, padding=1, activation="relu")
        x = functional.batch_norm(x, mean, variance)
        x = functional.batch_norm_act(x, mean, variance, activation="tanh")
        x = functional.max_pool2d(x, 2)
        x, _ = functional.max_pool2d(x, 3, 1, padding=1, return_indices=True)
        x = functional.avg_pool2d(x, 3, 1)
        return functional.adaptive_max_pool2d(x, 3) + functional.adaptive_avg_pool2d(x, 3)

    graph = symbolic_trace(function)
    called = [target for target in targets(graph, "call_function") if target.__module__ != "_operator"]
    assert {target.__module__.partition(".")[0] for target in called} == {"d2lfast"}
    assert len(called) == 8
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(graph(x), function(x))
