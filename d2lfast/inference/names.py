"""Guessing the language of a name, and where the guesses go wrong."""

from typing import Any

import torch
from torch import Tensor

from d2lfast._atomic import replacing
from d2lfast.data.names import encode_names

__all__ = ["confusion_matrix", "guess", "save_confusion"]


@torch.no_grad()
def guess(net: Any, name: str, languages: list[str], count: int = 3) -> list[tuple[str, float]]:
    """Return the `count` likeliest languages of a name with their probabilities.

    Raises:
        ValueError: the name has no Latin letters.
    """
    tokens, lengths = encode_names([name])
    training = net.training
    net.eval()
    device = next(net.parameters()).device
    probabilities = net(tokens.to(device), lengths.to(device))[0].softmax(0)
    net.train(training)
    values, indices = probabilities.topk(min(count, len(languages)))
    return [(languages[index], value) for index, value in zip(indices.tolist(), values.tolist())]


@torch.no_grad()
def confusion_matrix(net: Any, batches: Any, classes: int) -> Tensor:
    """Return [classes, classes]: how many of each class (row) were taken for which (column)."""
    training = net.training
    net.eval()
    device = next(net.parameters()).device
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for *inputs, labels in batches:
        guessed = net(*(each.to(device) for each in inputs)).argmax(-1).cpu()
        counts += torch.bincount(labels * classes + guessed, minlength=classes * classes)
    net.train(training)
    return counts.reshape(classes, classes)


def save_confusion(counts: Tensor, classes: list[str], path: Any, title: str) -> None:
    """Draw a confusion matrix, every row by its share, to a PNG file."""
    from matplotlib.figure import Figure

    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    size = 2 + 0.35 * len(classes)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="guessed", ylabel="true", title=title)
    figure.colorbar(image, shrink=0.8, label="share of the row")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
