"""Images on a grid."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def show_images(
    imgs: Sequence[Any] | Tensor,
    num_rows: int,
    num_cols: int,
    titles: Sequence[str] | None = None,
    scale: float = 1.5,
) -> Any:
    """Draw images [h, w], [h, w, C] or [C, h, w] on a grid and return the axes, as the book does.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    axes = image_grid(imgs, num_rows, num_cols, titles, scale)
    from d2lfast.training.board import in_notebook

    if in_notebook():
        from IPython.display import display

        display(axes[0].figure)
    return axes


def image_grid(
    imgs: Sequence[Any] | Tensor,
    num_rows: int,
    num_cols: int,
    titles: Sequence[str] | None = None,
    scale: float = 1.5,
) -> Any:
    """As `show_images`, without displaying anything."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Showing images needs matplotlib: pip install 'd2lfast[plot]'", name=error.name
        ) from error
    figure = Figure(figsize=(num_cols * scale, num_rows * scale), layout="constrained")
    axes = figure.subplots(num_rows, num_cols, squeeze=False).flatten()
    for each in axes:
        each.set_axis_off()
    for number, (each, image) in enumerate(zip(axes, imgs)):
        image = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        if getattr(image, "ndim", 0) == 3 and image.shape[0] in (1, 3) and image.shape[-1] not in (1, 3):
            image = image.transpose(1, 2, 0)
        each.imshow(image, cmap="gray" if getattr(image, "ndim", 2) == 2 else None)
        if titles:
            each.set_title(str(titles[number]), fontsize="small")
    return axes
