"""Batch normalisation with the statistics of all processes."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from d2lfast._support import supported
from d2lfast._symbolic import Proxy, record_layer
from d2lfast.nn import unfused
from d2lfast.nn.batchnorm import normalize

__all__ = ["SyncBatchNorm", "SyncBatchNormAct2d"]

_ops: Any = torch.ops.d2lfast


def _global_moments(input: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance [C], and the count of values [], over all processes of the group; float64.

    Zeros where all batches are empty. Nothing here waits for a GPU.
    """
    channels = input.shape[1]
    count = torch.full((1,), input.numel() // channels, dtype=torch.float64, device=input.device)
    own = torch.cat([_ops._sync_batch_norm_moments(input).flatten(), count])
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(gathered, own, group)
    # Added in the order of the processes, by all of them alike (Chan, Golub and LeVeque 1983).
    means, squares, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
    total = counts.sum()
    divisor = total.clamp(min=1)
    mean = (means * counts).sum(0) / divisor
    variance = (squares + counts * (means - mean).square()).sum(0) / divisor
    return mean, variance, total


def _update(running: Tensor | None, values: Tensor, momentum: float, count: Tensor) -> None:
    """Moves running statistics towards those of the batch, if there is one."""
    if running is not None:
        share = momentum * count.clamp(max=1)
        running.mul_(1 - share).add_((values * share).to(running.dtype))


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        activation: str,
        group: Any,
    ) -> Tensor:
        mean, variance, count = _global_moments(input, group)
        # torch's layer does not look either, where it would have to wait for the GPU.
        if not count.is_cuda and count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {input.size()}"
            )
        _update(running_mean, mean, momentum, count)
        _update(running_var, variance * (count / (count - 1)), momentum, count)
        # Parameters beside the statistics of a 16-bit input are float32.
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        parameters = [p if p is None else p.to(dtype) for p in (weight, bias)]
        output, statistics, mask = _ops._batch_norm_act_saving(
            input, *parameters, mean.to(dtype), variance.to(dtype), False, 0.0, eps, activation, residual
        )
        keeps_output = activation in ("sigmoid", "tanh")
        keeps_mask = activation == "relu" and residual is not None
        ctx.save_for_backward(
            input, weight, statistics, output if keeps_output else None, mask if keeps_mask else None, count
        )
        ctx.activation, ctx.group = activation, group
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad,) = grad_outputs
        input, weight, statistics, output, mask, count = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, wants_residual = ctx.needs_input_grad[:4]
        channels, dtype = input.shape[1], statistics.dtype
        slope = statistics.new_ones(channels) if weight is None else weight.to(dtype)
        saved = (grad, input, slope, statistics, output, mask)
        _, grad_weight, grad_bias, _ = _ops._batch_norm_act_backward(
            *saved, False, ctx.activation, [False, True, True, False]
        )
        grad_input = grad_residual = None
        fused_residual = wants_residual and ctx.activation != "none"
        if wants_input or fused_residual:
            sums = torch.stack([grad_bias, grad_weight]).double()
            if wants_input:
                distributed.all_reduce(sums, group=ctx.group)
            grad_input, grad_residual = _ops._sync_batch_norm_backward(
                *saved, ctx.activation, sums / count, fused_residual
            )
        return (
            grad_input if wants_input else None,
            grad_weight.to(weight.dtype) if wants_weight else None,
            # The bias has the type of the weight; without one, of the statistics.
            grad_bias.to(dtype if weight is None else weight.dtype) if wants_bias else None,
            grad_residual if fused_residual else grad if wants_residual else None,
            *[None] * 6,
        )


def _group(module: Any) -> Any:
    """The processes that share a layer's statistics now, or None if it is on its own."""
    if not (module.training and distributed.is_available() and distributed.is_initialized()):
        return None
    group = module.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


def synchronize(self: Any, input: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
    """The forward of a synchronised batch norm, with what follows it."""
    self._check_input_dim(input)
    self._check_non_zero_input_channels(input)
    group = _group(self)
    if group is None:
        return normalize(self, input, activation, residual)
    if input.is_meta or not supported(input, "batch_norm_act"):
        output = nn.SyncBatchNorm.forward(self, input)
        return unfused.activate(output, activation, residual)
    factor = 0.0 if self.momentum is None else self.momentum
    if self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            factor = 1.0 / float(self.num_batches_tracked)
    tracks = self.track_running_stats
    return _SyncBatchNorm.apply(
        input,
        self.weight,
        self.bias,
        residual,
        self.running_mean if tracks else None,
        self.running_var if tracks else None,
        factor,
        self.eps,
        activation,
        group,
    )


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` on d2lfast's kernels, on the CPU too (with gloo; not yet run over NCCL).

    Same constructor, parameters, `state_dict` and errors, except that CPU tensors are not refused, and on the
    CPU one value a channel in all processes together is. Not its subclass, since DistributedDataParallel
    refuses those on the CPU. Processes may have batches of different sizes, and empty ones. Nothing waits for
    a GPU, but, as in torch, a cumulative average (`momentum=None`). Shapes: [N,C,*] to the same.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        # options: `bias`, which older versions of torch do not have.
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.process_group = process_group

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N,C,*] with the statistics of all processes in training, the running ones otherwise."""
        if isinstance(input, Proxy):
            return record_layer(self, input)
        return synchronize(self, input)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> Any:
        """Replace all batch norms within `module` by synchronised ones; returns it, or what replaces itself.

        Parameters and buffers are shared with the layers that are replaced. A `BatchNormAct2d` becomes a
        `SyncBatchNormAct2d`.

        Args:
            module: a model or a layer; native and d2lfast's layers alike.
            process_group: whose statistics are joined; all processes by default.
        """
        return _convert(cls, module, process_group, {})


class SyncBatchNormAct2d(SyncBatchNorm):
    """`act(sync_batch_norm(x) + residual)`: what `convert_sync_batchnorm` makes of a `BatchNormAct2d`.

    Args:
        args, kwargs: of `torch.nn.SyncBatchNorm`.
        act_layer: "relu", "sigmoid", "tanh", "none" or torch's layer of that name.
    """

    def __init__(self, *args: Any, act_layer: Any = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = unfused.activation_name(act_layer)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise [N,C,H,W], add the residual and activate."""
        if isinstance(input, Proxy):
            return record_layer(self, input, residual)
        if supported(input, "batch_norm_act") and (
            residual is None or (residual.dtype == input.dtype and residual.shape == input.shape)
        ):
            return synchronize(self, input, self.activation, residual)
        output = synchronize(self, input)
        return unfused.activate(output, self.activation, residual)

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        return f"{super().extra_repr()}, act={self.activation}"


def _convert(cls: Any, module: nn.Module, group: Any, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    new = module
    if isinstance(module, _BatchNorm):
        options = (module.num_features, module.eps, module.momentum, module.affine)
        arguments = (*options, module.track_running_stats, group)
        if isinstance(module, (unfused.BatchNormAct2d, SyncBatchNormAct2d)):
            new = SyncBatchNormAct2d(*arguments, act_layer=module.activation)
        else:
            new = cls(*arguments)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "training"):
            setattr(new, name, getattr(module, name))
        if hasattr(module, "qconfig"):
            new.qconfig = module.qconfig
    done[module] = new
    for name, child in list(module._modules.items()):
        if child is not None:
            new.add_module(name, _convert(cls, child, group, done))
    return new
