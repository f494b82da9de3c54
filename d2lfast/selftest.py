"""A quick check of this installation: every operator against native PyTorch in float64, on every device."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Case", "Row", "cases", "registered_operators", "run_selftest"]

# Of the largest absolute value of the reference, or of 1 if that is smaller. Half of the lower dtypes' is
# the rounding of the result.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """One call of an operator, and the same in native PyTorch.

    Args:
        operator: name within `torch.ops.d2lfast`.
        shapes: of the tensors that both functions take; the first one is the input.
        ours: calls the operator.
        reference: gets float64 tensors on the CPU.
        float32_from: index of the first tensor that stays float32 when the input is a 16-bit type.
    """

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    float32_from: int | None = None


@dataclass(frozen=True)
class Row:
    """The outcome for one operator, device and dtype: `"ok"`, `"failed"` or `"skipped"`, with the reason."""

    operator: str
    device: str
    dtype: str
    status: str
    reason: str = ""
    cases: int = 0
    forward_error: float = 0.0
    gradient_error: float = 0.0
    tolerance: float = 0.0


def registered_operators() -> set[str]:
    """The public operators of `torch.ops.d2lfast`."""
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    operators = {name.split(".")[0] for namespace, name in names if namespace == "d2lfast"}
    return {name for name in operators if not name.startswith("_")}


def run_selftest(devices: Iterable[str] | None = None) -> list[Row]:
    """Run all cases and return a row for every operator, device and dtype.

    An operator without a case here, and a case without an operator, is a failure. Operators that were not
    built for a GPU are skipped on it.
    """
    all_cases = cases()
    known, registered = {case.operator for case in all_cases}, registered_operators()
    rows = [Row(name, "", "", "failed", "selftest has no case for it") for name in sorted(registered - known)]
    rows += [Row(name, "", "", "failed", "this build lacks it") for name in sorted(known - registered)]
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    # cuDNN's convolutions are allowed products of ten bits, unless told otherwise.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        for device in devices:
            for name in dict.fromkeys(case.operator for case in all_cases if case.operator in registered):
                rows += _check_operator(name, [case for case in all_cases if case.operator == name], device)
    return rows


def _check_operator(name: str, its_cases: list[Case], device: str) -> Iterator[Row]:
    key = torch.device(device).type.upper()
    # The layers are composed of one operator: it is that which may lack a kernel.
    kernel = "d2lfast::_recurrent_layer" if name.endswith("_layer") else f"d2lfast::{name}"
    if key != "CPU" and not torch._C._dispatch_has_computed_kernel_for_dispatch_key(kernel, key):
        yield Row(name, device, "", "skipped", f"not built for {key}")
        return
    for dtype, tolerance in TOLERANCES.items():
        errors = [0.0, 0.0]
        try:
            for number, case in enumerate(its_cases):
                for channels_last in (False, True) if len(case.shapes[0]) == 4 else (False,):
                    found = _errors(case, number, device, dtype, channels_last)
                    errors = [max(pair) for pair in zip(errors, found)]
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            yield Row(name, device, _name(dtype), "failed", reason)
            continue
        good = all(error <= tolerance for error in errors)
        yield Row(
            name,
            device,
            _name(dtype),
            "ok" if good else "failed",
            "" if good else "differs from native PyTorch",
            len(its_cases),
            errors[0],
            errors[1],
            tolerance,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _errors(
    case: Case, seed: int, device: str, dtype: torch.dtype, channels_last: bool
) -> tuple[float, float]:
    """The errors of the outputs and of the gradients."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = [dtype] * len(case.shapes)
    if case.float32_from is not None and dtype.itemsize == 2:
        dtypes[case.float32_from :] = [torch.float32] * (len(dtypes) - case.float32_from)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)
        for shape, kind in zip(case.shapes, dtypes)
    ]
    expected_inputs = [tensor.double().requires_grad_() for tensor in tensors]
    inputs = [tensor.to(device) for tensor in tensors]
    if channels_last:
        inputs[0] = inputs[0].to(memory_format=torch.channels_last)
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]

    outputs, expected = _tuple(case.ours(*inputs)), _tuple(case.reference(*expected_inputs))
    forward = max(_error(*pair) for pair in zip(outputs, expected, strict=True))

    pairs = [(ours, theirs) for ours, theirs in zip(outputs, expected) if theirs.requires_grad]
    seeds = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o, _ in pairs]
    gradients = torch.autograd.grad(
        [ours for ours, _ in pairs], inputs, [seed.to(device) for seed in seeds], allow_unused=True
    )
    expected_gradients = torch.autograd.grad(
        [theirs for _, theirs in pairs], expected_inputs, [seed.double() for seed in seeds]
    )
    return forward, max(_error(*pair) for pair in zip(gradients, expected_gradients, strict=True))


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _error(ours: Tensor | None, expected: Tensor) -> float:
    if ours is None or ours.shape != expected.shape:
        return math.inf
    ours, expected = ours.detach().cpu(), expected.detach()
    if not expected.is_floating_point():
        return 0.0 if torch.equal(ours, expected) else math.inf
    if expected.numel() == 0:
        return 0.0
    error = (ours.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    return error.item() if error.isfinite() else math.inf


@functools.cache
def _ops() -> Any:
    return torch.ops.d2lfast


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def cases() -> list[Case]:
    """All cases, for all operators."""
    found = [*_conv2d(), *_pooling(), *_adaptive_pooling(), *_batch_norm(), *_cells(), *_layers()]
    assert all(count >= 2 for count in Counter(case.operator for case in found).values())
    return found


def _conv2d() -> Iterator[Case]:
    def case(
        x: Any, w: Any, bias: bool, stride: Any, padding: Any, dilation: Any, groups: int, act: str
    ) -> Case:
        rest = (stride, padding, dilation, groups)
        return Case(
            "conv2d",
            (x, w, (w[0],)) if bias else (x, w),
            lambda x, w, b=None: _ops().conv2d(x, w, b, *rest, act),
            lambda x, w, b=None: _ACTIVATIONS[act](F.conv2d(x, w, b, *rest)),
        )

    yield case((2, 1, 28, 28), (6, 1, 5, 5), True, [1, 1], [2, 2], [1, 1], 1, "sigmoid")
    yield case((2, 6, 14, 14), (16, 6, 5, 5), True, [1, 1], [0, 0], [1, 1], 1, "none")
    yield case((2, 64, 14, 14), (32, 64, 3, 3), True, [1, 1], [1, 1], [1, 1], 1, "relu")
    yield case((3, 5, 11, 9), (7, 5, 3, 2), False, [2, 1], [1, 0], [1, 2], 1, "none")
    yield case((2, 24, 9, 9), (40, 24, 1, 1), True, [1, 1], [0, 0], [1, 1], 1, "tanh")
    yield case((2, 8, 10, 10), (8, 1, 3, 3), True, [1, 1], [1, 1], [1, 1], 8, "relu")
    yield case((2, 12, 8, 8), (8, 3, 3, 3), True, [2, 2], [1, 1], [1, 1], 4, "none")
    yield case((3, 23, 19), (8, 3, 11, 11), True, [4, 4], [2, 2], [1, 1], 1, "none")
    yield Case(
        "conv2d",
        ((2, 8, 10, 10), (8, 1, 3, 3), (8,), (2, 8, 10, 10)),
        lambda x, w, b, r: _ops().conv2d(x, w, b, [1, 1], [1, 1], [1, 1], 8, "tanh", "auto", r),
        lambda x, w, b, r: torch.tanh(F.conv2d(x, w, b, padding=1, groups=8) + r),
    )


def _pooling() -> Iterator[Case]:
    # Input, window, stride, padding, dilation, ceil_mode.
    configurations: list[tuple[Any, ...]] = [
        ((2, 6, 14, 14), [2, 2], [2, 2], [0, 0], [1, 1], False),
        ((2, 20, 13, 11), [3, 3], [2, 2], [1, 1], [1, 1], False),
        ((3, 9, 12), [3, 2], [2, 3], [1, 0], [2, 1], True),
        ((2, 5, 8, 8), [3, 3], [1, 1], [1, 1], [1, 1], True),
    ]
    for shape, *rest in configurations:
        for name in ("max_pool2d", "max_pool2d_with_indices"):
            yield Case(
                name,
                (shape,),
                functools.partial(lambda name, rest, x: getattr(_ops(), name)(x, *rest), name, rest),
                functools.partial(
                    lambda name, rest, x: F.max_pool2d(x, *rest, return_indices=name.endswith("indices")),
                    name,
                    rest,
                ),
            )
        window, stride, padding, _, ceil_mode = rest
        for last in ((True, None), (False, None), (True, 3)):
            arguments = (window, stride, padding, ceil_mode, *last)
            yield Case(
                "avg_pool2d",
                (shape,),
                functools.partial(lambda arguments, x: _ops().avg_pool2d(x, *arguments), arguments),
                functools.partial(lambda arguments, x: F.avg_pool2d(x, *arguments), arguments),
            )


def _adaptive_pooling() -> Iterator[Case]:
    for shape, size in (((2, 5, 7, 9), [1, 1]), ((2, 5, 7, 9), [3, 4]), ((3, 5, 5), [7, 2])):
        yield Case(
            "adaptive_avg_pool2d",
            (shape,),
            functools.partial(lambda size, x: _ops().adaptive_avg_pool2d(x, size), size),
            functools.partial(lambda size, x: F.adaptive_avg_pool2d(x, size), size),
        )
        yield Case(
            "adaptive_max_pool2d",
            (shape,),
            functools.partial(lambda size, x: _ops().adaptive_max_pool2d(x, size), size),
            functools.partial(lambda size, x: F.adaptive_max_pool2d(x, size, return_indices=True), size),
        )


def _batch_norm() -> Iterator[Case]:
    def case(shape: Any, training: bool, act: str, residual: bool, inplace: bool = False) -> Case:
        channels = shape[1]

        def statistics(like: Tensor) -> tuple[Tensor, Tensor]:
            kind = like.dtype if like.dtype.itemsize > 2 else torch.float32
            start = torch.linspace(0.5, 1.5, channels, dtype=torch.float64)
            return start.to(like.device, kind) - 1, start.to(like.device, kind)

        def ours(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            *other, weight, bias = rest
            mean, var = statistics(x)
            if not inplace:
                y = _ops().batch_norm_act(x, weight, bias, mean, var, training, 0.1, 1e-5, act, *other)
                return y, mean, var
            scale, y = away(weight), x * 1
            if x.is_cuda and (training or scale.requires_grad):
                # There it refuses gradients that need more than the output; the layer then calls the other.
                y = _ops().batch_norm_act(y, scale, bias, mean, var, training, 0.1, 1e-5, act, *other)
            else:
                _ops().batch_norm_act_(y, scale, bias, mean, var, training, 0.1, 1e-5, act, *other)
            return y, mean, var

        def reference(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            *other, weight, bias = rest
            mean, var = statistics(x)
            scale = away(weight) if inplace else weight
            y = F.batch_norm(x, mean, var, scale, bias, training, 0.1, 1e-5)
            return _ACTIVATIONS[act](y + other[0] if other else y), mean, var

        def away(weight: Tensor) -> Tensor:
            """From 0, where the output does not tell the input."""
            return weight.abs() + 0.5

        name = "batch_norm_act_" if inplace else "batch_norm_act"
        shapes = (shape, *([shape] if residual else []), (channels,), (channels,))
        return Case(name, shapes, ours, reference, float32_from=len(shapes) - 2)

    for training in (True, False):
        yield case((4, 6, 9, 7), training, "none", False)
        yield case((3, 16, 8, 8), training, "sigmoid", False)
        yield case((3, 16, 8, 8), training, "relu", True)
        yield case((10, 20), training, "none", False)
        yield case((4, 6, 9, 7), training, "none", False, inplace=True)


def _cells() -> Iterator[Case]:
    # Gates, states, and the functions; inputs are scaled so that the gates do not saturate.
    kinds: list[tuple[str, int, int, Callable[..., Any], Callable[..., Any]]] = [
        (
            "rnn_cell",
            1,
            1,
            lambda x, h, *weights: _ops().rnn_cell(x, h, *weights, "tanh"),
            lambda x, h, *weights: torch._VF.rnn_tanh_cell(x, h, *weights),
        ),
        (
            "rnn_cell",
            1,
            1,
            lambda x, h, *weights: _ops().rnn_cell(x, h, *weights, "relu"),
            lambda x, h, *weights: torch._VF.rnn_relu_cell(x, h, *weights),
        ),
        (
            "gru_cell",
            3,
            1,
            lambda x, h, *weights: _ops().gru_cell(x, h, *weights),
            lambda x, h, *weights: torch._VF.gru_cell(x, h, *weights),
        ),
        (
            "lstm_cell",
            4,
            2,
            lambda x, h, c, *weights: _ops().lstm_cell(x, h, c, *weights),
            lambda x, h, c, *weights: torch._VF.lstm_cell(x, (h, c), *weights),
        ),
    ]
    for name, gates, states, ours, reference in kinds:
        for batch, inputs, hidden in ((5, 10, 32), (3, 17, 9)):
            shapes = ((batch, inputs), *[(batch, hidden)] * states)
            weights = (
                (gates * hidden, inputs),
                (gates * hidden, hidden),
                (gates * hidden,),
                (gates * hidden,),
            )
            for biases in (True, False):
                yield Case(
                    name,
                    (*shapes, *(weights if biases else weights[:2])),
                    functools.partial(_call_cell, ours, 1 + states, hidden),
                    functools.partial(_call_cell, reference, 1 + states, hidden),
                )


def _layers() -> Iterator[Case]:
    kinds = (("rnn_layer", 1, 1, torch._VF.rnn_tanh), ("gru_layer", 3, 1, torch._VF.gru),
             ("lstm_layer", 4, 2, torch._VF.lstm))  # fmt: skip
    for name, gates, states, native in kinds:
        for steps, batch, size, hidden in ((4, 5, 7, 9), (3, 4, 100, 150)):
            rows = gates * hidden
            weights = [(rows, size), (rows, hidden), (rows,), (rows,)]
            yield Case(
                name,
                ((steps, batch, size), *[(batch, hidden)] * states, *weights),
                functools.partial(_call_layer, name, states, hidden),
                functools.partial(_native_layer, native, states, hidden),
            )


# Weights as of a trained layer: otherwise errors grow from step to step.
def _scaled(states: int, hidden: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x if i <= states else x / hidden**0.5 for i, x in enumerate(tensors)]


def _call_layer(name: str, states: int, hidden: int, *tensors: Tensor) -> Any:
    x, *rest = _scaled(states, hidden, tensors)
    return getattr(_ops(), name)(x, None, *rest)


def _native_layer(native: Callable[..., Any], states: int, hidden: int, *tensors: Tensor) -> Any:
    x, *rest = _scaled(states, hidden, tensors)
    initial = [state.unsqueeze(0) for state in rest[:states]]
    state = initial if states == 2 else initial[0]
    output, *final = native(x, state, rest[states:], True, 1, 0.0, False, False, False)
    return output, *(h.squeeze(0) for h in final)


def _call_cell(cell: Callable[..., Any], states: int, hidden: int, *tensors: Tensor) -> Any:
    # A power of two, so that scaling is exact in every dtype.
    scale = 2.0 ** -math.ceil(math.log2(hidden) / 2)
    weights = [tensor * scale for tensor in tensors[states:]]
    return cell(*tensors[:states], *weights, *[None] * (4 - len(weights)))
