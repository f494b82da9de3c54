"""Sizes of windows, as torch reads them: one for both axes or one for each."""

from typing import Any

import torch

__all__ = ["size_list"]


def size_list(op: str, name: str, value: Any) -> list[Any]:
    """The sizes that `value` gives: of one number two, of a sequence its own.

    Raises:
        TypeError: a size is no integer.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return [value, value]
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = [value]
    if isinstance(value, str | bool | torch.Tensor) or value is None:
        raise TypeError(f"{op}(): argument '{name}' must be tuple of ints, not {type(value).__name__}")
    values = [_integer(op, name, size) for size in value]
    return values * 2 if len(values) == 1 else values


def _integer(op: str, name: str, size: Any) -> Any:
    if type(size) is int or isinstance(size, torch.SymInt):
        return size
    if not hasattr(size, "__index__"):
        raise TypeError(f"{op}(): argument '{name}' must be tuple of ints, but found {type(size).__name__}")
    return size.__index__()
