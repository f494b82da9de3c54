"""A second tree of modules over the same parameters, without touching the first."""

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from torch.nn.modules.module import _WrappedHook
from torch.utils.hooks import RemovableHandle


def clone_modules(root: nn.Module, modules: Collection[nn.Module]) -> nn.Module:
    """Return a new `root` in which every one of `modules` is new, and every tensor is the old object.

    Built-in containers in the attributes of the modules are new too, so that appending to a list or removing
    a hook on one side is not seen on the other. Hooks that are methods of one of `modules` are bound to its
    copy. All else (tensors, functions, foreign objects, modules that are not in `modules`) is shared, so that
    nothing needs to be copyable. A module compiled by `Module.compile` is not compiled any more, as after
    `copy.deepcopy`.
    """
    return _Cloner(modules).module(root)


class _Cloner:
    def __init__(self, modules: Collection[nn.Module]) -> None:
        self.owned = {id(module) for module in modules}
        self.owned_dicts = {
            id(value) for module in modules for value in vars(module).values() if isinstance(value, dict)
        }
        self.memo: dict[int, Any] = {}
        self.kinds: dict[type, Callable[[Any], Any]] = {
            dict: self.mapping,
            OrderedDict: self.mapping,
            list: self.sequence,
            set: lambda old: self.remember(old, {self(item) for item in old}),
            tuple: lambda old: tuple(self(item) for item in old),
            types.MethodType: lambda old: types.MethodType(old.__func__, self(old.__self__)),
            functools.partial: self.partial,
            RemovableHandle: self.handle,
            _WrappedHook: self.wrapped_hook,
        }

    def __call__(self, old: Any) -> Any:
        if id(old) in self.memo:
            return self.memo[id(old)]
        if isinstance(old, nn.Module):
            return self.module(old)
        kind = self.kinds.get(type(old))
        return old if kind is None else kind(old)

    def remember(self, old: Any, new: Any) -> Any:
        self.memo[id(old)] = new
        return new

    def module(self, old: nn.Module) -> nn.Module:
        if id(old) not in self.owned:
            return old
        if id(old) in self.memo:
            return self.memo[id(old)]
        # Not type(old).__new__: some classes, such as GraphModule, make a new class in it.
        new = self.remember(old, object.__new__(type(old)))
        state = {name: value for name, value in vars(old).items() if name != "_compiled_call_impl"}
        vars(new).update({name: self(value) for name, value in state.items()})
        return new

    def mapping(self, old: dict[Any, Any]) -> Any:
        new = self.remember(old, type(old)())
        new.update((self(key), self(value)) for key, value in old.items())
        return new

    def sequence(self, old: list[Any]) -> Any:
        new = self.remember(old, [])
        new.extend(map(self, old))
        return new

    def partial(self, old: functools.partial[Any]) -> Any:
        return functools.partial(self(old.func), *map(self, old.args), **self(old.keywords))

    def handle(self, old: RemovableHandle) -> Any:
        hooks = old.hooks_dict_ref()
        if id(hooks) not in self.owned_dicts:
            return old
        new = self.remember(old, RemovableHandle.__new__(RemovableHandle))
        new.id = old.id
        new.hooks_dict_ref = weakref.ref(self(hooks))
        new.extra_dict_ref = tuple(
            weakref.ref(self(extra)) if id(extra) in self.owned_dicts else ref
            for ref in old.extra_dict_ref
            for extra in [ref()]
        )
        return new

    def wrapped_hook(self, old: _WrappedHook) -> Any:
        module = old.module() if old.with_module else None
        return self.remember(old, _WrappedHook(self(old.hook), self(module)))
