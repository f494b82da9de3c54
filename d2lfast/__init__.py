"""Drop-in PyTorch layers with fast C++/CUDA kernels for the networks of *Dive into Deep Learning*."""

from d2lfast import _extension

__version__ = "0.1.0"

_extension.load()

from d2lfast import _fake, _flops, backends, memory, models, nn  # noqa: E402, F401
from d2lfast.algorithm import conv2d_algorithm, explain  # noqa: E402
from d2lfast.convert import convert, report, revert  # noqa: E402
from d2lfast.cross_correlation import (  # noqa: E402
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
    pool2d,
)
from d2lfast.graphs import cuda_graph  # noqa: E402

__all__ = [
    "__version__",
    "backends",
    "conv2d_algorithm",
    "convert",
    "corr2d",
    "corr2d_multi_in",
    "corr2d_multi_in_out",
    "corr2d_multi_in_out_1x1",
    "cuda_graph",
    "explain",
    "memory",
    "models",
    "nn",
    "pool2d",
    "report",
    "revert",
]
