"""Numbers that the book prints, and facts that its text states."""

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast import book as d2l
from d2lfast import models


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_courses_sigmoids(shape):
    for name, function in models.sigmoids.SIGMOIDS.items():
        x = torch.linspace(-40, 40, 81, dtype=torch.float64)
        y = function(x)
        assert y.shape == x.shape, name
        assert (y.diff() >= 0).all(), name
        assert function(torch.zeros(shape)).shape == shape
    assert len(models.sigmoids.SIGMOIDS) == 7


def test_softmax_and_cross_entropy():
    X = torch.rand(2, 5) * 100
    probabilities = d2l.softmax(X)
    torch.testing.assert_close(probabilities, X.softmax(1))
    y, y_hat = torch.tensor([0, 2]), torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
    assert d2l.cross_entropy(y_hat, y).item() == pytest.approx(1.4979, abs=1e-4)


def test_dropout():
    X = torch.arange(16.0).reshape(2, 8)
    assert torch.equal(d2l.dropout_layer(X, 0.0), X)
    half = d2l.dropout_layer(X, 0.5)
    assert ((half == 0) | (half == 2 * X)).all()
    assert not d2l.dropout_layer(X, 1.0).any()
    whole = d2lfast.nn.Dropout2d(0.5)(torch.ones(8, 8, 4, 4)).flatten(2)
    assert (whole.amax(2) == whole.amin(2)).all()


def test_blocks():
    assert d2l.DenseBlock(2, 10)(torch.rand(4, 3, 8, 8)).shape == (4, 23, 8, 8)
    assert d2l.transition_block(10)(torch.rand(4, 23, 8, 8)).shape == (4, 10, 4, 4)
    assert d2l.Residual(3)(torch.rand(4, 3, 6, 6)).shape == (4, 3, 6, 6)
    assert d2l.Residual(6, use_1x1conv=True, strides=2)(torch.rand(4, 3, 6, 6)).shape == (4, 6, 3, 3)
    assert d2l.ResNeXtBlock(32, 16, 1)(torch.rand(4, 32, 12, 12)).shape == (4, 32, 12, 12)
    assert d2l.ShortCut(3, 10, 2)(torch.rand(2, 3, 9, 9)).shape == (2, 10, 5, 5)
    assert d2l.vgg_block(2, 8)(torch.rand(1, 3, 8, 8)).shape == (1, 8, 4, 4)
    assert d2l.nin_block(8, 3, 1, 1)(torch.rand(1, 3, 8, 8)).shape == (1, 8, 8, 8)
    assert models.CourseInception(10)(torch.rand(1, 10, 12, 12)).shape == (1, 88, 12, 12)


def test_layer_norm_has_parameters_and_does_not_look_at_the_batch():
    norm, X = d2lfast.nn.LayerNorm(6), torch.rand(4, 6)
    assert len(list(norm.parameters())) == 2
    torch.testing.assert_close(norm(X)[1:2], norm(X[1:2]))


def test_batch_norm_keeps_the_biased_variance_torch_the_unbiased():
    ours, native = d2l.BatchNorm(1, num_dims=2), nn.BatchNorm1d(1, momentum=None)
    X = torch.tensor([[0.0], [2.0]])
    torch.testing.assert_close(ours(X), native(X))
    assert ours.moving_var.item() == pytest.approx(0.9 + 0.1 * 1.0)
    assert native.running_var.item() == pytest.approx(2.0)


def test_recurrent_shapes():
    outputs, state = d2l.RNNScratch(16, 32)(torch.ones(100, 2, 16))
    assert len(outputs) == 100
    assert outputs[0].shape == state.shape == (2, 32)
    again, _ = d2l.RNNScratch(16, 32)(torch.ones(3, 2, 16), state)
    assert again[0].shape == (2, 32)
    X, W_xh = torch.randn(3, 1), torch.randn(1, 4)
    H, W_hh = torch.randn(3, 4), torch.randn(4, 4)
    torch.testing.assert_close(X @ W_xh + H @ W_hh, torch.cat((X, H), 1) @ torch.cat((W_xh, W_hh), 0))


def test_encoder_and_decoder_shapes():
    encoder, decoder = d2l.Seq2SeqEncoder(10, 8, 16, 2), d2l.Seq2SeqDecoder(10, 8, 16, 2)
    X = torch.zeros(4, 9)
    outputs, state = encoder(X)
    d2l.check_shape(outputs, (9, 4, 16))
    d2l.check_shape(state, (2, 4, 16))
    logits, (_, state) = decoder(X, decoder.init_state(encoder(X)))
    d2l.check_shape(logits, (4, 9, 10))
    d2l.check_shape(state, (2, 4, 16))


def test_hello_is_learned():
    torch.manual_seed(3)
    inputs, target = models.hello_example()
    for kind in (models.HelloCell, models.HelloRNN, models.HelloEmbedding):
        model = kind()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert torch.equal(model(inputs).argmax(2), target), kind.__name__


def test_bleu():
    assert d2l.bleu("A B B C D", "A B C D E F", 1) == pytest.approx(
        (4 / 5) ** 0.5 * 2.718281828 ** (1 - 6 / 5)
    )
    assert d2l.bleu("a b", "a b", k=2) == 1
    assert d2l.bleu("c", "a b", k=2) == 0


def test_beam_search_of_one_is_greedy_search():
    torch.manual_seed(0)
    model = models.Seq2Seq(12, 12, 8, 16, 1, 0.0).eval()
    src = torch.randint(12, (3, 5))
    greedy = models.greedy_search(model, src, 6, 1)
    for row, found in zip(greedy.tolist(), models.beam_search(model, src, 6, 1, 2, beam_size=1)):
        assert found[0].tokens == (row[: row.index(2)] if 2 in row else row)
    assert len(models.beam_search(model, src, 6, 1, 2, beam_size=3)[0]) == 3


class TestBuildersGuide:
    def test_blocks(self):
        X = torch.rand(2, 20)
        net = d2l.MySequential(nn.LazyLinear(256), nn.ReLU(), nn.LazyLinear(10))
        assert net(X).shape == (2, 10)
        assert next(net.children()).weight.shape == (256, 20)
        assert d2l.NestMLP()(X).shape == (2, 16)
        fixed = d2l.FixedHiddenMLP()
        assert fixed(X).dim() == 0
        assert "rand_weight" in fixed.state_dict()
        assert d2l.CenteredLayer()(X).mean().abs() < 1e-6
        assert d2l.MyLinear(5, 3)(torch.rand(2, 5)).shape == (2, 3)

    def test_initialisation(self):
        layer = nn.Linear(200, 100)
        d2l.init_normal(layer)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()
        d2l.init_constant(layer)
        assert (layer.weight == 1).all()
        d2l.my_init(layer)
        assert ((layer.weight == 0) | (layer.weight.abs() >= 5)).all()
        assert (layer.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        d2l.init_42(layer)
        assert (layer.weight == 42).all()
