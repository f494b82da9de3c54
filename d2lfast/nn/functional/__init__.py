"""Functions that replace those of `torch.nn.functional`; every other name falls through to it."""

from typing import Any

import torch.nn.functional as _native

from d2lfast.nn.functional import batchnorm, conv, dense, loss, pooling
from d2lfast.nn.functional.batchnorm import *  # noqa: F403
from d2lfast.nn.functional.conv import *  # noqa: F403
from d2lfast.nn.functional.dense import *  # noqa: F403
from d2lfast.nn.functional.loss import *  # noqa: F403
from d2lfast.nn.functional.pooling import *  # noqa: F403

__all__ = [*batchnorm.__all__, *conv.__all__, *dense.__all__, *loss.__all__, *pooling.__all__]


def __getattr__(name: str) -> Any:
    try:
        return getattr(_native, name)
    except AttributeError:
        raise AttributeError(f"module 'd2lfast.nn.functional' has no attribute '{name}'") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_native)})
