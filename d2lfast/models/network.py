"""A network of the registry: how to build it, what it is trained for, and the book's settings."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models.tasks import LOSSES, Example, Task, example

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Network:
    """One entry of the registry.

    Attributes:
        name: on the command line.
        builder: `builder(**sizes, layers=namespace)`; `Task` names the sizes, which default to the book's.
        section: of the book, or where else the network is from.
        task: what it is trained for.
        data: what it is trained on: "fashion-mnist", "time-machine", ...
        shape: of one input: [C, H, W] of an image, [T] of a sequence, [features] otherwise.
        lr, batch_size, epochs, optimizer, weight_decay, clip: the book's training; `optimizer` is "sgd" or
            "adam", `clip` the largest norm of all gradients together, 0 for none.
        init: fills the parameters of a module, for `Module.apply`; None leaves what the constructor chose.
        input_tokens: size of the vocabulary of sequences.
        outputs: classes, or size of the vocabulary of the answers.
        criterion: loss of outputs and target where it is not the task's.
    """

    name: str
    builder: Builder
    section: str
    task: Task
    data: str
    shape: tuple[int, ...]
    lr: float
    batch_size: int = 128
    epochs: int = 10
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    clip: float = 0.0
    init: Callable[[nn.Module], None] | None = None
    input_tokens: int = 0
    outputs: int = 1
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def resize(self) -> int | None:
        """Height and width that images are resized to; None for networks without images."""
        return self.shape[-1] if len(self.shape) == 3 else None

    def build(self, *, layers: Any = d2lfast.nn, seed: int | None = None, **sizes: Any) -> nn.Module:
        """Return the network, initialised as the book trains it.

        Args:
            layers: `d2lfast.nn`, or `torch.nn` for the native twin.
            seed: of the parameters; the same for both namespaces gives equal parameters. None draws them from
                torch's generator as it stands.
            sizes: what differs from the book, see `Task`.
        """
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            model = self.builder(**sizes, layers=layers)
            if self.init is not None:
                model.apply(self.init)
        return model

    def sizes_for(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The sizes for `build` with which the network takes inputs of `shape`, such as 3-channel images."""
        if len(shape) == 3:
            sizes = {"in_channels": shape[0], "image_size": shape[2]}
        else:
            sizes = {"num_inputs": shape[0]}
        return {name: value for name, value in sizes.items() if name in signature(self.builder).parameters}

    def twins(self, seed: int = 0, **sizes: Any) -> tuple[nn.Module, nn.Module]:
        """Return the network and its native twin, with equal parameters."""
        ours = self.build(seed=seed, **sizes)
        native = self.build(layers=nn, seed=seed, **sizes)
        native.load_state_dict(ours.state_dict())
        return ours, native

    def example(
        self, batch_size: int | None = None, shape: tuple[int, ...] | None = None, seed: int = 0
    ) -> Example:
        """Draw a random batch of the kind that the network takes; sizes default to the book's."""
        return example(
            self.task,
            shape or self.shape,
            batch_size or self.batch_size,
            self.input_tokens,
            self.outputs,
            seed,
        )

    def loss(self, outputs: Tensor, target: Tensor, layers: Any = d2lfast.nn) -> Tensor:
        """The loss of a batch, see `Task`; computed by `torch.nn` if `layers` is that."""
        if self.criterion is not None:
            return self.criterion(outputs, target)
        return LOSSES[self.task](outputs, target, layers)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameters for an optimizer: those of more than one dimension decay, as in the book."""
        if not self.weight_decay:
            return [{"params": list(model.parameters())}]
        parameters = list(model.parameters())
        return [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1]},
        ]
