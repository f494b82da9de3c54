"""Fused layers for networks that are written over a `layers` namespace.

Each function returns the layer of that namespace, or, where it has none (`torch.nn`), the same layer as a
sequence of torch's own, with the same `state_dict` keys. An activation behind a convolution or a batch norm
within `layers.Sequential` needs none of them: `d2lfast.nn.Sequential` fuses it.
"""

from typing import Any

from torch import nn

from d2lfast.nn import unfused

__all__ = ["conv_act", "conv_norm_act", "norm_act"]


def norm_act(layers: Any, num_features: int, act_layer: Any = "relu", **options: Any) -> nn.Module:
    """`act(batch_norm(x) + residual)`, called with x or with x and a residual of its shape.

    Args:
        layers: `d2lfast.nn`, `torch.nn` or a namespace like them.
        num_features: channels.
        act_layer: "relu", "sigmoid", "tanh" or "none".
        options: others of `d2lfast.nn.BatchNormAct2d`.
    """
    return _kind(layers, "BatchNormAct2d")(num_features, act_layer=act_layer, **options)


def conv_act(layers: Any, *args: Any, act_layer: Any = "relu", **options: Any) -> nn.Module:
    """`act(conv2d(x))`: the arguments of `layers.Conv2d`, and `act_layer` as for `norm_act`."""
    return _kind(layers, "Conv2dAct")(*args, act_layer=act_layer, **options)


def conv_norm_act(layers: Any, *args: Any, act_layer: Any = "relu", **options: Any) -> nn.Module:
    """`act(batch_norm(conv2d(x)) + residual)`, with the children `conv` and `bn`.

    Takes the arguments of `d2lfast.nn.ConvNormAct`, and `act_layer` as for `norm_act`.
    """
    return _kind(layers, "ConvNormAct")(*args, act_layer=act_layer, **options)


def _kind(layers: Any, name: str) -> Any:
    return getattr(layers, name, None) or getattr(unfused, name)
