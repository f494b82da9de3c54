"""Learning curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

from d2lfast._atomic import replacing
from d2lfast.training.trainer import Trainer

_NAMES = {"acc": "accuracy", "ppl": "perplexity"}


def save_curves(trainers: Sequence[Trainer], path: Path, title: str) -> None:
    """Draw what `trainers` recorded over the epochs, training and validation, to a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Drawing the curves needs matplotlib: pip install 'd2lfast[plot]'", name=error.name
        ) from error
    keys = list(dict.fromkeys(key for t in trainers for e in t.history for key in e.training)) or ["loss"]
    figure = Figure(figsize=(5 * len(keys), 4.2), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    # The later curve covers the earlier where they agree: it is thinner, so that both are seen.
    styles = [("tab:orange", 4.0), ("tab:blue", 1.4)]
    for number, trainer in enumerate(reversed(trainers)):
        color, width = styles[(number + 2 - len(trainers)) % 2]
        for axes, key in zip(panels, keys):
            for part, dashes in (("training", "-"), ("validation", "--")):
                points = [
                    (index, getattr(epoch, part)[key])
                    for index, epoch in enumerate(trainer.history, 1)
                    if key in getattr(epoch, part)
                ]
                if points:
                    axes.plot(
                        *zip(*points), color=color, lw=width, ls=dashes, label=f"{trainer.name}, {part}"
                    )
    for axes, key in zip(panels, keys):
        axes.set(xlabel="epoch", ylabel=_NAMES.get(key, key), ylim=(0, 1) if key == "acc" else (0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
