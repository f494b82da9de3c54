"""Every network by name: how to build it, what it is trained for, and the book's settings.

The command line, the benchmarks and the tests iterate over `NETWORKS`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import d2lfast.nn
from d2lfast.models import recurrent
from d2lfast.models.alexnet import AlexNet
from d2lfast.models.init import init_cnn
from d2lfast.models.language_model import RNNLM
from d2lfast.models.lenet import BNLeNet, LeNet
from d2lfast.models.resnet import ResNet18
from d2lfast.models.tasks import LOSSES, Example, Task, example

__all__ = ["NETWORKS", "Network", "network"]

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

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, see `Task`."""
        return LOSSES[self.task](outputs, target)


def network(name: str) -> Network:
    """Return the network of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    try:
        return NETWORKS[name]
    except KeyError:
        close = difflib.get_close_matches(name, NETWORKS, n=3) or NETWORKS
        raise ValueError(f"no network is called {name!r}; perhaps {', '.join(close)}") from None


def _images(name: str, builder: Builder, section: str, lr: float, size: int = 28, **rest: Any) -> Network:
    return Network(
        name, builder, section, Task.CLASSIFICATION, "fashion-mnist", (1, size, size), lr, outputs=10, **rest
    )


def _rnn_lm(vocab_size: int = 28, num_hiddens: int = 32, *, layers: Any = d2lfast.nn) -> RNNLM:
    return RNNLM(recurrent.RNN(vocab_size, num_hiddens, layers=layers), vocab_size, layers=layers)


def _language_model(name: str, builder: Builder, section: str, lr: float, epochs: int) -> Network:
    return Network(
        name, builder, section, Task.LANGUAGE_MODEL, "time-machine", (32,), lr, batch_size=1024,
        epochs=epochs, clip=1.0, input_tokens=28, outputs=28,
    )  # fmt: skip


NETWORKS: dict[str, Network] = {
    entry.name: entry
    for entry in (
        _images("lenet", LeNet, "7.6", 0.1, init=init_cnn),
        _images("bn-lenet", BNLeNet, "8.5", 0.1, init=init_cnn),
        _images("alexnet", AlexNet, "8.1", 0.01, 224),
        _images("resnet18", ResNet18, "8.6", 0.01, 96, init=init_cnn),
        _language_model("rnn", _rnn_lm, "9.6", 1.0, 100),
    )
}
