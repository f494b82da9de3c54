"""What `d2lfast train` says before and after training."""

from collections.abc import Callable

import torch
from rich.table import Table

from d2lfast.commands.console import say
from d2lfast.models.tasks import Task
from d2lfast.training import Comparison, Epoch, Trainer, distributed
from d2lfast.training.workload import Workload, perplexity

_ROWS = 10
_Column = tuple[str, Callable[[Epoch], str]]
_INITS = {"init_cnn": "Xavier", "init_cnn_normal": "normal"}


def introduce(work: Workload, ours: Trainer, compare: bool) -> None:
    """Say what is trained, on what, and how."""
    entry = work.network
    parameters = sum(parameter.numel() for parameter in ours.model.parameters())
    init = "the network's own" if entry.init is None else _INITS.get(entry.init.__name__, entry.init.__name__)
    processes = distributed.world_size()
    say(f"Data: {work.source}.")
    say(
        f"Network: {work.name}, {parameters:,} parameters, {init} initialisation, seed {ours.seed}; "
        f"on {ours.device}, {torch.get_num_threads()} threads"
        f"{f', {processes} processes' if processes > 1 else ''}."
    )
    rules = {"sgd": "SGD", "adam": "Adam"}[entry.optimizer]
    clip = f", gradients clipped to {entry.clip:g}" if entry.clip else ""
    turns = "; d2lfast and torch take turns, epoch by epoch" if compare else ""
    say(
        f"Training: {work.epochs} epochs of {ours.num_train_batches} batches of {work.batch_size}, {rules} "
        f"with learning rate {work.lr:g}{clip}{turns}."
    )
    if ours.history:
        say(f"Resumed after epoch {len(ours.history)}.")


def curves(trainers: list[Trainer], work: Workload) -> Table:
    """The history in about `_ROWS` lines, of language models in full; the last epoch always among them."""
    columns = _columns(work, trainers[0].history[-1])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("epoch", justify="right")
    for trainer in trainers:
        for heading, _ in columns:
            table.add_column(f"{trainer.name}\n{heading}", justify="right", no_wrap=True)
    count = len(trainers[0].history)
    step = 1 if work.network.task is Task.LANGUAGE_MODEL else -(-count // _ROWS)
    for number in sorted({*range(step - 1, count, step), count - 1}):
        cells = []
        for trainer in trainers:
            cells += [value(trainer.history[number]) for _, value in columns]
        table.add_row(str(number + 1), *cells)
    return table


def _columns(work: Workload, epoch: Epoch) -> list[_Column]:
    if work.network.task is Task.LANGUAGE_MODEL:
        columns: list[_Column] = [("perplexity", lambda e: f"{perplexity(e.loss):.3f}")]
        if "loss" in epoch.validation:
            columns.append(("val. perplexity", lambda e: f"{perplexity(e.validation_loss):.3f}"))
        return columns
    columns = [("loss", lambda e: f"{e.loss:.4f}")]
    if "loss" in epoch.validation:
        columns.append(("val. loss", lambda e: f"{e.validation_loss:.4f}"))
    if "acc" in epoch.validation:
        columns.append(("val. accuracy", lambda e: f"{e.validation_accuracy:.3f}"))
    return columns


def conclude(trainers: list[Trainer], work: Workload) -> None:
    """Say how well and how fast the training went."""
    unit = "tokens" if work.items > 1 else "examples"
    speeds = [each.examples_per_second * work.items for each in trainers]
    language = work.network.task is Task.LANGUAGE_MODEL
    if len(trainers) == 1:
        last = trainers[0].history[-1]
        if language:
            say(f"Perplexity: {perplexity(last.loss):.2f} in training.")
        if "acc" in last.validation:
            say(f"Validation accuracy: {last.validation_accuracy:.3f}.")
        say(f"Training speed: {speeds[0]:,.0f} {unit}/s (median of the epochs).")
        return
    comparison = Comparison(*trainers)
    validation = ""
    if "loss" in trainers[0].history[-1].validation:
        validation = f", {comparison.validation_loss_difference:.1e} in validation"
    say(f"Largest difference of the loss curves: {comparison.loss_difference:.1e} in training{validation}.")
    if language:
        values = [f"{each.name} {perplexity(each.history[-1].loss):.2f}" for each in trainers]
        say(f"Training perplexity: {', '.join(values)}.")
    if "acc" in trainers[0].history[-1].validation:
        accuracies = [f"{each.name} {each.history[-1].validation_accuracy:.3f}" for each in trainers]
        say(f"Validation accuracy: {', '.join(accuracies)}.")
    texts = [f"{each.name} {speed:,.0f}" for each, speed in zip(trainers, speeds)]
    say(
        f"{unit.capitalize()}/s in training (median of the epochs): {', '.join(texts)}; "
        f"speed-up {comparison.speed_up:.2f}."
    )
