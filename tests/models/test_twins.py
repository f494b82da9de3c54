"""Every network against its native twin: outputs, gradients, buffers, a curve of losses, state_dict."""

import copy

import pytest
import torch
from torch import nn

from d2lfast.models.registry import NETWORKS

# Smaller images where the architecture has room for them: a batch and the image's size.
SMALLER = {
    "alexnet": (2, 96),
    "vgg11": (2, 32),
    "vgg11-small": (2, 32),
    "nin": (2, 80),
    "googlenet": (2, 48),
    "resnet18": (4, 48),
    "resnet18-small": (8, 20),
    "resnext": (8, 64),
    "densenet": (4, 48),
    "regnetx32": (4, 48),
}
# Deep normalised networks magnify rounding: they learn slowly here, and their gradients may differ more.
DEEP = ("resnet18", "resnext", "densenet", "regnetx32", "resnet18-small")
LAYERS = {f"d2lfast.nn.{name}" for name in ("batchnorm", "conv", "pooling", "recurrent_layers")}
ALL = pytest.mark.parametrize("name", NETWORKS)


def twins_of(name):
    """The entry of the registry, its twins and a batch."""
    network = NETWORKS[name]
    batch, size = SMALLER.get(name, (4, network.resize))
    shape = network.shape if network.resize is None else (1, size, size)
    return network, *network.twins(**network.sizes_for(shape)), network.example(batch, shape)


def wide(tensors):
    return [t.double() if t.is_floating_point() else t for t in tensors]


def gradients(network, model, inputs, target):
    """The output in training, the gradients of all parameters in a row, and the buffers behind it."""
    output = model(*inputs)
    network.loss(output, target).backward()
    return output.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), list(model.buffers())


def off(value, reference):
    """The distance of two tensors, or of two lists of them, relative to the reference's length."""
    if isinstance(reference, list):
        return max((off(*pair) for pair in zip(value, reference, strict=True)), default=0.0)
    distance = (value.double() - reference.double()).norm()
    return (distance / reference.double().norm().clamp_min(1e-30)).item()


def without_dropout(model):
    for module in model.modules():
        for name in ("p", "dropout", "dropout_1", "dropout_2"):
            if hasattr(module, name):
                setattr(module, name, 0.0)


@ALL
def test_outputs_gradients_and_buffers(name):
    network, ours, native, (inputs, target) = twins_of(name)
    # Masks differ between dtypes; the test of the curves has dropout.
    without_dropout(ours)
    without_dropout(native)
    with torch.no_grad():
        assert off(ours.eval()(*inputs), native.eval()(*inputs)) < 1e-5
    ours.train()
    native.train()
    exact_ours, exact_native = copy.deepcopy(ours).double(), copy.deepcopy(native).double()
    exact = gradients(network, exact_native, wide(inputs), *wide([target]))
    for mine, theirs in zip(
        gradients(network, exact_ours, wide(inputs), *wide([target])), exact, strict=True
    ):
        assert off(mine, theirs) < 1e-10
    output, gradient, buffers = gradients(network, ours, inputs, target)
    assert off(output, exact[0]) < 1e-4
    assert off(buffers, exact[2]) < 1e-4
    # Rounding may carry a value across the kink of a ReLU, which moves the gradient by a step.
    assert off(gradient, exact[1]) < (5e-2 if name in DEEP else 1e-3)


def train(network, model, inputs, target, lr):
    """The losses of 20 steps."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = network.loss(model(*inputs), target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@ALL
def test_learns_like_its_twin(name):
    network, ours, native, (inputs, target) = twins_of(name)
    lr = 0.001 if name in DEEP else min(network.lr, 0.02)
    exact = copy.deepcopy(native).double() if name in DEEP else None
    curves = [train(network, model, inputs, target, lr) for model in (ours, native)]
    assert curves[1].isfinite().all()
    assert curves[1].std() > 0
    if exact is None:
        torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-4)
    else:
        # Steps magnify rounding, torch's too: ours may be about as far from the exact curve.
        reference = train(network, exact, wide(inputs), *wide([target]), lr)
        far, native_far = (((curve - reference) / reference).abs().max() for curve in curves)
        assert far < max(2e-3, 5 * native_far)
    with torch.no_grad():
        assert off(ours.eval()(*inputs), native.eval()(*inputs)) < (5e-2 if name in DEEP else 1e-2)


@ALL
def test_parameters_go_both_ways(name):
    _, ours, native, _ = twins_of(name)
    for source, target in ((ours, native), (native, ours)):
        with torch.no_grad():
            for value in source.state_dict().values():
                value.add_(1)
        state = source.state_dict()
        assert [(key, value.shape) for key, value in state.items()] == [
            (key, value.shape) for key, value in target.state_dict().items()
        ]
        target.load_state_dict(state)
        for value, copied in zip(state.values(), target.state_dict().values(), strict=True):
            assert torch.equal(value, copied)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.resize])
def test_channels_last_and_autocast(name):
    network, ours, _, (inputs, target) = twins_of(name)
    (images,) = inputs
    with torch.no_grad():
        expected = ours.eval()(images)
        ours.to(memory_format=torch.channels_last)
        assert off(ours(images.contiguous(memory_format=torch.channels_last)), expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        output = ours.train()(images)
    assert output.shape == expected.shape
    network.loss(output.float(), target).backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


# What is written from scratch looks at its tensors.
@pytest.mark.parametrize(
    "name", [name for name, network in NETWORKS.items() if network.resize and "scratch" not in name]
)
def test_symbolic_trace(name):
    _, ours, _, (inputs, _) = twins_of(name)
    graph = torch.fx.symbolic_trace(ours.eval())
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    layers = {path for path, module in ours.named_modules() if type(module).__module__ in LAYERS}
    assert layers <= called
    with torch.no_grad():
        assert off(graph(*inputs), ours(*inputs)) < 1e-6


@pytest.mark.parametrize("name", ["bn-lenet", "googlenet", "resnext", "gru", "deep-rnn-scratch", "seq2seq"])
def test_exports(name):
    _, ours, _, (inputs, _) = twins_of(name)
    with torch.no_grad():
        expected = ours.eval()(*inputs)
        assert torch.equal(torch.export.export(ours, tuple(inputs)).module()(*inputs), expected)
