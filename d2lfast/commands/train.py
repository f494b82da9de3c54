"""`d2lfast train`: trains one of the book's networks, alone or against its native twin."""

import importlib.util
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from d2lfast import models
from d2lfast._extension import build_info
from d2lfast.commands.console import console, fail
from d2lfast.data import Images, default_images
from d2lfast.training import RECIPES, Comparison, Epoch, Run, train, twins

_ROWS = 10


class Network(str, Enum):
    """The networks that can be trained."""

    lenet = "lenet"
    bn_lenet = "bn-lenet"


_BUILDERS = {Network.lenet: models.lenet, Network.bn_lenet: models.bn_lenet}


def command(
    network: Annotated[Network, typer.Argument(help="The network.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: by the size of the data set.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: the network's.")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Learning rate. Default: the network's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the images.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Train torch.nn's twin too, in turn.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the picture of the curves.")] = Path("."),
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: torch's choice.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: cuda if built in and present.")] = None,
) -> None:
    """Train a network on Fashion-MNIST with d2lfast's layers, and say how fast it was.

    The images come from the folder named by D2LFAST_DATA, else from a download, else, offline, from
    scikit-learn's handwritten digits.
    """
    if importlib.util.find_spec("matplotlib") is None:
        fail("Drawing the curves needs matplotlib: pip install 'd2lfast[plot]'")
    if threads is not None:
        torch.set_num_threads(threads)
    recipe = RECIPES[network.value]
    images = _images()
    batch_size = batch_size or recipe.batch_size
    lr = recipe.learning_rate if lr is None else lr
    epochs = epochs or recipe.epochs_for(len(images.train_labels), batch_size)
    where = _device(device)
    runs = twins(_BUILDERS[network], images, batch_size=batch_size, learning_rate=lr, seed=seed, device=where)
    ours, native = runs
    parameters = sum(parameter.numel() for parameter in ours.model.parameters())
    _say(f"Data: {images}.")
    _say(
        f"Network: {network.value}, {parameters:,} parameters, Xavier initialisation, seed {seed}; "
        f"on {where}, {torch.get_num_threads()} threads."
    )
    _say(
        f"Training: {epochs} epochs of {len(ours.training_batches)} batches of {batch_size}, SGD with "
        f"learning rate {lr:g}{'; d2lfast and torch take turns, epoch by epoch' if compare else ''}."
    )
    trained = list(runs) if compare else [ours]
    _train(trained, epochs)
    console.print(_curves(trained))
    if compare:
        _say_comparison(Comparison(ours, native))
    else:
        _say(f"Training speed: {ours.examples_per_second:,.0f} examples/s (median of the epochs).")

    from d2lfast.training.plot import save_curves

    path = out / f"{network.value}.png"
    try:
        save_curves(trained, path, f"{network.value} on {images.name}")
    except OSError as error:
        fail(f"The curves could not be saved: {error}")
    _say(f"Curves: {path}")


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _images() -> Images:
    try:
        return default_images()
    except (OSError, ValueError, ModuleNotFoundError) as error:
        fail(str(error))


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if build_info()["cuda"] and torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        fail(f"The device {name} cannot be used: {error}")


def _train(runs: list[Run], epochs: int) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
    )
    # Refreshed between epochs only: a thread that draws would take time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("training", total=epochs * len(runs), news="")

        def show(run: Run, epoch: Epoch) -> None:
            news = f"{run.name}: loss {epoch.loss:.3f}, validation accuracy {epoch.validation_accuracy:.3f}"
            progress.update(task, advance=1, news=news, refresh=True)

        train(runs, epochs, show)


def _curves(runs: list[Run]) -> Table:
    """The history of the runs in at most about `_ROWS` lines, the last epoch always among them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("epoch", justify="right")
    for run in runs:
        for heading in ("loss", "val. loss", "val. accuracy"):
            table.add_column(f"{run.name}\n{heading}", justify="right", no_wrap=True)
    count = len(runs[0].history)
    step = -(-count // _ROWS)
    for number in sorted({*range(step - 1, count, step), count - 1}):
        cells = []
        for run in runs:
            epoch = run.history[number]
            cells += [f"{epoch.loss:.4f}", f"{epoch.validation_loss:.4f}", f"{epoch.validation_accuracy:.3f}"]
        table.add_row(str(number + 1), *cells)
    return table


def _say_comparison(comparison: Comparison) -> None:
    runs = (comparison.ours, comparison.native)
    accuracies = [f"{run.name} {run.history[-1].validation_accuracy:.3f}" for run in runs]
    speeds = [f"{run.name} {run.examples_per_second:,.0f}" for run in runs]
    _say(
        f"Largest difference of the loss curves: {comparison.loss_difference:.1e} in training, "
        f"{comparison.validation_loss_difference:.1e} in validation."
    )
    _say(f"Validation accuracy: {', '.join(accuracies)}.")
    _say(
        f"Examples/s in training (median of the epochs): {', '.join(speeds)}; "
        f"speed-up {comparison.speed_up:.2f}."
    )
