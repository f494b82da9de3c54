"""Layers that replace those of `torch.nn`; every other name of `torch.nn` is reachable here too.

`from d2lfast import nn` replaces `from torch import nn`.
"""

from typing import Any

import torch.nn as _native

from d2lfast.nn import (
    batchnorm,
    container,
    conv,
    functional,
    fused,
    loss,
    pooling,
    recurrent,
    recurrent_layers,
    sync,
)
from d2lfast.nn.batchnorm import *  # noqa: F403
from d2lfast.nn.container import *  # noqa: F403
from d2lfast.nn.conv import *  # noqa: F403
from d2lfast.nn.fused import *  # noqa: F403
from d2lfast.nn.loss import *  # noqa: F403
from d2lfast.nn.pooling import *  # noqa: F403
from d2lfast.nn.recurrent import *  # noqa: F403
from d2lfast.nn.recurrent_layers import *  # noqa: F403
from d2lfast.nn.sync import *  # noqa: F403

__all__ = [
    "functional",
    *batchnorm.__all__,
    *container.__all__,
    *conv.__all__,
    *fused.__all__,
    *loss.__all__,
    *pooling.__all__,
    *recurrent.__all__,
    *sync.__all__,
    *recurrent_layers.__all__,
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(_native, name)
    except AttributeError:
        raise AttributeError(f"module 'd2lfast.nn' has no attribute '{name}'") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_native)})
