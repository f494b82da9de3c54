"""The state of a training after a whole epoch, in a file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from d2lfast._atomic import replacing
from d2lfast.training.epoch import Epoch

_FORMAT = 1


def save(
    path: str | Path,
    model: torch.nn.Module,
    optim: Any,
    history: list[Epoch],
    seed: int | None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write model, optimizer and history to `path`; an interruption leaves the file before."""
    state = {
        "format": _FORMAT,
        "model": model.state_dict(),
        # The book's own SGD has no state.
        "optimizer": optim.state_dict() if hasattr(optim, "state_dict") else None,
        "history": [asdict(epoch) for epoch in history],
        "seed": seed,
        "random": torch.get_rng_state(),
        "facts": facts or {},
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote; only tensors and plain values are accepted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or something else; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no checkpoint, or damaged ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path} is no checkpoint of d2lfast's trainer")
    return state


def restore(
    path: str | Path, model: torch.nn.Module, optim: Any, device: torch.device
) -> tuple[list[Epoch], int | None]:
    """Put the state in `path` into `model` and `optim`, and return the history and the seed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another model; the message names it.
    """
    state = load(path, device)
    try:
        model.load_state_dict(state["model"])
        if state["optimizer"] is not None and hasattr(optim, "load_state_dict"):
            optim.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()[:40])
        raise ValueError(f"{path} belongs to another model: {reason}") from error
    if state["seed"] is None:
        torch.set_rng_state(state["random"].cpu())
    return [Epoch(**values) for values in state["history"]], state["seed"]
