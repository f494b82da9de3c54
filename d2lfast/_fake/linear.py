"""Shape functions of the linear layer."""

import torch

from d2lfast._fake.devices import check_same_device


@torch.library.register_fake("d2lfast::_linear")
def _linear(input, weight, bias):
    check_same_device(input, weight, bias)
    torch._check(
        weight.dim() == 2 and input.dim() > 0 and input.shape[-1] == weight.shape[1],
        lambda: f"sizes {input.shape} and {weight.shape} are not those of a linear layer",
    )
    return input.new_empty([*input.shape[:-1], weight.shape[0]])


@torch.library.register_fake("d2lfast::_linear_backward")
def _linear_backward(grad_output, input, weight, output_mask):
    shapes = [input.shape, weight.shape, weight.shape[:1]]
    return tuple(input.new_empty(shape if wanted else [0]) for shape, wanted in zip(shapes, output_mask))
