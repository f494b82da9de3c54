"""What `summarize` says of layers whose figures are known, and the command that prints it."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import d2lfast
from d2lfast import models
from d2lfast.commands import app
from d2lfast.summary import summarize


def by_path(model, *inputs):
    return {layer.path: layer for layer in summarize(model, *inputs)}


def test_the_convolution_of_the_course():
    # 28 x 28 x 5 x 5 x 192 x 32 multiply-adds.
    layer = d2lfast.nn.Conv2d(192, 32, 5, padding=2)
    (row,) = summarize(layer, torch.rand(1, 192, 28, 28))
    assert row.macs == 120_422_400
    assert row.parameters == 192 * 32 * 25 + 32
    assert row.bytes == 4 * (192 * 784 + 32 * 784 + row.parameters)
    assert row.output == (1, 32, 28, 28)
    assert row.algorithm.split("/")[0] == d2lfast.explain(layer, (1, 192, 28, 28))["forward"]


def test_two_small_kernels_see_what_a_large_one_does():
    two = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    assert by_path(two, torch.rand(1, 1, 9, 9))["1"].receptive_field == (5, 5)


def test_receptive_fields_through_branches_strides_and_dilation():
    x = torch.rand(1, 192, 12, 12)
    rows = by_path(models.Inception(64, (96, 128), (16, 32), 32, in_channels=192), x)
    fields = {path: row.receptive_field for path, row in rows.items()}
    assert fields["b1_1"] == (1, 1)
    assert fields["b2_2"] == fields["b4_2"] == (3, 3)
    assert fields["b3_2"] == (5, 5)
    behind = nn.Sequential(models.Inception(4, (4, 4), (4, 4), 4, in_channels=192), nn.Conv2d(16, 2, 3))
    assert by_path(behind, x)["1"].receptive_field == (7, 7)
    chain = nn.Sequential(
        nn.Conv2d(1, 1, (3, 5), stride=(2, 1)), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, dilation=2)
    )
    fields = [row.receptive_field for row in summarize(chain, torch.rand(1, 1, 40, 40))]
    assert fields == [(3, 5), (5, 6), (5 + 4 * 4, 6 + 4 * 2)]


def test_a_residual_block_sees_through_its_longer_branch():
    rows = by_path(models.Residual(4, True, 2, in_channels=3), torch.rand(1, 3, 8, 8))
    assert rows["conv3"].receptive_field == (1, 1)
    assert rows["bn2"].receptive_field == (7, 7)


def test_the_head_sees_everything_and_linear_layers_nothing():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    fields = [row.receptive_field for row in summarize(net, torch.rand(1, 1, 8, 8))]
    assert fields == [(3, 3), (8, 8), None, None]


def test_algorithms():
    net = d2lfast.nn.Sequential(
        d2lfast.nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), d2lfast.nn.MaxPool2d(2)
    )
    assert [row.algorithm for row in summarize(net, torch.rand(1, 1, 12, 12))][1:] == [
        "in 0",
        "torch",
        "direct",
    ]


def test_tied_layers_and_layers_that_run_twice():
    net = models.builders_guide.tied_mlp()
    net(torch.rand(2, 4))
    rows = by_path(net, torch.rand(2, 4))
    assert rows["2"].calls == 2
    assert rows["2"].macs == 2 * 2 * 64
    assert rows["2"].parameters == 72
    assert summarize(net, torch.rand(2, 4)).parameters == 40 + 72 + 9


def test_products_without_layers_count():
    rows = by_path(
        models.RNNLMScratch(models.recurrent_scratch.RNNScratch(28, 32), 28), torch.zeros(1, 3).long()
    )
    assert rows["rnn"].macs == 3 * (28 + 32) * 32
    assert rows[""].macs == 3 * 32 * 28
    toy = summarize(models.ToyLeNet(), torch.rand(1, 1, 28, 28))
    assert toy.macs == 26 * 26 * 20 * 9 + 9 * 9 * 50 * 500 + 800 * 128 + 1280


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers(kind):
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    layer = getattr(d2lfast.nn, kind)(5, 7, num_layers=2, bidirectional=True)
    (row,) = summarize(layer, torch.rand(3, 2, 5))
    assert row.macs == 3 * 2 * 2 * gates * 7 * ((5 + 7) + (14 + 7))
    assert row.output == (3, 2, 14)


def test_the_model_stays_as_it_was():
    model = models.BNLeNet().train()
    model.net[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summarize(model, torch.rand(1, 1, 28, 28))
    assert model.training
    assert not model.net[1].training
    assert model.net[2].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["summary", *arguments], env={"COLUMNS": "160"})

    def test_table(self, monkeypatch):
        result = self.run("lenet")
        assert result.exit_code == 0, result.output
        assert "61,706 parameters, 416,520 multiply-adds" in result.output.replace("\n", " ")
        assert "16x16" in result.output

    def test_another_input(self):
        result = self.run("alexnet", "--input", "2x3x96x96")
        assert result.exit_code == 0, result.output
        assert "2x96x22x22" in result.output

    def test_list(self):
        result = self.run("list")
        assert result.exit_code == 0, result.output
        assert all(name in result.output for name in models.registry.NETWORKS)

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["resnet81"], 2, "perhaps resnet18"),
            (["lenet", "--input", "1x28x28"], 2, "such as 1x1x28x28"),
            (["lenet", "--input", "ax1x28x28"], 2, "such as 1x1x28x28"),
            (["lenet", "--input", "1x1x0x28"], 2, "such as 1x1x28x28"),
            (["lenet", "--input", "1x1x40x40"], 1, "lenet does not take an input of 1x1x40x40"),
        ],
    )
    def test_wrong_use(self, arguments, code, message):
        result = self.run(*arguments)
        assert result.exit_code == code
        assert message in result.output
