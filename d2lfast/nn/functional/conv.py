"""Two-dimensional convolution (cross-correlation)."""

import torch
import torch.nn.functional as _native
from torch import Tensor

from d2lfast._support import supported, transformed
from d2lfast._symbolic import Proxy, record_function
from d2lfast.algorithm import requested_conv2d_algorithm
from d2lfast.nn.functional._sizes import size_list
from d2lfast.nn.unfused import activate

__all__ = ["conv2d"]

_conv2d = torch.ops.d2lfast.conv2d.default


def _pair(value: int | tuple[int, ...] | list[int], name: str) -> list[int]:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return [value[0], value[1]]
    values = size_list("conv2d", name, value)
    if len(values) != 2:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values to match the convolution "
            f"dimensions, but got {name}={values}"
        )
    return values


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Cross-correlate images with a bank of kernels, as `torch.nn.functional.conv2d` (book section 7.2-7.4).

    Args:
        input: [N,C,H,W] or [C,H,W]; float32, float64, bfloat16 or float16.
        weight: [O,C/groups,KH,KW].
        bias: [O] or None.
        stride, dilation: one value or one for each axis.
        padding: one value or one for each axis, "same" or "valid".
        groups: channels are connected within each of `groups` groups only.
        activation: "none", "relu", "sigmoid" or "tanh", applied while the output is in registers (this and
            the residual are not part of torch's signature).
        residual: of the result's shape and the input's dtype, or None; added before the activation, likewise
            in registers: activation(convolution + residual) (book section 8.6).

    Returns:
        [N,O,H',W'] with H' = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, channels_last if the
        input or the weight is.

    Raises:
        RuntimeError: sizes, dtypes or devices do not fit, as in torch.
        ValueError: no such activation.
    """
    if not (supported(input, "conv2d") and supported(weight, "conv2d")):
        if isinstance(input, Proxy):
            options = (stride, padding, dilation, groups, activation, residual)
            return record_function(conv2d, input, weight, bias, *options)
        if (activation != "none" or residual is not None) and not transformed():
            raise NotImplementedError(f"an epilogue for {input.dtype} on {input.device}")
        output = _native.conv2d(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
        return activate(output, activation, residual)
    strides, dilations = _pair(stride, "stride"), _pair(dilation, "dilation")
    if isinstance(padding, str):
        if padding == "valid":
            pads = [0, 0]
        elif padding == "same":
            if any(s != 1 for s in strides):
                raise RuntimeError("padding='same' is not supported for strided convolutions")
            if weight.dim() != 4:
                raise RuntimeError(
                    f"weight should have 4 dimensions, but got weight of size: {tuple(weight.shape)}"
                )
            total = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:])]
            pads = [t // 2 for t in total]
            if any(t % 2 for t in total):
                # An odd total has its extra zero at the end, as in torch.
                input = _native.pad(input, (0, total[1] % 2, 0, total[0] % 2))
        else:
            raise RuntimeError(f"Invalid padding string: '{padding}'")
    else:
        pads = _pair(padding, "padding")
    return _conv2d(
        input,
        weight,
        bias,
        strides,
        pads,
        dilations,
        groups,
        activation,
        requested_conv2d_algorithm(),
        residual,
    )
