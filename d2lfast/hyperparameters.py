"""Arguments of a constructor as attributes, and methods added to a class later (book, 3.2.1)."""

import inspect
from collections.abc import Callable, Iterable
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["HyperParameters", "add_to_class"]

_T = TypeVar("_T")


def add_to_class(Class: type) -> Callable[[_T], _T]:
    """Return a decorator that makes a function a method of `Class`, for instances that exist as well.

    Unlike the book's, it returns the function, so that the decorated name is not None afterwards.
    """

    def add(function: _T) -> _T:
        setattr(Class, function.__name__, function)  # type: ignore[attr-defined]
        return function

    return add


class HyperParameters:
    """Base of the book's classes; keeps the arguments of a constructor."""

    hparams: dict[str, Any]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def save_hyperparameters(self, ignore: Iterable[str] = ()) -> None:
        """Set an attribute for every argument of the calling function, and the dictionary `hparams`.

        Arguments alone are kept: not `self`, names in `ignore`, names with a leading underscore, nor, unlike
        the book, other local variables. Calls along a chain of constructors add up.
        """
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        if caller is None:
            raise RuntimeError("save_hyperparameters needs an interpreter that has stack frames")
        left_out = {"self", *ignore}
        values = {
            name: caller.f_locals[name]
            for name in _arguments(caller.f_code)
            if name in caller.f_locals and name not in left_out and not name.startswith("_")
        }
        self.hparams = {**self.__dict__.get("hparams", {}), **values}
        for name, value in values.items():
            setattr(self, name, value)


def _arguments(code: CodeType) -> tuple[str, ...]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_varnames[:count]
