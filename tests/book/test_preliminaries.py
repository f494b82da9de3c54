"""What chapters 2 to 6 and the course's notes state of derivatives, losses, activations and embeddings."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

import d2lfast
from d2lfast import book as d2l
from d2lfast import models
from d2lfast.training.workload import perplexity


def test_linear_algebra():
    A, B = d2l.reshape(d2l.arange(6.0), (2, 3)), d2l.ones((2, 3))
    x = d2l.tensor([1.0, 0.0, 2.0])
    assert (A * B).tolist() == A.tolist()
    assert d2l.torch.mv(A, x).tolist() == (A @ x).tolist() == [4, 13]
    assert d2l.matmul(A, B.T).tolist() == d2l.torch.mm(A, B.T).tolist() == [[3, 3], [12, 12]]
    u = d2l.tensor([3.0, -4.0])
    assert d2l.torch.norm(u).item() == pytest.approx(5)
    assert d2l.reduce_sum(d2l.abs(u)).item() == 7
    assert d2l.torch.norm(d2l.ones((4, 9))).item() == pytest.approx(6)


def test_a_vector_sum_is_a_loop_and_faster():
    a, b = torch.randn(2000), torch.randn(2000)
    timer, c = d2l.Timer(), torch.zeros(2000)
    for i in range(2000):
        c[i] = a[i] + b[i]
    loop = timer.stop()
    timer.start()
    whole = a + b
    assert torch.equal(whole, c)
    assert timer.stop() < loop


class TestAutograd:
    """On d2lfast's own operators, whose gradients are written by hand."""

    X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    K = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def test_the_chain_rule(self):
        K = self.K.clone().requires_grad_()
        d2l.corr2d(self.X, K).sigmoid().sum().backward()
        y = d2l.corr2d(self.X, self.K).sigmoid()
        expected = d2l.corr2d(self.X, y * (1 - y))
        torch.testing.assert_close(K.grad, expected)

    def test_the_jacobian_is_the_local_linear_map(self):
        matrix = jacobian(lambda x: d2l.corr2d(x, self.K), self.X)
        assert matrix.shape == (3, 4, 4, 5)
        step = 1e-3 * torch.randn_like(self.X)
        moved = d2l.corr2d(self.X + step, self.K) - d2l.corr2d(self.X, self.K)
        torch.testing.assert_close(torch.einsum("ijkl,kl->ij", matrix, step), moved)

    def test_backward_of_several_values_needs_weights(self):
        K = self.K.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="scalar outputs"):
            d2l.corr2d(self.X, K).backward()
        by_sum = torch.autograd.grad(d2l.corr2d(self.X, K).sum(), K)[0]
        weighted = torch.autograd.grad(d2l.corr2d(self.X, K), K, torch.ones(3, 4, dtype=torch.float64))[0]
        torch.testing.assert_close(weighted, by_sum)

    def test_graphs_are_freed_and_gradients_add_up(self):
        K = self.K.clone().requires_grad_()
        loss = d2l.corr2d(self.X, K).square().sum()
        loss.backward()
        once = K.grad.clone()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        d2l.corr2d(self.X, K).square().sum().backward()
        torch.testing.assert_close(K.grad, 2 * once)
        d2l.SGD([K], lr=0.1).zero_grad()
        assert not K.grad.any()


def test_sigmoids_saturate_and_relu_does_not():
    x = torch.tensor([-30.0, 0.0, 30.0], dtype=torch.float64)
    for name, function in models.sigmoids.SIGMOIDS.items():
        slopes = torch.autograd.functional.jacobian(lambda x, f=function: f(x).sum(), x)
        assert slopes[1] == pytest.approx(0.25 if name == "logistic" else 1), name
        assert slopes[0] < 2e-3, name
        assert slopes[2] < 2e-3, name
        low, high = function(torch.tensor([-1e6, 1e6], dtype=torch.float64)).tolist()
        assert (low, high) == pytest.approx((0 if name == "logistic" else -1, 1), abs=1e-5), name
    assert jacobian(lambda x: d2lfast.nn.ReLU()(x).sum(), x)[2] == 1
    y = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(d2lfast.nn.Tanh()(y), (1 - (-2 * y).exp()) / (1 + (-2 * y).exp()))
    torch.testing.assert_close(d2lfast.nn.Sigmoid()(y), 1 / (1 + (-y).exp()))
    assert torch.equal(d2l.relu(y), y.clamp_min(0))


def test_gradients_vanish_through_sigmoids():
    def first_gradient(activation):
        torch.manual_seed(0)
        layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), activation())]
        net = d2lfast.nn.Sequential(*layers)
        net.apply(d2l.init_cnn)
        net(torch.randn(32, 16)).sum().backward()
        return net[0].weight.grad.norm()

    assert first_gradient(nn.Sigmoid) < 1e-3 * first_gradient(nn.ReLU)


class TestLosses:
    def test_cross_entropy_is_log_softmax_and_the_likelihood(self):
        o, y = torch.randn(6, 5, requires_grad=True), torch.tensor([0, 4, 2, 2, 1, 3])
        loss = d2lfast.nn.CrossEntropyLoss()(o, y)
        torch.testing.assert_close(loss, nn.NLLLoss()(nn.LogSoftmax(1)(o), y))
        torch.testing.assert_close(loss, (o.logsumexp(1) - o[range(6), y]).mean())
        one_hot = F.one_hot(y, 5)
        torch.testing.assert_close(loss, -(one_hot * o.log_softmax(1)).sum(1).mean())
        (gradient,) = torch.autograd.grad(loss, o)
        torch.testing.assert_close(gradient, (o.softmax(1) - one_hot) / 6)

    def test_binary_cross_entropy(self):
        y_hat, y = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1.0, 0.0, 0.0])
        terms = -(y * y_hat.log() + (1 - y) * (1 - y_hat).log())
        torch.testing.assert_close(d2lfast.nn.BCELoss(reduction="mean")(y_hat, y), terms.mean())
        torch.testing.assert_close(d2lfast.nn.BCELoss(reduction="sum")(y_hat, y), terms.sum())

    def test_perplexity(self):
        even = d2lfast.nn.CrossEntropyLoss()(torch.zeros(7, 28), torch.arange(7)).item()
        assert perplexity(even) == pytest.approx(28)
        assert perplexity(0.0) == 1
        assert perplexity(1e4) == float("inf")

    def test_squared_loss(self):
        y_hat, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]])
        assert d2lfast.nn.MSELoss()(y_hat, y).item() == pytest.approx(5)
        assert d2l.squared_loss(y_hat, y).flatten().tolist() == [0.5, 4.5]


def test_an_embedding_is_a_product_with_one_hot_rows():
    table = d2lfast.nn.Embedding(4, 5)
    x = torch.tensor([[1, 0, 2, 2, 3]])
    torch.testing.assert_close(table(x), F.one_hot(x, 4).float() @ table.weight)


def test_layers_without_an_activation_collapse():
    net = d2lfast.nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).double()
    X = torch.randn(5, 6, dtype=torch.float64)
    first, second = net
    one = F.linear(X, second.weight @ first.weight, second.weight @ first.bias + second.bias)
    torch.testing.assert_close(net(X), one)
