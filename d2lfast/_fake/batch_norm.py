"""Shape functions of the batch normalisation operators."""

from math import prod

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from d2lfast._fake.devices import check_same_device


def _like(input: Tensor) -> Tensor:
    return torch.empty(
        input.shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=suggest_memory_format(input),
    )


def _check(input, weight, bias, running_mean, running_var, residual):
    check_same_device(input, weight, bias, running_mean, running_var, residual)
    torch._check(
        input.dim() >= 2,
        lambda: f"expected input of at least 2 dimensions, but got input of size {input.shape}",
    )
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, tensor in named.items():
        if tensor is not None:
            message = f"{name} should contain {input.shape[1]} elements not {tensor.shape[0]}"
            torch._check(tensor.shape[0] == input.shape[1], lambda message=message: message)
    if residual is not None:
        torch._check(
            residual.shape == input.shape and residual.dtype == input.dtype,
            lambda: f"expected residual like the input {input.shape}, but got {residual.shape}",
        )


def _statistics(input: Tensor) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.new_empty([3, input.shape[1]], dtype=dtype)


def _gradients(input: Tensor, parameter: Tensor, output_mask):
    wants_input, wants_weight, wants_bias, wants_residual = output_mask
    channels = input.shape[1]
    return (
        _like(input) if wants_input else input.new_empty([0]),
        parameter.new_empty([channels if wants_weight else 0]),
        parameter.new_empty([channels if wants_bias else 0]),
        _like(input) if wants_residual else input.new_empty([0]),
    )


@torch.library.register_fake("d2lfast::batch_norm_act")
def _batch_norm_act(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    training,
    momentum,
    eps,
    activation="none",
    residual=None,
):
    _check(input, weight, bias, running_mean, running_var, residual)
    return _like(input)


def _mask_size(input: Tensor) -> list[int]:
    # The rule of csrc/ops/cpu/batch_norm_geometry.h.
    batch, channels = input.shape[:2]
    pixels = prod(input.shape[2:])
    if suggest_memory_format(input) is torch.contiguous_format:
        return [batch * channels, (pixels + 7) // 8]
    return [batch * pixels, (channels + 7) // 8]


@torch.library.register_fake("d2lfast::_batch_norm_act_saving")
def _batch_norm_act_saving(
    input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual
):
    _check(input, weight, bias, running_mean, running_var, residual)
    keeps_mask = activation == "relu" and residual is not None
    return (
        _like(input),
        _statistics(input),
        input.new_empty(_mask_size(input) if keeps_mask else [0], dtype=torch.uint8),
    )


@torch.library.register_fake("d2lfast::_batch_norm_act_backward")
def _batch_norm_act_backward(
    grad_output, input, weight, statistics, output, mask, training, activation, output_mask
):
    return _gradients(input, input if weight is None else weight, output_mask)


@torch.library.register_fake("d2lfast::batch_norm_act_")
def _batch_norm_act_(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    training,
    momentum,
    eps,
    activation="none",
    residual=None,
):
    _check(input, weight, bias, running_mean, running_var, residual)


@torch.library.register_fake("d2lfast::_batch_norm_inplace_saving")
def _batch_norm_inplace_saving(
    input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual
):
    _check(input, weight, bias, running_mean, running_var, residual)
    return _statistics(input)


@torch.library.register_fake("d2lfast::_batch_norm_inplace_backward")
def _batch_norm_inplace_backward(
    grad_output, output, weight, bias, statistics, training, activation, output_mask
):
    parameter = weight if weight is not None else output if bias is None else bias
    return _gradients(output, parameter, output_mask)


@torch.library.register_fake("d2lfast::_sync_batch_norm_moments")
def _sync_batch_norm_moments(input):
    return input.new_empty([2, input.shape[1]], dtype=torch.float64)


@torch.library.register_fake("d2lfast::_sync_batch_norm_backward")
def _sync_batch_norm_backward(
    grad_output, input, weight, statistics, output, mask, activation, means, wants_residual
):
    return _like(input), _like(input) if wants_residual else input.new_empty([0])
