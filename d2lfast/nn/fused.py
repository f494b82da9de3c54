"""Layers that end in an activation, applied while their output is still in registers (timm's names)."""

from torch import Tensor

from d2lfast._support import supported
from d2lfast._symbolic import Proxy, record_layer
from d2lfast.nn import unfused
from d2lfast.nn.batchnorm import normalize
from d2lfast.nn.conv import Conv2d, convolve, output_shape

__all__ = ["BatchNormAct2d", "Conv2dAct", "ConvNormAct"]


class BatchNormAct2d(unfused.BatchNormAct2d):
    """`act(batch_norm(x) + residual)` in one sweep; arguments and errors of `unfused.BatchNormAct2d`.

    With `inplace=True` the result is written over x and x is returned, as far as autograd permits it:
    always without gradients; with them in evaluation, and on the CPU in training without an activation.
    Elsewhere, as with ReLU in training, the result is a new tensor of the same values:
    `functional.batch_norm_act` has the rule. x is the caller's to give away, for example the result of a
    convolution that nobody else reads.

    Shapes: x and residual [N,C,H,W], result [N,C,H,W].
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise [N,C,H,W], add the residual and activate, in one sweep where the kernels can."""
        if isinstance(input, Proxy):
            return record_layer(self, input, residual)
        if supported(input, "batch_norm_act") and (
            residual is None or (residual.dtype == input.dtype and residual.shape == input.shape)
        ):
            return normalize(self, input, self.activation, residual, self.inplace)
        # A residual that is promoted or broadcast, or tensors without kernels.
        output = normalize(self, input)
        return unfused.activate(output, self.activation, residual)


class Conv2dAct(unfused.Conv2dAct):
    """`act(conv2d(x) + residual)` in one sweep; arguments of `unfused.Conv2dAct`."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [N,C,H,W] or [C,H,W], add the residual and activate."""
        if isinstance(input, Proxy):
            return record_layer(self, input, residual)
        kernels = supported(input, "conv2d") and supported(self.weight, "conv2d")
        if kernels and (
            residual is None
            or (residual.dtype == input.dtype and list(residual.shape) == output_shape(self, input))
        ):
            return convolve(self, input, self.weight, self.bias, self.activation, residual)
        # A residual that is promoted or broadcast, or tensors without kernels.
        output = convolve(self, input, self.weight, self.bias)
        return unfused.activate(output, self.activation, residual)


class ConvNormAct(unfused.ConvNormAct):
    """`act(batch_norm(conv2d(x)) + residual)`; arguments of `unfused.ConvNormAct`, children `conv` and `bn`.

    Shapes: [N,C,H,W] to [N,O,H',W'], the shape of the residual.
    """

    _conv = Conv2d
    _norm = BatchNormAct2d
