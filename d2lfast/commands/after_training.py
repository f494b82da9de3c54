"""What a trained network is tried on."""

from pathlib import Path

from d2lfast.commands.console import say
from d2lfast.inference.language import generate
from d2lfast.training import Trainer
from d2lfast.training.workload import Workload


def run(trainers: list[Trainer], work: Workload, out: Path, *, prefix: str, names: list[str]) -> None:
    """Let the networks do what they were trained for."""
    if work.network.data == "time-machine":
        for trainer in trainers:
            say(f"{trainer.name}: {generate(trainer.model.net, work.facts['vocab'], prefix, 50)}")
