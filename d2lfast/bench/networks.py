"""Whole networks: a training step and inference, ours against native twins, in one interleaved run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.bench.case import Layout
from d2lfast.bench.timing import LoadMeter, Timing, interleave
from d2lfast.models.registry import NETWORKS, Network
from d2lfast.summary import summarize

DEFAULT = (
    "mlp", "lenet", "bn-lenet", "alexnet", "vgg11-small", "nin", "googlenet", "resnet18", "resnext",
    "densenet", "regnetx32", "resnet18-small", "rnn", "lstm", "gru", "deep-gru", "bi-gru", "names", "seq2seq",
)  # fmt: skip

# Of one batch; the book's batches of large networks would take seconds a step.
_MACS = 6e9

PASSES = ("inference", "training")


@dataclass(frozen=True)
class NetworkRow:
    """One pass of one network; milliseconds a batch, None where a contender did not run."""

    network: str
    what: str
    parameters: int
    macs: int
    batch_size: int
    native_ms: float
    native_channels_last_ms: float | None
    compile_ms: float | None
    ours_ms: float
    ours_channels_last_ms: float | None
    speedup_same_layout: float
    speedup_best: float
    samples: int
    foreign_load: float | None


@dataclass
class NetworkOutcome:
    """Rows of a network, or the reasons why there are none."""

    network: str
    rows: list[NetworkRow] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Contender:
    """A model with a batch in its layout, for steps whose end is waited for."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    target: Tensor
    network: Network
    layers: Any = nn  # whose loss is used

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    def loss(self) -> Tensor:
        """Of the batch."""
        return self.network.loss(self.model(*self.inputs), self.target, self.layers)

    def infer(self) -> None:
        """Compute the outputs, without gradients."""
        with torch.no_grad():
            self.model(*self.inputs)
        self._wait()

    def train(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self._wait()

    def _wait(self) -> None:
        if self.target.is_cuda:
            torch.cuda.synchronize(self.target.device)


def default_batch(network: Network, macs: int) -> int:
    """The book's batch, or the power of two below it that keeps a step short; `macs` are of one example."""
    if macs * network.batch_size <= _MACS:
        return network.batch_size
    return 1 << max(0, int(_MACS / macs).bit_length() - 1)


def run_network(
    name: str,
    seconds: float = 2.0,
    batch_size: int | None = None,
    compiled: bool = False,
    shape: tuple[int, ...] | None = None,
    device: str | torch.device = "cpu",
) -> NetworkOutcome:
    """Check a network against its native twin in every layout and, if they agree, time both.

    Args:
        name: in the registry.
        seconds: for each pass, all contenders together; at least five rounds are run.
        batch_size: default: see `default_batch`.
        compiled: native through torch.compile runs too.
        shape: of one input; default: the book's.
        device: where both sides run.
    """
    network = NETWORKS[name]
    shape = shape or network.shape
    sizes = network.sizes_for(shape)
    ours = network.build(seed=0, **sizes)
    macs = summarize(ours, *network.example(1, shape).inputs).macs
    batch_size = batch_size or default_batch(network, macs)
    example = network.example(batch_size, shape)
    inputs, target = tuple(x.to(device) for x in example.inputs), example.target.to(device)
    layouts = list(Layout) if len(shape) == 3 else [Layout.NCHW]
    outcome = NetworkOutcome(name)
    contenders: dict[tuple[str, Layout], Contender] = {}
    for layout in layouts:
        for side, layers in (("native", nn), ("ours", None)):
            options: dict[str, Any] = {} if layers is None else {"layers": layers}
            model = network.build(seed=0, **sizes, **options)
            model.load_state_dict(ours.state_dict())
            contenders[side, layout] = _placed(
                model.to(device), layout, inputs, target, network, layers or d2lfast.nn
            )
    reference = _results(contenders["native", Layout.NCHW])
    for layout in layouts:
        outcome.failures += _differences(layout, _results(contenders["ours", layout]), reference)
    if outcome.failures:
        return outcome
    if compiled:
        _add_compiled(contenders, outcome)
    facts = (name, sum(p.numel() for p in ours.parameters()), macs, batch_size)
    for what in PASSES:
        calls: dict[tuple[str, Layout], Callable[[], object]] = {}
        for key, contender in contenders.items():
            contender.model.train(what == "training")
            calls[key] = contender.train if what == "training" else contender.infer
        with LoadMeter() as meter:
            timings = interleave(calls, seconds)
        outcome.rows.append(_row(facts, what, timings, meter.foreign))
    return outcome


def _placed(
    model: nn.Module, layout: Layout, inputs: Sequence[Tensor], target: Tensor, network: Network, layers: Any
) -> Contender:
    if layout is Layout.CHANNELS_LAST:
        # The method's overloads do not know the keyword alone.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    return Contender(model, tuple(inputs), target, network, layers)


def _add_compiled(contenders: dict[tuple[str, Layout], Contender], outcome: NetworkOutcome) -> None:
    native = contenders["native", Layout.NCHW]
    torch.compiler.reset()
    compiled = Contender(torch.compile(native.model), native.inputs, native.target, native.network)  # type: ignore[arg-type]
    try:
        for mode in (False, True):
            compiled.model.train(mode)
            compiled.train() if mode else compiled.infer()
    except Exception as error:
        outcome.notes.append(f"torch.compile: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return
    contenders["compile", Layout.NCHW] = compiled


@contextmanager
def _no_dropout(model: nn.Module) -> Iterator[None]:
    """Masks differ between layouts."""
    found: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name in ("p", "dropout", "dropout_1", "dropout_2"):
            if isinstance(getattr(module, name, None), float):
                found.append((module, name, getattr(module, name)))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _results(contender: Contender) -> dict[str, Tensor]:
    """Output in evaluation; loss and gradient in training, without dropout. Statistics are put back."""
    model = contender.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        output = model.eval()(*contender.inputs)
    with _no_dropout(model.train()):
        contender.optimizer.zero_grad()
        loss = contender.loss()
        loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return {"output": output, "loss": loss.detach(), "gradient": torch.cat(gradients)}


# Relative distances allowed. Rounding may carry a value across the kink of a ReLU or to another maximum,
# which moves a gradient by a step; deep normalised networks magnify it.
_ALLOWED = {"output": 1e-4, "loss": 1e-4, "gradient": 5e-2}


def _differences(layout: Layout, ours: dict[str, Tensor], native: dict[str, Tensor]) -> list[str]:
    found = []
    for what, allowed in _ALLOWED.items():
        reference = native[what].double()
        distance = (ours[what].double() - reference).norm() / reference.norm().clamp_min(1e-30)
        # A NaN compares false and is refused.
        if not distance.item() <= allowed:
            found.append(f"{layout}: {what} is off by {distance.item():.1e}, allowed {allowed:.0e}")
    return found


def _row(
    facts: tuple[str, int, int, int],
    what: str,
    timings: dict[tuple[str, Layout], Timing],
    foreign: float | None,
) -> NetworkRow:
    def milliseconds(side: str, layout: Layout) -> float | None:
        timing = timings.get((side, layout))
        return timing.median * 1e3 if timing else None

    name, parameters, macs, batch_size = facts
    native, ours = timings["native", Layout.NCHW], timings["ours", Layout.NCHW]
    best_ours = min(timing.median for (side, _), timing in timings.items() if side == "ours")
    best_native = min(timing.median for (side, _), timing in timings.items() if side != "ours")
    return NetworkRow(
        network=name,
        what=what,
        parameters=parameters,
        macs=macs,
        batch_size=batch_size,
        native_ms=native.median * 1e3,
        native_channels_last_ms=milliseconds("native", Layout.CHANNELS_LAST),
        compile_ms=milliseconds("compile", Layout.NCHW),
        ours_ms=ours.median * 1e3,
        ours_channels_last_ms=milliseconds("ours", Layout.CHANNELS_LAST),
        speedup_same_layout=native.median / ours.median,
        speedup_best=best_native / best_ours,
        samples=ours.samples,
        foreign_load=foreign,
    )
