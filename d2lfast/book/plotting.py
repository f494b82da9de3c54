"""Pictures as the book draws them. Needs matplotlib, when it draws."""

from collections.abc import Sequence
from typing import Any

import torch

from d2lfast.training.board import in_notebook

__all__ = [
    "Animator", "plot", "set_axes", "set_figsize", "show_list_len_pair_hist", "use_svg_display",
]  # fmt: skip

_FMTS = ("-", "m--", "g-.", "r:")


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Drawing needs matplotlib: pip install 'd2lfast[plot]'", name=error.name
        ) from error
    return plt


def use_svg_display() -> None:
    """Draw sharp pictures in notebooks; elsewhere do nothing."""
    if in_notebook():
        from matplotlib_inline import backend_inline

        backend_inline.set_matplotlib_formats("svg")


def set_figsize(figsize: tuple[float, float] = (3.5, 2.5)) -> None:
    """Set the size of the figures to come, in inches."""
    use_svg_display()
    _pyplot().rcParams["figure.figsize"] = figsize


def set_axes(
    axes: Any, xlabel: Any, ylabel: Any, xlim: Any, ylim: Any, xscale: str, yscale: str, legend: Any
) -> None:
    """Set labels, scales, limits and legend; None leaves them."""
    axes.set_xlabel(xlabel or "")
    axes.set_ylabel(ylabel or "")
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    if xlim is not None:
        axes.set_xlim(xlim)
    if ylim is not None:
        axes.set_ylim(ylim)
    if legend:
        axes.legend(legend)
    axes.grid()


def plot(
    X: Any,
    Y: Any = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    legend: Sequence[str] = (),
    xlim: Any = None,
    ylim: Any = None,
    xscale: str = "linear",
    yscale: str = "linear",
    fmts: Sequence[str] = _FMTS,
    figsize: tuple[float, float] = (3.5, 2.5),
    axes: Any = None,
) -> Any:
    """Draw curves Y over X, or X over 0, 1, ...; one of either may serve several of the other.

    Returns the axes, which the book does not.
    """
    set_figsize(figsize)
    axes = _pyplot().gca() if axes is None else axes
    xs, ys = ([[]], _curves(X)) if Y is None else (_curves(X), _curves(Y))
    if len(xs) == 1:
        xs = xs * len(ys)
    if len(ys) == 1:
        ys = ys * len(xs)
    axes.cla()
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        style = fmts[number % len(fmts)]
        axes.plot(*((x, y, style) if len(x) else (y, style)))
    set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)
    return axes


def _curves(values: Any) -> list[Any]:
    """One curve or several as a list of them."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if getattr(values, "ndim", None) == 1:
        return [values]
    if isinstance(values, list) and values and not hasattr(values[0], "__len__"):
        return [values]
    return [value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value for value in values]


def show_list_len_pair_hist(
    legend: Sequence[str], xlabel: str, ylabel: str, xlist: Sequence[Any], ylist: Sequence[Any]
) -> Any:
    """Draw how often each length occurs in two lists of sequences; return the axes."""
    set_figsize()
    axes = _pyplot().gca()
    axes.cla()
    _, _, patches = axes.hist([[len(item) for item in xlist], [len(item) for item in ylist]])
    for patch in patches[1].patches:
        patch.set_hatch("/")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(legend)
    return axes


class Animator:
    """Curves that grow; drawn anew after every point in a notebook, elsewhere kept in `figure`."""

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | None = None,
        xlim: Any = None,
        ylim: Any = None,
        xscale: str = "linear",
        yscale: str = "linear",
        fmts: Sequence[str] = _FMTS,
        nrows: int = 1,
        ncols: int = 1,
        figsize: tuple[float, float] = (3.5, 2.5),
    ) -> None:
        self._settings = (xlabel, ylabel, xlim, ylim, xscale, yscale, legend or [])
        self._shape, self._figsize = (nrows, ncols), figsize
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        self.fmts = fmts

    def add(self, x: Any, y: Any) -> None:
        """Add a point to every curve; None leaves a curve as it is."""
        ys = list(y) if isinstance(y, (list, tuple)) else [y]
        xs = list(x) if isinstance(x, (list, tuple)) else [x] * len(ys)
        while len(self.X) < len(ys):
            self.X.append([])
            self.Y.append([])
        for number, (a, b) in enumerate(zip(xs, ys)):
            if a is not None and b is not None:
                self.X[number].append(float(a))
                self.Y[number].append(float(b))
        if in_notebook():
            from IPython import display

            display.display(self.figure)
            display.clear_output(wait=True)

    @property
    def figure(self) -> Any:
        """The curves as a figure of matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=self._figsize, layout="constrained")
        axes = figure.subplots(*self._shape, squeeze=False)[0][0]
        for number, (x, y) in enumerate(zip(self.X, self.Y)):
            axes.plot(x, y, self.fmts[number % len(self.fmts)])
        set_axes(axes, *self._settings)
        return figure
