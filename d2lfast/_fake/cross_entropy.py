"""Shape functions of the cross-entropy."""

import torch

from d2lfast._fake.devices import check_same_device

_REDUCTION_NONE = 0


@torch.library.register_fake("d2lfast::_cross_entropy")
def _cross_entropy(input, target, reduction, ignore_index):
    check_same_device(input, target)
    torch._check(
        input.dim() >= 2 and target.shape == (input.shape[0], *input.shape[2:]),
        lambda: f"expected logits [N,C,...] and class numbers [N,...], got {input.shape} and {target.shape}",
    )
    statistics = torch.float64 if input.dtype is torch.float64 else torch.float32
    loss = input.new_empty(target.shape if reduction == _REDUCTION_NONE else [])
    return loss, input.new_empty([2 * target.numel() + 1], dtype=statistics)


@torch.library.register_fake("d2lfast::_cross_entropy_backward")
def _cross_entropy_backward(grad_output, input, target, statistics, reduction, ignore_index):
    return torch.empty_like(input)
