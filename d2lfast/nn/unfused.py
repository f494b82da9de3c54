"""The fused layers as sequences of torch's own: what those of `d2lfast.nn` must equal, their native twins.

Names and `state_dict` keys are those of timm (`timm.layers`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "BatchNormAct2d", "Conv2dAct", "ConvNormAct", "activate", "activation_name"]

# The activations that convolution and batch norm can apply to their output, by the layer that they replace.
ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activation_name(act_layer: Any) -> str:
    """The name of an activation: "none", "relu", "sigmoid" or "tanh".

    Args:
        act_layer: a name, `nn.ReLU`, `nn.Sigmoid`, `nn.Tanh`, `nn.Identity`, a layer of these, or None.

    Raises:
        ValueError: it is none of these.
    """
    if act_layer is None or act_layer == "none" or act_layer is nn.Identity:
        return "none"
    kind = act_layer if isinstance(act_layer, type) else type(act_layer)
    name = act_layer if isinstance(act_layer, str) else ACTIVATIONS.get(kind)
    if kind is nn.Identity:
        return "none"
    if name not in _FUNCTIONS:
        raise ValueError(f"act_layer must be 'none', 'relu', 'sigmoid' or 'tanh', but got {act_layer!r}")
    return name


def activate(input: Tensor, activation: str, residual: Tensor | None = None) -> Tensor:
    """Add the residual, if there is one, and apply the activation of that name."""
    if residual is not None:
        input = input + residual
    return input if activation == "none" else _FUNCTIONS[activation](input)


class BatchNormAct2d(nn.BatchNorm2d):
    """`act(batch_norm(x) + residual)`.

    Args:
        num_features, eps, momentum, affine, track_running_stats: of `torch.nn.BatchNorm2d`.
        apply_act: False leaves the activation out.
        act_layer: "relu", "sigmoid", "tanh", "none" or torch's layer of that name.
        inplace: the fused layer may write over x; torch's batch norm has no such mode and leaves x alone.

    Shapes: x and residual [N,C,H,W], result [N,C,H,W].

    Raises:
        ValueError: no such activation.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        apply_act: bool = True,
        act_layer: Any = "relu",
        inplace: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.activation = activation_name(act_layer) if apply_act else "none"
        self.inplace = inplace

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise [N,C,H,W], add the residual and activate."""
        output = super().forward(input)
        return activate(output, self.activation, residual)

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        inplace = ", inplace=True" if self.inplace else ""
        return f"{super().extra_repr()}, act={self.activation}{inplace}"


class Conv2dAct(nn.Conv2d):
    """`act(conv2d(x) + residual)`: the arguments of `torch.nn.Conv2d`, and `act_layer`.

    Shapes: x [N,C,H,W] or [C,H,W], result and residual [N,O,H',W'] or [O,H',W'].
    """

    def __init__(self, *args: Any, act_layer: Any = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation_name(act_layer)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [N,C,H,W] or [C,H,W], add the residual and activate."""
        output = super().forward(input)
        return activate(output, self.activation, residual)

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        return f"{super().extra_repr()}, act={self.activation}"


class ConvNormAct(nn.Module):
    """`act(batch_norm(conv2d(x)) + residual)`, with the children `conv` and `bn`.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: of `torch.nn.Conv2d`.
        padding: as there, or "" for ((stride - 1) + dilation (kernel_size - 1)) // 2 on every side.
        apply_act, act_layer: as for `BatchNormAct2d`.
        eps, momentum: of the batch norm.

    Shapes: [N,C,H,W] to [N,O,H',W'], the shape of the residual.
    """

    _conv: type[nn.Conv2d] = nn.Conv2d
    _norm: type[BatchNormAct2d] = BatchNormAct2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = "",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        apply_act: bool = True,
        act_layer: Any = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if padding == "":
            sizes = zip(_pair(kernel_size), _pair(stride), _pair(dilation))
            rows, columns = ((s - 1 + d * (k - 1)) // 2 for k, s, d in sizes)
            padding = (rows, columns)
        self.conv = self._conv(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self.bn = self._norm(
            out_channels, eps, momentum, True, True, apply_act, act_layer, device=device, dtype=dtype
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve, normalise, add the residual and activate."""
        return self.bn(self.conv(input), residual)


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value
