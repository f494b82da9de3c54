"""Linear and softmax regression, multilayer perceptrons, dropout, sigmoids."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2lfast import models
from d2lfast.models import mlp, softmax
from d2lfast.models.registry import NETWORKS
from d2lfast.models.sigmoids import SIGMOIDS

TRUE_W, TRUE_B = torch.tensor([[2.0], [-3.4]]), 4.2


def regression_data(examples=1000):
    X = torch.randn(examples, 2)
    return X, X @ TRUE_W + TRUE_B + 0.01 * torch.randn(examples, 1)


def test_closed_form_is_the_normal_equations():
    X, y = (t.double() for t in regression_data(50))
    w, b = models.closed_form(X, y)
    assert w.shape == (2, 1)
    assert b.shape == (1,)
    ones = torch.cat((X, torch.ones(50, 1, dtype=torch.double)), 1)
    torch.testing.assert_close(torch.cat((w, b[None])), torch.linalg.inv(ones.T @ ones) @ ones.T @ y)
    torch.testing.assert_close(w.float(), TRUE_W, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["linear-scratch", "linear"])
def test_linear_regression_finds_the_line(name):
    network = NETWORKS[name]
    model = network.build(seed=0)
    X, y = regression_data()
    optimizer = torch.optim.SGD(network.parameter_groups(model), lr=network.lr)
    for _ in range(network.epochs):
        for rows in torch.randperm(len(X)).split(network.batch_size):
            optimizer.zero_grad()
            network.loss(model(X[rows]), y[rows]).backward()
            optimizer.step()
    w, b = (model.w.T, model.b) if name == "linear-scratch" else model.get_w_b()
    torch.testing.assert_close(w.detach(), TRUE_W.T, atol=0.3, rtol=0)
    assert abs(b.item() - TRUE_B) < 0.4


def test_initial_weights_are_small_and_the_bias_zero():
    model = models.LinearRegression(10_000)
    assert model.net.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.net.bias.item() == 0


def test_the_penalty_is_the_optimizers_weight_decay():
    torch.manual_seed(1)
    scratch = models.WeightDecayScratch(200, lambd=3, sigma=0.1)
    network = NETWORKS["weight-decay"]
    concise = network.build()
    with torch.no_grad():
        concise.net.weight.copy_(scratch.w.T)
        concise.net.bias.copy_(scratch.b)
    assert scratch.penalty().item() == pytest.approx(1.5 * scratch.w.square().sum().item())
    optimizers = [
        torch.optim.SGD(scratch.parameters(), lr=network.lr),
        torch.optim.SGD(network.parameter_groups(concise), lr=network.lr),
    ]
    X, y = torch.randn(20, 200), torch.randn(20, 1)
    for _ in range(5):
        losses = [network.loss(scratch(X), y) + scratch.penalty(), network.loss(concise(X), y)]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(scratch.w.T, concise.net.weight)
    torch.testing.assert_close(scratch.b, concise.net.bias)


def test_parameter_groups_spare_the_bias():
    groups = NETWORKS["weight-decay"].parameter_groups(NETWORKS["weight-decay"].build())
    assert [group.get("weight_decay", 0) for group in groups] == [3, 0]
    assert [[p.dim() for p in group["params"]] for group in groups] == [[2], [1]]


def test_logistic_regression_separates():
    network = NETWORKS["logistic"]
    model = network.build(seed=0)
    (X,), y = network.example(256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        loss = network.loss(model(X), y)
        loss.backward()
        optimizer.step()
    assert ((model.probability(X) > 0.5) == (y > 0.5)).float().mean() > 0.97
    torch.testing.assert_close(F.binary_cross_entropy(model.probability(X), y), network.loss(model(X), y))


def test_softmax_and_cross_entropy():
    X = torch.randn(3, 5) * 4
    torch.testing.assert_close(softmax.softmax(X), torch.softmax(X, 1))
    assert softmax.softmax(X + 1e4).isfinite().all()
    y_hat = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
    assert softmax.cross_entropy(y_hat, torch.tensor([0, 2])).item() == pytest.approx(1.4979, abs=1e-4)


def test_scratch_and_concise_softmax_regression_agree():
    scratch, concise = models.SoftmaxRegressionScratch(), models.SoftmaxRegression()
    with torch.no_grad():
        concise.net[1].weight.copy_(scratch.W.T)
        concise.net[1].bias.copy_(scratch.b)
    X, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 3, 9, 3])
    torch.testing.assert_close(scratch(X), torch.softmax(concise(X), 1))
    torch.testing.assert_close(softmax.cross_entropy(scratch(X), y), F.cross_entropy(concise(X), y))


def test_scratch_and_concise_mlps_agree():
    X = torch.rand(4, 1, 28, 28)
    scratch, concise = models.MLPScratch(784, 10, 32), models.MLP(10, 32)
    with torch.no_grad():
        for index, (W, b) in ((1, (scratch.W1, scratch.b1)), (3, (scratch.W2, scratch.b2))):
            concise.net[index].weight.copy_(W.T)
            concise.net[index].bias.copy_(b)
    torch.testing.assert_close(scratch(X), concise(X))
    deep, flat = models.DropoutMLPScratch(), models.DropoutMLP()
    for index, layer in ((1, deep.lin1), (4, deep.lin2), (7, deep.lin3)):
        flat.net[index].load_state_dict(layer.state_dict())
    torch.testing.assert_close(deep.eval()(X), flat.eval()(X))
    assert not torch.equal(deep.train()(X), deep(X))


@pytest.mark.parametrize(
    "kind", [models.MLP, models.DropoutMLP, models.DropoutMLPScratch, models.SoftmaxRegression]
)
def test_the_input_size_may_be_left_open(kind):
    assert kind(num_inputs=None)(torch.rand(2, 3, 4)).shape == (2, 10)


def test_dropout_layer():
    X = torch.arange(16.0).reshape(2, 8) + 1
    assert torch.equal(mlp.dropout_layer(X, 0.0), X)
    assert torch.equal(mlp.dropout_layer(X, 1.0), torch.zeros_like(X))
    half = mlp.dropout_layer(X, 0.5)
    assert set((half / X).unique().tolist()) <= {0.0, 2.0}
    kept = mlp.dropout_layer(torch.ones(100_000), 0.2)
    assert kept.mean().item() == pytest.approx(1, abs=0.01)
    assert (kept == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            mlp.dropout_layer(X, wrong)


def test_relu():
    X = torch.tensor([-1.0, 0.0, 2.0])
    assert torch.equal(mlp.relu(X), F.relu(X))


@pytest.mark.parametrize("name", SIGMOIDS)
def test_sigmoids_are_monotone_odd_and_saturate(name):
    function = SIGMOIDS[name]
    x = torch.linspace(-6, 6, 101, dtype=torch.double)
    y = function(x) if name != "logistic" else 2 * function(2 * x) - 1
    assert (y.diff() > 0).all()
    torch.testing.assert_close(y, -y.flip(0))
    assert y.abs().max() < 1
    zero = torch.zeros((), dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(function(zero), zero)
    assert slope.item() == pytest.approx(0.25 if name == "logistic" else 1)


def test_layers_without_activation_collapse():
    linear = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    x = torch.randn(4, 3)
    W = linear[1].weight @ linear[0].weight
    torch.testing.assert_close(linear(x), x @ W.T + linear(torch.zeros(1, 3)))
