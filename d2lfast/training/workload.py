"""What `d2lfast train` trains: a network of the registry, its data and the book's settings together."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from d2lfast.data import (
    DataModule,
    ImageData,
    MTFraEng,
    Names,
    SyntheticRegressionData,
    TensorLoader,
    TextData,
    WeightDecayData,
    default_images,
    english_text,
)
from d2lfast.data.csv_data import CSVData
from d2lfast.data.files import find_file
from d2lfast.models import RNNLM, Network, hello_example, recurrent
from d2lfast.models.registry import network
from d2lfast.models.tasks import Task, masked_cross_entropy
from d2lfast.training.network import NetworkModule
from d2lfast.training.recipe import RECIPES

__all__ = ["Workload", "workload"]

_ACCURACY = {Task.CLASSIFICATION, Task.NAMES}


@dataclass(frozen=True)
class _Criterion:
    """A loss by the functions of `layers`; copies of a network share it, as modules cannot be copied."""

    loss: Callable[..., torch.Tensor]
    layers: Any

    def __call__(self, outputs: Any, target: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, target, layers=self.layers)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Criterion":
        return self


@dataclass(frozen=True)
class Workload:
    """A network with data to train it on.

    Attributes:
        name: of the network, and of the files it is saved to.
        network: its entry in the registry.
        data: the data set.
        source: the data set in words.
        batch_size, lr, epochs: of the training.
        sizes: what the network is built with besides the book's.
        asked: the same as `network_of` takes it.
        facts: what `load_saved` needs besides the parameters; saved with them.
        loss: of outputs, target and `layers`; None: the network's.
        items: tokens per example, for speeds; 1 if examples count.
    """

    name: str
    network: Network
    data: DataModule
    source: str
    batch_size: int
    lr: float
    epochs: int
    sizes: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    loss: Callable[..., torch.Tensor] | None = None
    items: int = 1

    def module(self, layers: Any) -> NetworkModule:
        """Return the network, built from `layers`, with its loss and optimizer."""
        net = self.network.build(layers=layers, **self.sizes)
        return NetworkModule(
            net,
            _Criterion(self.loss or self.network.loss, layers),
            self.lr,
            optimizer=self.network.optimizer,
            weight_decay=self.network.weight_decay,
            accuracy=self.network.task in _ACCURACY,
        )

    @property
    def saved_facts(self) -> dict[str, Any]:
        """What a checkpoint says of the network."""
        return {"network": self.network.name, "sizes": self.asked, **self.facts}


def network_of(facts: dict[str, Any]) -> tuple[Network, dict[str, Any]]:
    """Return the entry of the registry that `saved_facts` speak of, and the sizes for its builder.

    Raises:
        ValueError: there is no such network.
    """
    entry, sizes = network(facts["network"]), dict(facts["sizes"])
    if entry.task is Task.LANGUAGE_MODEL and "num_layers" in sizes:
        entry = _deep(entry, sizes)
    if "resize" in sizes:
        size = sizes.pop("resize")
        if not entry.resize:
            raise ValueError(f"{entry.name} does not take images")
        entry = replace(entry, shape=(entry.shape[0], size, size))
        if "image_size" in inspect.signature(entry.builder).parameters or entry.name.startswith("vgg"):
            # Its linear layers have their widths from the image.
            sizes["image_size"] = size
    return entry, sizes


def _deep(entry: Network, sizes: dict[str, Any]) -> Network:
    """The language model `entry` with several layers, at the book's learning rate for two."""
    num_layers = sizes.pop("num_layers")
    kind: Any = getattr(recurrent, entry.name.upper())

    def build(vocab_size: int = 28, num_hiddens: int = 32, *, layers: Any) -> Any:
        return RNNLM(kind(vocab_size, num_hiddens, num_layers, layers=layers), vocab_size, layers=layers)

    return replace(entry, builder=build, lr=2.0, epochs=100)


@dataclass(frozen=True)
class _Part:
    """What a data set contributes to a workload."""

    data: DataModule
    source: str
    examples: int
    sizes: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    loss: Callable[..., torch.Tensor] | None = None
    items: int = 1


def workload(
    name: str,
    *,
    folder: str | Path | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    sizes: dict[str, Any] | None = None,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    label: str | None = None,
    resize: int | None = None,
) -> Workload:
    """Return the network `name` with its data; what is None is as in the book.

    Args:
        name: in the registry.
        folder: of the data, default D2LFAST_DATA.
        batch_size, lr, epochs: of the training.
        sizes: of the network.
        augment: what is done with every training batch of images.
        label: how the workload is called; default `name`.
        resize: height and width of images.

    Raises:
        ValueError: there is no such network, or a file of the data is damaged.
        OSError: the data are not there and cannot be downloaded.
    """
    asked = dict(sizes or {})
    if resize is not None:
        asked["resize"] = resize
    entry, sizes = network_of({"network": name, "sizes": asked})
    batch_size = batch_size or entry.batch_size
    part = _SOURCES[entry.data](entry, batch_size, folder, augment)
    recipe = RECIPES.get(name)
    if recipe is not None:
        epochs = epochs or recipe.epochs_for(part.examples, batch_size)
        lr = recipe.learning_rate if lr is None else lr
    return Workload(
        name=label or name,
        network=entry,
        data=part.data,
        source=part.source,
        batch_size=batch_size,
        lr=entry.lr if lr is None else lr,
        epochs=epochs or entry.epochs,
        sizes={**part.sizes, **sizes},
        asked={**part.sizes, **asked},
        facts=part.facts,
        loss=part.loss,
        items=part.items,
    )


def _images(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    images = default_images(folder)
    size = entry.resize or 28
    data = ImageData(images, batch_size, (size, size), augment)
    suffix = "" if size == 28 else f", resized to {size}x{size}"
    facts = {"classes": list(images.classes), "resize": size}
    return _Part(data, f"{images}{suffix}", len(data.train), {"num_classes": len(images.classes)}, facts)


def _time_machine(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    text, source = english_text(folder)
    data = TextData(text, batch_size, entry.shape[0])
    tokens = data.vocab.idx_to_token
    source = f"{source}: {len(data.corpus):,} characters of {len(tokens)} kinds"
    examples = min(data.num_train, len(data.X))
    return _Part(data, source, examples, {"vocab_size": len(tokens)}, {"vocab": tokens}, items=entry.shape[0])


def _names(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    data = Names(batch_size, folder)
    classes = list(data.languages)
    source = (
        f"{len(data.names):,} names in {len(classes)} languages, {len(data.train_indices):,} for training"
    )
    return _Part(data, source, len(data.train_indices), {"num_classes": len(classes)}, {"classes": classes})


def _translation(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    data = MTFraEng(batch_size, entry.shape[0], root=folder)
    padding = data.tgt_vocab["<pad>"]
    source = (
        f"{data.num_train:,} English-French sentence pairs, vocabularies of {len(data.src_vocab)} and "
        f"{len(data.tgt_vocab)} words"
    )

    return _Part(
        data,
        source,
        data.num_train,
        {"src_vocab_size": len(data.src_vocab), "tgt_vocab_size": len(data.tgt_vocab)},
        {
            "src_vocab": data.src_vocab.idx_to_token,
            "tgt_vocab": data.tgt_vocab.idx_to_token,
            "num_steps": data.num_steps,
        },
        partial(masked_cross_entropy, padding=padding),
        items=data.num_steps,
    )


def _synthetic(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = SyntheticRegressionData(torch.tensor([2.0, -3.4]), 4.2, batch_size=batch_size)
    return _Part(data, "1,000 synthetic examples with w = [2, -3.4], b = 4.2", data.num_train)


def _weight_decay(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = WeightDecayData(20, 100, entry.shape[0], batch_size)
    return _Part(data, "20 synthetic examples of 200 inputs, 100 for validation", data.num_train)


def _diabetes(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    found = find_file("diabetes.csv.gz", "diabetes", folder) or find_file("diabetes.csv", "diabetes", folder)
    if found is None:
        raise FileNotFoundError(
            "diabetes.csv.gz, the course's table of eight features and a label, is not in the data folder; "
            "name the folder by --data or D2LFAST_DATA"
        )
    data = CSVData(found, batch_size)
    width = data.X.shape[1]
    return _Part(data, f"{found}, {len(data.X):,} rows", data.num_train, {"num_inputs": width})


def _hello(entry: Network, batch_size: int, folder: Any, augment: Any) -> _Part:
    data = _Fixed(*hello_example())
    return _Part(data, 'the word "hello", to be answered with "ohlol"', 1)


class _Fixed(DataModule):
    """One batch to train on, and none to validate."""

    def __init__(self, *batch: torch.Tensor) -> None:
        super().__init__()
        self.batch = batch

    def get_dataloader(self, train: bool) -> TensorLoader | None:  # type: ignore[override]
        return TensorLoader(*self.batch, batch_size=len(self.batch[0])) if train else None


_SOURCES: dict[str, Callable[..., _Part]] = {
    "fashion-mnist": _images,
    "time-machine": _time_machine,
    "names": _names,
    "translation": _translation,
    "synthetic-regression": _synthetic,
    "weight-decay": _weight_decay,
    "diabetes": _diabetes,
    "hello": _hello,
}


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
