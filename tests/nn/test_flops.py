"""`torch.utils.flop_counter` counts d2lfast's operators as torch's."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import d2lfast
from d2lfast.nn import functional

pytestmark = pytest.mark.cpu


def counted(call, training=True):
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = call()
        while not isinstance(output, torch.Tensor):
            output = output[0]
        if training:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wants_input", [False, True])
def test_convolutions(training, wants_input):
    x = torch.randn(2, 3, 9, 9, requires_grad=wants_input)
    options = {"stride": 2, "padding": 1}
    found, wanted = (
        counted(lambda layers=layers: layers.Conv2d(3, 6, 3, **options)(x), training)
        for layers in (d2lfast.nn, nn)
    )
    assert found == wanted == 2 * 2 * 6 * 25 * 27 * (1 + training * (1 + wants_input))


def test_groups():
    """torch counts the weight's gradient as if it were dense."""
    x = torch.randn(2, 6, 5, 5)
    found = counted(lambda: d2lfast.nn.Conv2d(6, 6, 3, groups=3)(x))
    assert found == 2 * (2 * 2 * 6 * 9 * 2 * 9)


def test_linear():
    x, weight = torch.randn(4096, 8), torch.randn(6, 8, requires_grad=True)
    found, wanted = (counted(lambda f=f: f.linear(x, weight)) for f in (functional, nn.functional))
    assert found == wanted > 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wants_input", [False, True])
@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(kind, training, wants_input):
    x, h = torch.randn(3, 4, requires_grad=wants_input), torch.randn(3, 5, requires_grad=wants_input)
    state = (h, h.detach()) if kind == "LSTMCell" else h
    found, wanted = (
        counted(lambda layers=layers: getattr(layers, kind)(4, 5)(x, state), training)
        for layers in (d2lfast.nn, nn)
    )
    assert found == wanted > 0


@pytest.mark.parametrize("wants_input", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_layers(kind, wants_input):
    x = torch.randn(7, 3, 4, requires_grad=wants_input)
    h = torch.randn(2, 3, 5, requires_grad=wants_input)
    for arguments in ((x,), (x, h), (x, h.detach())):
        found, wanted = (
            counted(lambda layers=layers, arguments=arguments: getattr(layers, kind)(4, 5, 2)(*arguments))
            for layers in (d2lfast.nn, nn)
        )
        assert found == wanted > 0


def test_lstm():
    """Of torch's, which oneDNN computes, nothing is counted."""
    x, tokens = torch.randn(7, 3, 4, requires_grad=True), torch.randint(4, (7, 3))
    product, recurrent, first_step = 2 * 21 * 20 * 4, 2 * 21 * 20 * 5, 2 * 3 * 20 * 5
    assert counted(lambda: d2lfast.nn.LSTM(4, 5)(x), training=False) == product + recurrent
    assert counted(lambda: d2lfast.nn.LSTM(4, 5)(x)) == 3 * (product + recurrent) - first_step
    assert counted(lambda: d2lfast.nn.LSTM(4, 5)(tokens)) == 3 * recurrent - first_step


def test_projected_layers():
    x = torch.randn(7, 3, 4)
    products = 2 * 21 * (20 * 4 + 20 * 2 + 2 * 5)
    assert counted(lambda: d2lfast.nn.LSTM(4, 5, proj_size=2)(x), training=False) == products
