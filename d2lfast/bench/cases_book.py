"""Every convolution of the book's networks at the book's sizes, found by running them without data."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from d2lfast.bench.case import Case
from d2lfast.bench.cases_conv2d import conv2d_case
from d2lfast.models.registry import NETWORKS

# Multiply-adds of one case; the book's batches of large layers would take seconds a pass.
_MACS = 5e8


@dataclass(frozen=True)
class Convolution:
    """A convolution as a network calls it, for one image.

    Attributes:
        shape: of the image [C,H,W].
        weight: shape [O,C/groups,KH,KW].
        stride, padding, groups, bias, activation: as in the layer.
        first: its input is the network's, which needs no gradient.
    """

    shape: tuple[int, int, int]
    weight: tuple[int, ...]
    stride: int
    padding: int
    groups: int
    bias: bool
    activation: str
    first: bool

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the output."""
        rows, columns = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(self.shape[1:], self.weight[2:])
        )
        return rows, columns

    @property
    def macs(self) -> int:
        """Multiply-adds of an image."""
        o, c, kh, kw = self.weight
        return o * c * kh * kw * self.result[0] * self.result[1]

    @property
    def label(self) -> str:
        """What it is, in the order of a line of the book: 64x56x56-128-k3-s2-p1."""
        words = ["x".join(map(str, self.shape)), str(self.weight[0]), f"k{self.weight[2]}"]
        words += [f"{key}{value}" for key, value, usual in (
            ("s", self.stride, 1), ("p", self.padding, 0), ("g", self.groups, 1),
        ) if value != usual]  # fmt: skip
        words += ["bias"] if self.bias else []
        words += [self.activation] if self.activation != "none" else []
        words += ["first"] if self.first else []
        return "-".join(words)


def convolutions(model: nn.Module, *inputs: Tensor) -> list[Convolution]:
    """The square convolutions that a model of torch's layers calls, in the order of the calls."""
    found = []
    known = {id(value) for value in inputs}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        (x,) = args
        assert len({*module.kernel_size}) == len({*module.stride}) == len({*module.padding}) == 1
        assert set(module.dilation) == {1}
        assert module.padding_mode == "zeros"
        _, c, h, w = x.shape
        found.append(
            Convolution(
                (c, h, w), tuple(module.weight.shape), module.stride[0], module.padding[0], module.groups,
                module.bias is not None, getattr(module, "activation", "none"), id(x) in known,
            )
        )  # fmt: skip

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@cache
def book_cases() -> tuple[Case, ...]:
    """Each convolution once, under the first network that has it, at the largest batch that is quick enough.

    The batch is the network's or a power of two below it.
    """
    cases: dict[Convolution, Case] = {}
    for network in NETWORKS.values():
        if len(network.shape) != 3:
            continue
        with torch.device("meta"):
            model = network.build(layers=nn, **network.sizes_for(network.shape))
            image = torch.empty(1, *network.shape)
        for each in convolutions(model, image):
            if each in cases:
                continue
            most = max(1, int(_MACS / each.macs))
            batch = network.batch_size if network.batch_size <= most else 1 << (most.bit_length() - 1)
            cases[each] = conv2d_case(
                f"book/{network.name}/{each.label}", (batch, *each.shape), each.weight[0], each.weight[2],
                each.stride, each.padding, each.groups, each.bias, not each.first, each.activation,
            )  # fmt: skip
    return tuple(cases.values())
