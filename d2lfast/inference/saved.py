"""Networks that `d2lfast train` saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import d2lfast.nn
from d2lfast.training import checkpoint
from d2lfast.training.workload import network_of

__all__ = ["Saved", "load_saved"]


@dataclass(frozen=True)
class Saved:
    """A trained network, in evaluation mode, and what its training kept besides: vocabularies, classes."""

    net: Any
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the network in the registry."""
        return self.facts["network"]


def load_saved(path: str | Path, data: str | None = None, layers: Any = d2lfast.nn) -> Saved:
    """Load a network from the file that `d2lfast train` wrote.

    Args:
        path: the file.
        data: what it must have been trained on, as the registry calls it; None takes any.
        layers: namespace to build it from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or another kind of network; the message names it.
    """
    state = checkpoint.load(path)
    facts = state.get("facts") or {}
    if "network" not in facts:
        raise ValueError(f"{path} does not say which network it holds; it was not written by d2lfast train")
    entry, sizes = network_of(facts)
    if data is not None and entry.data != data:
        raise ValueError(f"{path} holds {entry.name}, which is trained on {entry.data}, not on {data}")
    net = entry.build(layers=layers, **sizes)
    try:
        net.load_state_dict({name.removeprefix("net."): value for name, value in state["model"].items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise ValueError(f"{path} does not fit the network {entry.name}: {reason}") from error
    return Saved(net.eval(), facts)
