"""Curves that are drawn while a model trains: live in a notebook, as a picture elsewhere (book, 3.2.1)."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2lfast._atomic import replacing
from d2lfast.hyperparameters import HyperParameters

__all__ = ["Point", "ProgressBoard", "in_notebook"]

_REDRAW_SECONDS = 0.25


class Point(NamedTuple):
    """A point of a curve."""

    x: float
    y: float


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


class ProgressBoard(HyperParameters):
    """Collects the points of labelled curves in `data`, and draws them.

    In a notebook the picture follows the training; elsewhere `save` writes it to a file. Nothing is imported
    for drawing before it is needed.
    """

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        xlim: tuple[float, float] | None = None,
        ylim: tuple[float, float] | None = None,
        xscale: str = "linear",
        yscale: str = "linear",
        ls: Sequence[str] = ("-", "--", "-.", ":"),
        colors: Sequence[str] = ("C0", "C1", "C2", "C3"),
        fig: Any = None,
        axes: Any = None,
        figsize: tuple[float, float] = (3.5, 2.5),
        display: bool = True,
    ) -> None:
        self.save_hyperparameters()
        self.raw_points: dict[str, list[tuple[float, Any]]] = {}
        self.data: dict[str, list[Point]] = {}
        self.xlabel, self.xlim, self.display = xlabel, xlim, display
        self._drawn = 0.0

    def draw(self, x: float, y: Any, label: str, every_n: int = 1) -> None:
        """Add a point to the curve `label`; every `every_n` of them become one, their mean."""
        points = self.raw_points.setdefault(label, [])
        points.append((x, y))
        if len(points) < max(1, every_n):
            return
        count = len(points)
        point = Point(sum(x for x, _ in points) / count, float(sum(y for _, y in points)) / count)
        self.data.setdefault(label, []).append(point)
        points.clear()
        if self.display and in_notebook() and time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self.show()

    def show(self) -> None:
        """Draw the curves anew in the notebook; elsewhere do nothing."""
        if not (self.display and in_notebook() and self.data):
            return
        from IPython import display

        self._drawn = time.monotonic()
        display.display(self.figure())
        display.clear_output(wait=True)

    def save(self, path: str | Path) -> None:
        """Write the curves to a picture; its format follows from the name.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        figure = self.figure()
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)

    def figure(self) -> Any:
        """Return the curves as a figure of matplotlib."""
        figure, axes = self.fig, self.axes
        if axes is None:
            try:
                from matplotlib.figure import Figure
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "Drawing the curves needs matplotlib: pip install 'd2lfast[plot]'", name=error.name
                ) from error
            figure = figure or Figure(figsize=self.figsize, layout="constrained")
            figure.clear()
            axes = figure.subplots()
        else:
            figure = axes.figure
            axes.clear()
        for number, (label, points) in enumerate(self.data.items()):
            style = {"ls": self.ls[number % len(self.ls)], "color": self.colors[number % len(self.colors)]}
            axes.plot([p.x for p in points], [p.y for p in points], label=label, **style)
        axes.set(xscale=self.xscale, yscale=self.yscale, ylabel=self.ylabel or "")
        axes.set_xlabel(self.xlabel or getattr(self, "x", ""))
        for limits, setter in ((self.xlim, axes.set_xlim), (self.ylim, axes.set_ylim)):
            if limits:
                setter(limits)
        if self.data:
            axes.legend()
        return figure
