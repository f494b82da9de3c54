"""Initialisation reaches subclasses and lazy layers."""

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast.models import LeNet, init, init_cnn, initialize
from d2lfast.models.registry import NETWORKS

LAYERS = pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])


@LAYERS
def test_init_cnn_is_xavier_uniform_and_leaves_biases(layers):
    model = LeNet(layers=layers)
    biases = [layer.bias.clone() for layer in model.net if hasattr(layer, "bias")]
    model.apply(init_cnn)
    for index, bound in ((3, (6 / (6 * 25 + 16 * 25)) ** 0.5), (7, (6 / 520) ** 0.5)):
        weight = model.net[index].weight
        assert 0.98 * bound < weight.abs().max() <= bound
        torch.testing.assert_close(weight.std().item(), bound / 3**0.5, rtol=0.05, atol=0)
    after = [layer.bias for layer in model.net if hasattr(layer, "bias")]
    assert all(torch.equal(*pair) for pair in zip(biases, after, strict=True))


@pytest.mark.parametrize(
    "function", [init_cnn, init.init_seq2seq, init.init_xavier, init.init_42, init.my_init]
)
def test_subclasses_count_and_lazy_layers_wait(function):
    class Mine(nn.Linear):
        pass

    layer = Mine(1000, 10)
    before = layer.weight.clone()
    function(layer)
    assert not torch.equal(layer.weight, before)
    lazy = d2lfast.nn.LazyConv2d(4, 3)
    lazy.apply(function)
    nn.LazyLinear(5).apply(function)
    assert isinstance(lazy.weight, nn.parameter.UninitializedParameter)


@LAYERS
def test_initialize_runs_lazy_layers_first_and_leaves_no_trace(layers):
    model = layers.Sequential(
        layers.LazyConv2d(4, 3),
        layers.LazyBatchNorm2d(),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.LazyLinear(5),
    )
    returned = initialize(model, torch.rand(2, 3, 6, 6), init=init.init_normal)
    assert returned is model
    assert all(module.training for module in model.modules())
    assert type(model[0]) is layers.Conv2d
    assert model[4].weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert all(p.grad is None for p in model.parameters())


def test_init_seq2seq_reaches_gru_weights_and_the_output_layer():
    model = NETWORKS["seq2seq"].build(embed_size=16, num_hiddens=24)
    bound = (6 / (24 + 72)) ** 0.5
    assert 0.95 * bound < model.encoder.rnn.rnn.weight_hh_l0.abs().max() <= bound
    bound = (6 / (24 + 214)) ** 0.5
    assert 0.95 * bound < model.decoder.dense.weight.abs().max() <= bound


def test_my_init():
    layer = nn.Linear(100, 100)
    init.my_init(layer)
    sizes = layer.weight.abs()
    assert ((sizes == 0) | ((sizes >= 5) & (sizes <= 10))).all()
    assert (sizes == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_init_normal_constant_and_42():
    layer = nn.Linear(200, 100)
    init.init_normal(layer)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert layer.bias.abs().max() == 0
    init.init_constant(layer)
    assert (layer.weight == 1).all()
    init.init_42(layer)
    assert (layer.weight == 42).all()
    init.init_constant(nn.Linear(3, 2, bias=False))


def test_equal_seeds_build_equal_twins_and_leave_the_generator():
    network = NETWORKS["bn-lenet"]
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    ours, native = network.build(seed=4), network.build(seed=4, layers=nn)
    assert torch.equal(torch.rand(1), before)
    for a, b in zip(ours.parameters(), native.parameters(), strict=True):
        assert torch.equal(a, b)
