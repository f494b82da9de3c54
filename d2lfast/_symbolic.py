"""What `torch.fx` records of d2lfast: a call of the layer or function, as of torch's own."""

from typing import Any

from torch.fx import Proxy

__all__ = ["Proxy", "fall_back", "record_function", "record_layer"]


def record_layer(layer: Any, *args: Any) -> Any:
    """A node that calls the layer; the first argument is a proxy, the last ones may be missing (None)."""
    tracer = args[0].tracer
    given = tuple(arg for arg in args if arg is not None)
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), given, {})


def record_function(function: Any, *args: Any) -> Any:
    """A node that calls the function; the first argument is a proxy."""
    return args[0].tracer.create_proxy("call_function", function, args, {})


def fall_back(function: Any, native: Any, *args: Any) -> Any:
    """What `native` gives for arguments `function` leaves to it; of a proxy, a node that calls `function`."""
    return record_function(function, *args) if isinstance(args[0], Proxy) else native(*args)
