import pytest
import torch
from torch import nn

import d2lfast
from d2lfast.models import BNLeNet, LeNet, bn_lenet, init_cnn, lenet

# Kind and output shape of every layer for a 28x28 image, as in the book.
LENET = [
    ("Conv2d", (6, 28, 28)),
    ("Sigmoid", (6, 28, 28)),
    ("AvgPool2d", (6, 14, 14)),
    ("Conv2d", (16, 10, 10)),
    ("Sigmoid", (16, 10, 10)),
    ("AvgPool2d", (16, 5, 5)),
    ("Flatten", (400,)),
    ("Linear", (120,)),
    ("Sigmoid", (120,)),
    ("Linear", (84,)),
    ("Sigmoid", (84,)),
    ("Linear", (10,)),
]
BN_LENET = [
    ("Conv2d", (6, 24, 24)),
    ("BatchNorm2d", (6, 24, 24)),
    ("Sigmoid", (6, 24, 24)),
    ("AvgPool2d", (6, 12, 12)),
    ("Conv2d", (16, 8, 8)),
    ("BatchNorm2d", (16, 8, 8)),
    ("Sigmoid", (16, 8, 8)),
    ("AvgPool2d", (16, 4, 4)),
    ("Flatten", (256,)),
    ("Linear", (120,)),
    ("BatchNorm1d", (120,)),
    ("Sigmoid", (120,)),
    ("Linear", (84,)),
    ("BatchNorm1d", (84,)),
    ("Sigmoid", (84,)),
    ("Linear", (10,)),
]
NETWORKS = [(LeNet, lenet, LENET, 61_706), (BNLeNet, bn_lenet, BN_LENET, 44_878)]
LAYERS = pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])
ALL = pytest.mark.parametrize(("kind", "build", "book", "parameters"), NETWORKS, ids=["lenet", "bn_lenet"])


@ALL
@LAYERS
def test_has_the_layers_and_sizes_of_the_book(kind, build, book, parameters, layers):
    model = build(layers=layers)
    assert type(model) is kind
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = torch.rand(3, 1, 28, 28)
    for layer, (name, shape) in zip(model.net, book, strict=True):
        x = layer(x)
        assert type(layer) is getattr(layers, name)
        assert x.shape == (3, *shape)


@ALL
def test_twins_agree_through_training_steps(kind, build, book, parameters):
    torch.manual_seed(0)
    ours, native = build(), build(layers=nn)
    assert list(ours.state_dict()) == list(native.state_dict())
    native.load_state_dict(ours.state_dict())
    x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, native)]
    for _ in range(3):
        losses = []
        for model, optimizer in zip((ours, native), optimizers):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours.parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    ours.eval()
    native.eval()
    torch.testing.assert_close(ours(x), native(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("build", [lenet, bn_lenet])
def test_other_channels_and_classes(build):
    assert build(7, 3)(torch.rand(2, 3, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])
def test_init_cnn_is_xavier_uniform_and_leaves_biases(layers):
    torch.manual_seed(0)
    model = lenet(layers=layers)
    biases = [layer.bias.clone() for layer in model.net if hasattr(layer, "bias")]
    model.apply(init_cnn)
    for index, bound in ((3, (6 / (6 * 25 + 16 * 25)) ** 0.5), (7, (6 / 520) ** 0.5)):
        weight = model.net[index].weight
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound
        torch.testing.assert_close(weight.std().item(), bound / 3**0.5, rtol=0.05, atol=0)
    after = [layer.bias for layer in model.net if hasattr(layer, "bias")]
    assert all(torch.equal(*pair) for pair in zip(biases, after, strict=True))


def test_init_cnn_takes_subclasses_and_leaves_lazy_layers():
    class Mine(nn.Linear):
        pass

    torch.manual_seed(0)
    layer = Mine(1000, 10)
    init_cnn(layer)
    assert layer.weight.abs().max() > (6 / 1010) ** 0.5 * 0.98
    lazy = nn.Sequential(d2lfast.nn.LazyConv2d(4, 3), nn.LazyLinear(5))
    lazy.apply(init_cnn)
    assert isinstance(lazy[0].weight, nn.parameter.UninitializedParameter)


def test_init_cnn_draws_the_same_for_both_twins():
    weights = []
    for layers in (d2lfast.nn, nn):
        torch.manual_seed(5)
        model = lenet(layers=layers)
        model.apply(init_cnn)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
