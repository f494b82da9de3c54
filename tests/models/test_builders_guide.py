"""Blocks, tied layers, and parameters on disk."""

import copy

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast.models import LeNet
from d2lfast.models import builders_guide as guide

LAYERS = pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])


@LAYERS
def test_lazy_blocks_take_any_width(layers):
    X = torch.rand(2, 20)
    assert guide.BlockMLP(layers=layers)(X).shape == (2, 10)
    assert guide.NestMLP(layers=layers)(X).shape == (2, 16)
    chimera = guide.MySequential(
        guide.NestMLP(layers=layers), nn.Linear(16, 20), guide.FixedHiddenMLP(layers=layers)
    )
    assert chimera(X).shape == ()


def test_lazy_parameters_get_their_shape_at_the_first_batch():
    net = nn.Sequential(d2lfast.nn.LazyLinear(256), nn.ReLU(), d2lfast.nn.LazyLinear(10))
    assert isinstance(net[0].weight, nn.parameter.UninitializedParameter)
    net(torch.rand(2, 20))
    assert net[0].weight.shape == (256, 20)


def test_my_sequential_is_sequential():
    parts = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)]
    mine, native = guide.MySequential(*parts), nn.Sequential(*parts)
    X = torch.rand(5, 3)
    assert torch.equal(mine(X), native(X))
    assert list(mine.state_dict()) == list(native.state_dict())


def test_fixed_weights_stay_and_travel():
    net = guide.FixedHiddenMLP()
    X = torch.rand(2, 20)
    out = net(X)
    assert net.linear(torch.relu(net.linear(X) @ net.rand_weight + 1)).abs().sum() >= out.abs() > 0
    out.backward()
    assert net.rand_weight.grad is None
    assert "rand_weight" in net.state_dict()
    assert "rand_weight" not in dict(net.named_parameters())


def test_centered_and_my_linear():
    layer = guide.CenteredLayer()
    assert torch.equal(layer(torch.tensor([1.0, 2, 3, 4, 5])), torch.tensor([-2.0, -1, 0, 1, 2]))
    assert not list(layer.parameters())
    linear = guide.MyLinear(5, 3)
    X = torch.rand(2, 5)
    torch.testing.assert_close(linear(X), torch.relu(X @ linear.weight + linear.bias))


def test_tied_layers_are_one_and_their_gradients_add_up():
    net = guide.tied_mlp()
    X = torch.rand(2, 4)
    net(X)
    assert net[2] is net[4]
    assert len(list(net.parameters())) == 6
    apart = copy.deepcopy(net)
    apart[4] = copy.deepcopy(apart[2])
    net(X).sum().backward()
    apart(X).sum().backward()
    torch.testing.assert_close(net[2].weight.grad, apart[2].weight.grad + apart[4].weight.grad)


def test_parameters_on_disk(tmp_path):
    path = tmp_path / "lenet.params"
    ours, native = LeNet(), LeNet(layers=nn)
    guide.save_parameters(ours, path)
    assert guide.load_parameters(native, path) is native
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(native(x), ours(x))
    assert [file.name for file in tmp_path.iterdir()] == ["lenet.params"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        guide.load_parameters(LeNet(num_classes=3), path)
    before = path.read_bytes()

    class Broken(nn.Module):
        def state_dict(self, *args, **kwargs):
            return {"a": lambda: 0}

    with pytest.raises(Exception, match=r"pickle|local"):
        guide.save_parameters(Broken(), path)
    assert path.read_bytes() == before
