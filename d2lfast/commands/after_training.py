"""What a trained network is tried on."""

from pathlib import Path

from d2lfast.commands.console import fail, say
from d2lfast.inference.language import generate
from d2lfast.inference.names import confusion_matrix, guess, save_confusion
from d2lfast.inference.translation import BOOK_SENTENCES, Translator, bleu
from d2lfast.models.tasks import Task
from d2lfast.training import Trainer
from d2lfast.training.workload import Workload


def run(trainers: list[Trainer], work: Workload, out: Path, *, prefix: str, names: list[str]) -> None:
    """Let the networks do what they were trained for."""
    if work.network.data == "time-machine":
        _continue(trainers, work, prefix)
    elif work.network.task is Task.NAMES:
        _guess(trainers, work, out, names)
    elif work.network.task is Task.TRANSLATION:
        _translate(trainers, work)


def _continue(trainers: list[Trainer], work: Workload, prefix: str) -> None:
    for trainer in trainers:
        try:
            say(f"{trainer.name}: {generate(trainer.model.net, work.facts['vocab'], prefix, 50)}")
        except ValueError as error:
            fail(str(error))


def _guess(trainers: list[Trainer], work: Workload, out: Path, names: list[str]) -> None:
    classes = work.facts["classes"]
    counts = confusion_matrix(trainers[0].model.net, work.data.val_dataloader(), len(classes))
    path = out / f"{work.name}-confusion.png"
    save_confusion(counts, classes, path, "Names for validation")
    say(f"Confusion matrix: {path}")
    for name in names:
        for trainer in trainers:
            likely = ", ".join(
                f"{language} {p:.2f}" for language, p in guess(trainer.model.net, name, classes)
            )
            say(f"{trainer.name}: {name}: {likely}")


def _translate(trainers: list[Trainer], work: Workload) -> None:
    facts = work.facts
    for trainer in trainers:
        translator = Translator(trainer.model.net, facts["src_vocab"], facts["tgt_vocab"], facts["num_steps"])
        for english, french in BOOK_SENTENCES:
            found = translator.translate(english)
            say(f"{trainer.name}: {english} -> {found}, BLEU {bleu(found, french, k=2):.3f}")
