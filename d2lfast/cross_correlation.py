"""Two-dimensional cross-correlation and pooling as functions, after chapter 7 of *Dive into Deep Learning*.

The book writes them as loops; these have the same results, run on d2lfast's operators and are differentiable.
Dtypes: the common floating dtype of the arguments; integers are computed in the default dtype.
"""

import torch
from torch import Tensor

from d2lfast.nn import functional as F

__all__ = ["corr2d", "corr2d_multi_in", "corr2d_multi_in_out", "corr2d_multi_in_out_1x1", "pool2d"]


def corr2d(X: Tensor, K: Tensor) -> Tensor:
    """Cross-correlate an image with a kernel (book, 7.2.1).

    Shapes: X [h, w], K [kh, kw] -> [h - kh + 1, w - kw + 1].

    Raises:
        ValueError: X or K is not a matrix.
        RuntimeError: the kernel is larger than the image.
    """
    _check_dims("corr2d", X, 2, K, 2)
    return _correlate(X[None], K[None, None])[0]


def corr2d_multi_in(X: Tensor, K: Tensor) -> Tensor:
    """Cross-correlate every input channel with its own kernel and add the results (book, 7.4.1).

    Shapes: X [c, h, w], K [c, kh, kw] -> [h - kh + 1, w - kw + 1].

    Raises:
        ValueError: X or K does not have three dimensions.
        RuntimeError: the channels differ (the book's loop drops surplus ones), or the kernel is too large.
    """
    _check_dims("corr2d_multi_in", X, 3, K, 3)
    return _correlate(X, K[None])[0]


def corr2d_multi_in_out(X: Tensor, K: Tensor) -> Tensor:
    """Cross-correlate with one multi-channel kernel per output channel (book, 7.4.2).

    Shapes: X [c_in, h, w], K [c_out, c_in, kh, kw] -> [c_out, h - kh + 1, w - kw + 1].

    Raises:
        ValueError: X does not have three dimensions, or K not four.
        RuntimeError: the input channels differ, or the kernel is too large.
    """
    _check_dims("corr2d_multi_in_out", X, 3, K, 4)
    return _correlate(X, K)


def corr2d_multi_in_out_1x1(X: Tensor, K: Tensor) -> Tensor:
    """Mix the channels of every pixel by one matrix: a 1x1 convolution (book, 7.4.3).

    Shapes: X [c_in, h, w], K [c_out, c_in, 1, 1] -> [c_out, h, w].

    Raises:
        ValueError: X does not have three dimensions, or K is not [c_out, c_in, 1, 1].
        RuntimeError: the input channels differ.
    """
    _check_dims("corr2d_multi_in_out_1x1", X, 3, K, 4)
    if tuple(K.shape[2:]) != (1, 1):
        raise ValueError(
            f"corr2d_multi_in_out_1x1: expected a kernel [c_out, c_in, 1, 1], got {list(K.shape)}"
        )
    return _correlate(X, K)


def pool2d(X: Tensor, pool_size: tuple[int, int], mode: str = "max") -> Tensor:
    """Take the maximum or the average of every window of an image, with stride 1 (book, 7.5.1).

    Shapes: X [h, w], pool_size (ph, pw) -> [h - ph + 1, w - pw + 1].

    Raises:
        ValueError: X is not a matrix, or mode is neither "max" nor "avg".
        RuntimeError: the window is larger than the image.
    """
    _check_dims("pool2d", X, 2)
    if mode not in ("max", "avg"):
        raise ValueError(f"pool2d: mode must be 'max' or 'avg', got {mode!r}")
    pool = F.max_pool2d if mode == "max" else F.avg_pool2d
    return pool(_floating(X)[None], tuple(pool_size), stride=1)[0]


def _correlate(X: Tensor, K: Tensor) -> Tensor:
    dtype = torch.result_type(X, K)
    if not dtype.is_floating_point and not dtype.is_complex:
        dtype = torch.get_default_dtype()
    return F.conv2d(X.to(dtype), K.to(dtype))


def _floating(X: Tensor) -> Tensor:
    return X if X.is_floating_point() else X.to(torch.get_default_dtype())


def _check_dims(name: str, X: Tensor, x_dims: int, K: Tensor | None = None, k_dims: int = 0) -> None:
    if X.dim() != x_dims:
        raise ValueError(f"{name}: expected X with {x_dims} dimensions, got {list(X.shape)}")
    if K is not None and K.dim() != k_dims:
        raise ValueError(f"{name}: expected a kernel with {k_dims} dimensions, got {list(K.shape)}")
