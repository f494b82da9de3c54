"""From the words of the command line to an entry of the registry."""

from typing import Any

from d2lfast.commands.console import usage_error
from d2lfast.models import registry

_CELLS = ("rnn", "gru", "lstm")


def network_and_sizes(
    name: str, cell: str | None, layers: int | None, hidden: int | None, bidirectional: bool
) -> tuple[str, dict[str, Any], str]:
    """Return the name in the registry, the sizes that were asked for, and how the files are called."""
    sizes: dict[str, Any] = {}
    label = name
    if name == "rnn-lm":
        cell = cell or "rnn"
        if cell not in _CELLS:
            usage_error(f"--cell must be one of {', '.join(_CELLS)}, not {cell!r}")
        name, label = cell, f"rnn-lm-{cell}"
        if layers and layers > 1:
            sizes["num_layers"], label = layers, f"{label}-{layers}"
    elif cell is not None:
        usage_error("--cell is for rnn-lm")
    if name not in registry.NETWORKS:
        try:
            registry.network(name)
        except ValueError as error:
            usage_error(f"{error}; `d2lfast train list` names all")
    data = registry.NETWORKS[name].data
    if layers is not None and data not in ("time-machine", "names"):
        usage_error("--layers is for rnn-lm and names")
    if hidden is not None:
        if data not in ("time-machine", "names"):
            usage_error("--hidden is for rnn-lm and names")
        sizes["num_hiddens"] = hidden
    if data == "names":
        if layers is not None:
            sizes["num_layers"] = layers
        if bidirectional:
            sizes["bidirectional"] = True
    elif bidirectional:
        usage_error("--bidirectional is for names")
    return name, sizes, label
