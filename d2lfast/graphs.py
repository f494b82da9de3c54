"""CUDA graphs for networks whose time is the launching of their kernels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def _device_type(tensor: Tensor) -> str:
    return tensor.device.type


def cuda_graph(module: nn.Module, *examples: Tensor, warm_up: int = 3) -> Callable[..., object]:
    """Capture a module's forward and backward as CUDA graphs, which replay with one launch each.

    For networks such as LeNet or a character RNN, in which a kernel takes less time than its launch. Every
    operator of d2lfast can be captured, but for packed sequences, whose lengths go to the device: none waits
    for the device or reads its results.

    Args:
        module: on a CUDA device; the mode (train or eval) at this call is the one that is captured.
        examples: inputs as `module` takes them. Later inputs must have their shapes, dtypes and
            requires_grad, or the call fails.
        warm_up: calls before the capture, in which libraries choose their algorithms.

    Returns:
        `module`, whose forward replays the graphs (`torch.cuda.make_graphed_callables`). Its parameters,
        gradients and buffers are what they were: the warm-up leaves running statistics unchanged. Each call
        writes over the outputs of the one before, each backward over the gradients of the inputs.

    Raises:
        ValueError: no example, or an example or a parameter that is not on a CUDA device.
    """
    if not examples:
        raise ValueError("cuda_graph needs example inputs")
    for tensor in (*examples, *module.parameters(), *module.buffers()):
        if _device_type(tensor) != "cuda":
            raise ValueError(f"cuda_graph needs tensors on a CUDA device, but got one on {tensor.device}")
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    torch.cuda.make_graphed_callables(module, examples, num_warmup_iters=warm_up)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    for parameter, gradient in gradients:
        parameter.grad = gradient
    _keep_gradients(module)
    return module


def _keep_gradients(module: nn.Module) -> None:
    """Gradients that stay between two calls of backward are added up.

    A parameter without a gradient takes the graph's own tensor, which the next replay writes over
    (pytorch/pytorch#181723): before that the parameter gets a copy.
    """
    parameters, replay = [*module.parameters()], module.forward
    written: set[int] = set()

    def before(_: object) -> None:
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.data_ptr() in written:
                parameter.grad = parameter.grad.clone()

    def after(gradients: tuple[Tensor | None, ...], _: object) -> None:
        written.update(gradient.data_ptr() for gradient in gradients if gradient is not None)

    def forward(*inputs: Tensor) -> object:
        output = replay(*inputs)
        tensors = [tensor for tensor in tree_leaves(output) if isinstance(tensor, Tensor)]
        for node in {tensor.grad_fn for tensor in tensors}:
            if node is not None:
                node.register_prehook(before)
                node.register_hook(after)
        return output

    module.forward = forward  # type: ignore[method-assign]
