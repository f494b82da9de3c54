"""`d2lfast train`: trains one of the book's networks, alone or against its native twin."""

import importlib.util
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import d2lfast.nn
from d2lfast._extension import build_info
from d2lfast.commands import after_training, train_report
from d2lfast.commands.console import console, fail, say
from d2lfast.commands.options import network_and_sizes
from d2lfast.models import registry
from d2lfast.training import ProgressBar, Trainer, distributed, train, trainer_of, twins
from d2lfast.training.workload import workload


def command(
    network: Annotated[str, typer.Argument(help="The network; `d2lfast train list` names them.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the book's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: the book's.")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Learning rate. Default: the book's.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data. Default: D2LFAST_DATA.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the examples.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Train torch.nn's twin too, in turn.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for model, log and picture of the curves.")] = Path("."),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the model in --out.")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Train in bfloat16 where that is safe.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Layout of the images.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: torch's choice.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: cuda if built in and present.")] = None,
    resize: Annotated[int | None, typer.Option(min=8, help="Height and width of images.")] = None,
    cell: Annotated[str | None, typer.Option(help="rnn-lm: rnn, gru or lstm.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="rnn-lm, names: recurrent layers.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="rnn-lm, names: size of the state.")] = None,
    prefix: Annotated[str, typer.Option(help="Language models: the text to continue.")] = "it has",
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="names: both directions.")] = False,
    predict: Annotated[list[str] | None, typer.Option(help="names: guess the language of NAME.")] = None,
) -> None:
    """Train a network with d2lfast's layers, and say how fast it was.

    Images come from the folder named by D2LFAST_DATA, else from a download, else, offline, from
    scikit-learn's handwritten digits; texts likewise, offline from Python's own manual. Under torchrun every
    process trains on its part of each batch.
    """
    if network == "list":
        say("\n".join(sorted({*registry.NETWORKS, "rnn-lm"})))
        return
    if importlib.util.find_spec("matplotlib") is None:
        fail("Drawing the curves needs matplotlib: pip install 'd2lfast[plot]'")
    if threads is not None:
        torch.set_num_threads(threads)
    for name in predict or []:
        _checked_name(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"Nothing can be written to {out}: {error}")
    with distributed.processes(device) as own:
        console.quiet = distributed.rank() != 0
        if own is not None and compare:
            fail("--compare trains in one process; start it without torchrun")
        where = own or _device(device)
        name, sizes, label = network_and_sizes(network, cell, layers, hidden, bidirectional)
        try:
            work = workload(
                name,
                folder=data,
                batch_size=batch_size,
                lr=lr,
                epochs=epochs,
                sizes=sizes,
                label=label,
                resize=resize,
            )
        except (OSError, ValueError, ModuleNotFoundError) as error:
            fail(str(error))
        out_name = work.name
        options: dict[str, Any] = {
            "max_epochs": work.epochs,
            "seed": seed,
            "device": where,
            "amp": amp,
            "channels_last": channels_last,
            "gradient_clip_val": work.network.clip,
            "checkpoint": out / f"{out_name}.pt",
            "resume": resume,
            "log": out / f"{out_name}.csv",
            "facts": work.saved_facts,
        }
        bar = ProgressBar(console)
        try:
            if compare:
                trainers = list(twins(work.module, work.data, progress=bar, **options))
            else:
                trainers = [
                    trainer_of(work.module, d2lfast.nn, work.data, progress=bar, name="d2lfast", **options)
                ]
        except (ValueError, OSError) as error:
            fail(str(error))
        ours = trainers[0]
        train_report.introduce(work, ours, compare)
        _train(trainers, bar)
        if not ours.history:
            fail("Training was stopped before the first epoch ended.")
        console.print(train_report.curves(trainers, work))
        train_report.conclude(trainers, work)
        if distributed.rank() == 0:
            _save_curves(trainers, out / f"{out_name}.png", f"{out_name} on {work.source.split(':')[0]}")
            say(f"Model: {out / f'{out_name}.pt'}")
            after_training.run(trainers, work, out, prefix=prefix, names=predict or [])
        console.quiet = False


def _checked_name(name: str) -> None:
    from d2lfast.data.names import ascii_name

    try:
        ascii_name(name)
    except ValueError as error:
        fail(str(error))


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if build_info()["cuda"] and torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        fail(f"The device {name} cannot be used: {error}")


def _train(trainers: list[Trainer], bar: ProgressBar) -> None:
    left = sum(max(0, each.max_epochs - each.epoch) for each in trainers)
    bar.expect(left * trainers[0].num_train_batches, left)
    with bar:
        try:
            train(trainers)
        except KeyboardInterrupt:
            bar.stop()
            done = trainers[0].epoch
            say(f"Stopped after {done} epochs; the model of the last whole one is kept. --resume goes on.")
            # Of twins both have as many epochs.
            shortest = min(len(each.history) for each in trainers)
            for each in trainers:
                del each.history[shortest:]


def _save_curves(trainers: list[Trainer], path: Path, title: str) -> None:
    from d2lfast.training.plot import save_curves

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_curves(trainers, path, title)
    except OSError as error:
        fail(f"The curves could not be saved: {error}")
    say(f"Curves: {path}")
