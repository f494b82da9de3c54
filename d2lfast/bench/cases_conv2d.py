"""Convolutions of the book's networks and of those that came after them."""

from math import prod

from torch import Tensor
from torch.nn import functional as native_functional

from d2lfast.bench.case import ACTIVATIONS, Case, Function, Maker, Reductions, Work
from d2lfast.nn import functional as our_functional


def _native(activation: str, **settings: int) -> Maker:
    def make(parameters, buffers) -> Function:
        weight, bias = parameters[0], parameters[1] if len(parameters) > 1 else None

        def convolve(x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = native_functional.conv2d(x, weight, bias, **settings)
            if residual is not None:
                y += residual
            return y if activation == "none" else ACTIVATIONS[activation](y)

        return convolve

    return make


def _ours(activation: str, **settings: int) -> Maker:
    def make(parameters, buffers) -> Function:
        weight, bias = parameters[0], parameters[1] if len(parameters) > 1 else None

        def convolve(x: Tensor, residual: Tensor | None = None) -> Tensor:
            return our_functional.conv2d(
                x, weight, bias, activation=activation, residual=residual, **settings
            )

        return convolve

    return make


def conv2d_case(
    name: str,
    shape: tuple[int, int, int, int],
    channels: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    bias: bool = False,
    input_grad: bool = True,
    activation: str = "none",
    residual: bool = False,
) -> Case:
    """A convolution; FLOPs are 2 N O H' W' (C / groups) K² a product, of which backward takes one or two.

    Args:
        name: of the case, without the family.
        shape: of the input [N,C,H,W].
        channels: of the output.
        kernel, stride, padding, groups: as in torch.
        bias: with one.
        input_grad: backward gives the gradient of the input too.
        activation: "none", or the epilogue that is fused on our side.
        residual: a second input, of the output's shape, is added before the activation.
    """
    n, c, h, w = shape
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
    weight = (channels, c // groups, kernel, kernel)
    inputs, outputs, weights = prod(shape), n * channels * rows * columns, prod(weight)
    biases = channels if bias else 0
    product = 2 * outputs * (c // groups) * kernel * kernel
    forward = Work(product, inputs + weights + biases + outputs * (2 if residual else 1))
    # Backward reads the output's gradient, the input and, for the input's gradient, the weight; an
    # activation's derivative comes from the saved output, and makes the residual's gradient.
    backward = outputs + inputs + weights + biases + (inputs + weights if input_grad else 0)
    backward += outputs * (2 if residual else 1) if activation != "none" else 0
    settings = {"stride": stride, "padding": padding, "groups": groups}
    return Case(
        name=f"conv2d/{name}",
        family="conv2d",
        operator="conv2d",
        inputs=(shape, (n, channels, rows, columns)) if residual else (shape,),
        parameters=(weight, (channels,)) if bias else (weight,),
        native=_native(activation, **settings),
        ours=_ours(activation, **settings),
        forward=forward,
        both=Work(product * (3 if input_grad else 2), forward.values + backward),
        reductions=Reductions(
            output=prod(weight[1:]),
            grad_input=channels // groups * kernel * kernel,
            grad_parameter=n * rows * columns,
        ),
        input_grad=input_grad,
        relu=activation == "relu",
        parameter_scale=prod(weight[1:]) ** -0.5,
        convolution=settings,
    )


_LENET = (256, 1, 28, 28)
_STEM = (16, 3, 224, 224)
_BLOCK = (16, 128, 56, 56)

CASES = [
    conv2d_case("lenet-1", _LENET, 6, 5, padding=2, bias=True, input_grad=False),
    conv2d_case("lenet-1-inner", _LENET, 6, 5, padding=2, bias=True),
    conv2d_case(
        "lenet-1-sigmoid", _LENET, 6, 5, padding=2, bias=True, input_grad=False, activation="sigmoid"
    ),
    conv2d_case("lenet-2", (256, 6, 14, 14), 16, 5, bias=True),
    conv2d_case("alexnet-stem", _STEM, 96, 11, stride=4, padding=1, bias=True, input_grad=False),
    conv2d_case("alexnet-stem-inner", _STEM, 96, 11, stride=4, padding=1, bias=True),
    conv2d_case(
        "alexnet-stem-relu",
        _STEM,
        96,
        11,
        stride=4,
        padding=1,
        bias=True,
        input_grad=False,
        activation="relu",
    ),
    conv2d_case("alexnet-2", (16, 96, 26, 26), 256, 5, padding=2, bias=True),
    conv2d_case("3x3-64", (16, 64, 56, 56), 64, 3, padding=1),
    conv2d_case("3x3-64-relu", (16, 64, 56, 56), 64, 3, padding=1, activation="relu"),
    conv2d_case("3x3-64-residual-relu", (16, 64, 56, 56), 64, 3, padding=1, activation="relu", residual=True),
    conv2d_case("3x3-128", (16, 128, 28, 28), 128, 3, padding=1),
    conv2d_case("3x3-256", (16, 256, 14, 14), 256, 3, padding=1),
    conv2d_case("3x3-512", (16, 512, 7, 7), 512, 3, padding=1),
    conv2d_case("1x1-64", (16, 64, 56, 56), 64, 1),
    conv2d_case("1x1-64-residual-relu", (16, 64, 56, 56), 64, 1, activation="relu", residual=True),
    conv2d_case("g32-128", _BLOCK, 128, 3, padding=1, groups=32),
    conv2d_case("g16-128", _BLOCK, 128, 3, padding=1, groups=16),
    conv2d_case("depthwise-128", _BLOCK, 128, 3, padding=1, groups=128),
    conv2d_case("depthwise-128-relu", _BLOCK, 128, 3, padding=1, groups=128, activation="relu"),
    conv2d_case(
        "depthwise-128-residual-relu", _BLOCK, 128, 3, padding=1, groups=128, activation="relu", residual=True
    ),
    conv2d_case("g32-256-stride-2", (16, 256, 28, 28), 256, 3, stride=2, padding=1, groups=32),
]
