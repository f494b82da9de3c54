"""Recurrent layers over whole sequences: one operator for all layers, directions and time steps."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from d2lfast import _extension
from d2lfast._support import has_kernels, supported, transformed
from d2lfast._symbolic import Proxy, record_layer
from d2lfast.recurrent_algorithm import cuda_algorithm, torch_is_faster

__all__ = ["GRU", "LSTM", "RNN"]

_recurrent = torch.ops.d2lfast._recurrent.default
# One step of a few rows, gradients off: one call into C++. None where the operator has to decide.
_generate = _extension.load().recurrent_generate
_is_compiling = torch.compiler.is_dynamo_compiling
_MODES = {"tanh": 0, "relu": 1}


def _plain(module: Any) -> bool:
    """Whether the layers follow each other without reversed ones or dropout between them."""
    return not module.bidirectional and not (module.dropout and module.training)


def _takes(module: Any, mode: str, input: Any) -> bool:
    """Whether the operator computes `input`, a tensor or PackedSequence, rather than torch."""
    data = input.data if isinstance(input, PackedSequence) else input
    if data.device.type == "cuda" and data.dtype is not torch.int64 and _left_to_cudnn(module, mode, input):
        return False
    if data.dtype is torch.int64:
        return has_kernels("gru_layer", data.device.type) and not transformed()
    return supported(data, "gru_layer") and not _left_to_torch(module, mode, input)


def _for_torch(module: Any, input: Any) -> Any:
    """What torch's layer takes where ours does not: under transforms, one-hot rows in the place of tokens."""
    if isinstance(input, PackedSequence) or input.dtype is not torch.int64 or not transformed():
        return input
    return torch.nn.functional.one_hot(input, module.input_size).to(_weights(module)[0].dtype)


def _left_to_torch(module: Any, mode: str, input: Any) -> bool:
    """Whether torch's layer is faster on this dense batch on the CPU; compiled code keeps the operator."""
    if isinstance(input, PackedSequence) or input.dim() != 3 or module.proj_size or _is_compiling():
        return False
    if input.device.type != "cpu":
        return False
    dtype = input.dtype
    if dtype is torch.float32 and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    if dtype is not torch.bfloat16:
        return False
    batch = input.size(0 if module.batch_first else 1)
    return torch_is_faster(mode, dtype, batch, module.input_size, module.hidden_size, torch.is_grad_enabled())


def _left_to_cudnn(module: Any, mode: str, input: Any) -> bool:
    """Whether cuDNN is expected to be faster than the persistent kernels; traced code keeps the operator."""
    if torch.compiler.is_compiling():
        return False
    if module.proj_size:
        return True
    if isinstance(input, PackedSequence):
        batch = int(input.batch_sizes[0])
    else:
        batch = input.size(0 if module.batch_first else 1) if input.dim() == 3 else 1
    dtype = module._flat_weights[0].dtype
    training = torch.is_grad_enabled()
    return cuda_algorithm(mode, batch, module.hidden_size, dtype, training) == "aten"


def _weights(module: Any) -> list[Tensor]:
    """The parameters as they are now: replaced by `functional_call`, parametrised or plain."""
    parameters = module._parameters
    try:
        return [parameters[name] for name in module._flat_weights_names]
    except KeyError:
        return [getattr(module, name) for name in module._flat_weights_names]


def _run(
    module: Any, mode: str, input: Tensor, sizes: Tensor | None, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    weights = _weights(module)
    first = weights[0].dtype
    if (
        input.dtype is not first
        and input.dtype is not torch.int64
        and not torch._C._is_any_autocast_enabled()
    ):
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({first}). "
            f"Convert input: input.to({first}), or convert model: model.to({input.dtype})"
        )
    return _recurrent(
        input, sizes, h, c, weights, mode, module.num_layers, module.bias, module.dropout, module.training,
        module.bidirectional, module.batch_first, module.proj_size > 0,
    )  # fmt: skip


def _packed(module: Any, mode: str, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
    data, sizes, sorted_indices, unsorted_indices = packed
    lstm = mode == "lstm"
    if hx is None:
        layers = module.num_layers * (2 if module.bidirectional else 1)
        like = module._flat_weights[0] if data.dtype is torch.int64 else data
        h = like.new_zeros(layers, int(sizes[0]), module.proj_size or module.hidden_size)
        c = like.new_zeros(layers, int(sizes[0]), module.hidden_size) if lstm else None
    else:
        hx = module.permute_hidden(hx, sorted_indices)
        h, c = (hx[0], hx[1]) if lstm else (hx, None)
    output, h, c = _run(module, mode, data, sizes, h, c)
    final = module.permute_hidden((h, c) if lstm else h, unsorted_indices)
    return PackedSequence(output, sizes, sorted_indices, unsorted_indices), final


def _sequence(
    module: Any, mode: str, input: Tensor, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, ...]:
    """Runs on [T,N,I] or [N,T,I] (batch_first), unbatched on [T,I]; tokens lack the last axis."""
    if input.dim() + (input.dtype is torch.int64) == 3:
        return _run(module, mode, input, None, h, c)
    axis = 0 if module.batch_first else 1
    h = None if h is None else h.unsqueeze(1)
    c = None if c is None else c.unsqueeze(1)
    output, h, c = _run(module, mode, input.unsqueeze(axis), None, h, c)
    return output.squeeze(axis), h.squeeze(1), c.squeeze(1) if mode == "lstm" else c


def _dims(input: Tensor) -> int:
    """Dimensions of the input as torch counts them, 2 or 3: those of one-hot rows for tokens."""
    return input.dim() + (input.dtype is torch.int64)


def _one_state(module: Any, mode: str, name: str, tail: str, input: Any, hx: Tensor | None) -> Any:
    if isinstance(input, PackedSequence):
        return _packed(module, mode, input, hx)
    dims = _dims(input)
    if dims not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{tail} instead")
    if hx is not None and hx.dim() != dims:
        kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
        raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
    return _sequence(module, mode, input, hx, None)[:2]


class RNN(torch.nn.RNN):
    """`torch.nn.RNN` in one operator: same constructor, parameters, `state_dict` and errors.

    Shapes and PackedSequence as in `torch.nn.RNN`. float32, float64, bfloat16 and float16 on the CPU; for
    other tensors (`d2lfast._support.supported`) `torch.nn.RNN` computes.

    An int64 input, [T,N] or [T] (batch_first: [N,T]), holds tokens below `input_size`: the same result as
    with `one_hot(input, input_size)`, from rows of the weight. In a floating-point input rows of zeros with
    a single 1 are recognised and treated likewise.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        """Same as the forward of `torch.nn.RNN`."""
        if isinstance(input, Proxy):
            return record_layer(self, input, hx)
        if hx is not None and not _is_compiling() and _plain(self):
            mode = _MODES[self.nonlinearity]
            found = _generate(input, hx, None, self._parameters, self._flat_weights_names, mode, self.bias)
            if found is not None:
                return found
        if not _takes(self, self.nonlinearity, input):
            return super().forward(_for_torch(self, input), hx)
        return _one_state(self, self.nonlinearity, "RNN", " tensor", input, hx)


class GRU(torch.nn.GRU):
    """`torch.nn.GRU` in one operator: same constructor, parameters, `state_dict` and errors.

    Shapes and PackedSequence as in `torch.nn.GRU`; dtypes and tokens as in `RNN`.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        """Same as the forward of `torch.nn.GRU`."""
        if isinstance(input, Proxy):
            return record_layer(self, input, hx)
        if hx is not None and not _is_compiling() and _plain(self):
            found = _generate(input, hx, None, self._parameters, self._flat_weights_names, 2, self.bias)
            if found is not None:
                return found
        if not _takes(self, "gru", input):
            return super().forward(_for_torch(self, input), hx)
        return _one_state(self, "gru", "GRU", "", input, hx)


class LSTM(torch.nn.LSTM):
    """`torch.nn.LSTM` in one operator, `proj_size` included: same constructor, parameters and errors.

    Shapes and PackedSequence as in `torch.nn.LSTM`; dtypes and tokens as in `RNN`.
    """

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:  # type: ignore[override]
        """Same as the forward of `torch.nn.LSTM`."""
        if isinstance(input, Proxy):
            return record_layer(self, input, hx)
        if hx is not None and not _is_compiling() and _plain(self) and len(hx) == 2:
            found = _generate(input, hx[0], hx[1], self._parameters, self._flat_weights_names, 3, self.bias)
            if found is not None:
                return found[0], found[1:]
        if not _takes(self, "lstm", input):
            return super().forward(_for_torch(self, input), hx)
        if isinstance(input, PackedSequence):
            return _packed(self, "lstm", input, hx)
        dims = _dims(input)
        if dims not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if hx is None:
            output, h, c = _sequence(self, "lstm", input, None, None)
            return output, (h, c)
        if hx[0].dim() != dims or hx[1].dim() != dims:
            kind = "batched" if dims == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dims}-D input, hx and cx should also be {dims}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        output, h, c = _sequence(self, "lstm", input, hx[0], hx[1])
        return output, (h, c)
