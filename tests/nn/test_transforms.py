"""Layers and functions under `torch.func` and forward-mode differentiation: as torch's own."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

import d2lfast
from d2lfast.nn import functional, unfused

LAYERS = (
    ("Conv2d", (4, 6, 3), {"groups": 2, "padding": 1}, (3, 4, 6, 6)),
    ("Conv2d", (4, 6, 2), {"padding": "same", "padding_mode": "reflect"}, (3, 4, 6, 6)),
    ("BatchNorm1d", (5,), {"track_running_stats": False}, (4, 5)),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, (3, 4, 5, 5)),
    ("MaxPool2d", (2,), {}, (3, 4, 6, 6)),
    ("AvgPool2d", (3, 2), {"padding": 1}, (3, 4, 6, 6)),
    ("AdaptiveAvgPool2d", ((2, None),), {}, (3, 4, 6, 6)),
    ("AdaptiveMaxPool2d", (2,), {}, (3, 4, 6, 6)),
    ("RNNCell", (4, 5), {}, (3, 4)),
    ("GRUCell", (4, 5), {}, (3, 4)),
    ("LSTMCell", (4, 5), {}, (3, 4)),
    ("RNN", (4, 5), {"num_layers": 2}, (6, 3, 4)),
    ("GRU", (4, 5), {"bidirectional": True}, (6, 3, 4)),
    ("LSTM", (4, 5), {"batch_first": True}, (3, 6, 4)),
)
each_layer = pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"), LAYERS, ids=[f"{layer[0]}-{i}" for i, layer in enumerate(LAYERS)]
)


def twins(name, args, kwargs):
    made = []
    for nn in (d2lfast.nn, torch.nn):
        torch.manual_seed(3)
        made.append(getattr(nn, name)(*args, **kwargs).double())
    return made


def first(output):
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def of_parameters(layer, x):
    """The layer as a function of its parameters, and these."""
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    return (lambda values, x=x: first(functional_call(layer, values, (x,)))), parameters


def forward(layer, x):
    return jvp(lambda x: first(layer(x)), (x,), (x.cos(),))


def forward_over_parameters(layer, x):
    function, parameters = of_parameters(layer, x)
    return jvp(function, (parameters,), ({name: p.cos() for name, p in parameters.items()},))


def gradients(layer, x):
    function, parameters = of_parameters(layer, x)
    return grad(lambda values, x: function(values, x).square().sum(), argnums=(0, 1))(parameters, x)


def of_each_sample(layer, x):
    function, parameters = of_parameters(layer, x)
    one = grad(lambda values, x: function(values, x).square().sum())
    return vmap(one, in_dims=(None, 0))(parameters, torch.stack([x, x.sin()]))


def jacobian(layer, x):
    return jacrev(lambda x: first(layer(x)))(x)


def second_derivatives(layer, x):
    return hessian(lambda x: first(layer(x)).square().sum())(x)


def batched_gradients(layer, x):
    x = x.clone().requires_grad_()
    output = first(layer(x))
    several = torch.stack([output.detach().sin(), output.detach().cos()])
    return torch.autograd.grad(output, [x, *layer.parameters()], several, is_grads_batched=True)


def outcome(transform, layer, x):
    try:
        return transform(layer, x)
    except (RuntimeError, NotImplementedError) as error:
        return type(error)


@each_layer
@pytest.mark.parametrize(
    "transform",
    [
        forward,
        forward_over_parameters,
        gradients,
        of_each_sample,
        jacobian,
        second_derivatives,
        batched_gradients,
    ],
    ids=lambda transform: transform.__name__,
)
def test_layers(transform, name, args, kwargs, shape):
    ours, native = twins(name, args, kwargs)
    x = torch.randn(shape, dtype=torch.float64)
    wanted = outcome(transform, native, x)
    found = outcome(transform, ours, x)
    if isinstance(wanted, type):
        # torch's recurrent layers have no rule for batches, and pooling has no parameters.
        assert name[:3] in ("RNN", "GRU", "LST") or transform is forward_over_parameters
        assert found is wanted or not isinstance(found, type)
    else:
        torch.testing.assert_close(found, wanted)


@each_layer
def test_dual_numbers(name, args, kwargs, shape):
    ours, native = twins(name, args, kwargs)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        pairs = [forward_ad.unpack_dual(first(layer(dual))) for layer in (ours, native)]
        assert pairs[0].tangent is not None
        torch.testing.assert_close(*pairs)


def test_an_ensemble():
    def model(nn):
        torch.manual_seed(5)
        layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), torch.nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)
        return nn.Sequential(*layers).double().eval()

    def ensemble(nn, x):
        models = [model(nn) for _ in range(3)]
        with torch.no_grad():
            for index, one in enumerate(models):
                one[0].weight.mul_(index + 1)
        stacked = stack_module_state(models)
        result = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(*stacked)
        torch.testing.assert_close(result[2], models[2](x))
        return result

    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ensemble(d2lfast.nn, x), ensemble(torch.nn, x))


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("transform", [forward, gradients], ids=lambda transform: transform.__name__)
@pytest.mark.parametrize("name", ["BatchNormAct2d", "Conv2dAct"])
def test_fused_layers(name, transform, with_residual):
    layers = []
    for nn in (d2lfast.nn, unfused):
        torch.manual_seed(3)
        args = (4, 4, 1) if name == "Conv2dAct" else (4,)
        layer = getattr(nn, name)(*args, act_layer="tanh").double()
        layers.append(layer.eval())
    x, residual = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)

    def call(layer):
        def forward(x):
            return layer(x, residual) if with_residual else layer(x)

        if transform is gradients:
            return grad(lambda x: forward(x).square().sum())(x)
        return jvp(forward, (x,), (x.cos(),))

    torch.testing.assert_close(call(layers[0]), call(layers[1]))


def test_fused_functions():
    x, residual = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    weight, mean, variance = torch.randn(4, 4, 1, 1).double(), torch.zeros(4).double(), torch.ones(4).double()

    def convolution(x):
        return functional.conv2d(x, weight, activation="tanh", residual=residual)

    def normalisation(x, inplace=False):
        return functional.batch_norm_act(
            x, mean, variance, activation="sigmoid", residual=residual, inplace=inplace
        )

    for function in (convolution, normalisation):
        wanted = torch.autograd.functional.jvp(function, x, x.cos())
        torch.testing.assert_close(jvp(function, (x,), (x.cos(),)), wanted)
    torch.testing.assert_close(jvp(lambda x: normalisation(x, True), (x,), (x.cos(),)), wanted)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_tokens(name):
    ours, native = twins(name, (7, 5), {})
    tokens = torch.randint(7, (6, 3))

    def derivative(layer, x):
        function, parameters = of_parameters(layer, x)
        return grad(lambda values: function(values).square().sum())(parameters)

    rows = torch.nn.functional.one_hot(tokens, 7).double()
    torch.testing.assert_close(derivative(ours, tokens), derivative(native, rows))


@pytest.mark.cpu
def test_a_step_of_generation_keeps_the_tangent():
    layers = twins("GRU", (4, 5), {})
    x, h = torch.randn(1, 1, 4).double(), torch.randn(1, 1, 5).double()
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(h, h.cos())
        found, wanted = (forward_ad.unpack_dual(layer(x, dual)[1]).tangent for layer in layers)
        torch.testing.assert_close(found, wanted)


def test_compiled():
    layer, native = twins("MaxPool2d", (2,), {})
    x = torch.randn(5, 3, 4, 6, 6)
    compiled = torch.compile(vmap(lambda image: layer(image)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.stack([native(image) for image in x]))
    # Outside of the transform it is ours again.
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(layer, fullgraph=True, backend=keep)(x[0])
    assert any("d2lfast" in str(node.target) for node in graphs[0].graph.nodes)
