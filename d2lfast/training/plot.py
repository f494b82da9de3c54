"""Learning curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

from d2lfast.training.classifier import Run


def save_curves(runs: Sequence[Run], path: Path, title: str) -> None:
    """Draw loss and accuracy of `runs` over the epochs, training and validation, to a PNG file.

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
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    # The later curve covers the earlier where they agree: it is thinner, so that both are seen.
    styles = [("tab:orange", 4.0), ("tab:blue", 1.4)]
    for number, run in enumerate(reversed(runs)):
        color, width = styles[(number + 2 - len(runs)) % 2]
        epochs = range(1, len(run.history) + 1)
        for axes, name in ((left, "loss"), (right, "accuracy")):
            training = [getattr(epoch, name) for epoch in run.history]
            validation = [getattr(epoch, f"validation_{name}") for epoch in run.history]
            axes.plot(epochs, training, color=color, lw=width, label=f"{run.name}, training")
            axes.plot(epochs, validation, color=color, lw=width, ls="--", label=f"{run.name}, validation")
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.set(xlabel="epoch", ylabel=name, ylim=(0, 1) if name == "accuracy" else (0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
