"""An opt-in cache of freed CPU memory, for all tensors of the process, torch's and d2lfast's alike.

The kernel of the system clears every page that it hands out. A training step that gets its large buffers
afresh spends more time on that than on many a layer. `enable` makes torch keep and reuse them:

    import d2lfast.memory

    d2lfast.memory.enable()

Nothing is enabled on import. Blocks lie on huge pages where the system allows it (Linux, transparent huge
pages "always" or "madvise"), which also saves misses of the address cache.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from d2lfast import _extension

__all__ = ["MIN_BYTES", "Stats", "disable", "empty_cache", "enable", "enabled", "reset_peak", "stats"]

MIN_BYTES = 256 * 1024


class Stats(NamedTuple):
    """Bytes and counts since the process began, the peak since the last `reset_peak`.

    `cached_bytes` is the share of freed blocks that may be resident, `mapped_bytes` the address space of all
    blocks, `hits` the requests that needed no new mapping; `huge_pages` says that the system took the advice.
    """

    enabled: bool
    allocated_bytes: int
    peak_allocated_bytes: int
    cached_bytes: int
    mapped_bytes: int
    released_bytes: int
    requests: int
    hits: int
    huge_pages: bool


_C = _extension.load()
_options: tuple[int, int, bool] | None = None


def enable(
    max_cached_bytes: int | None = None, *, min_bytes: int = MIN_BYTES, huge_pages: bool = True
) -> None:
    """Cache freed CPU blocks from now on; call again to change the limits.

    Args:
        max_cached_bytes: most bytes that freed blocks may keep. Default: half of the machine's memory.
        min_bytes: smaller tensors go to the previous allocator as before.
        huge_pages: ask for huge pages.

    Tensors that exist keep their memory. When the system has no memory left, freed blocks are given back
    before torch's error is raised. A forked process begins with an empty cache.

    Raises:
        ValueError: a negative limit.
        RuntimeError: another allocator is registered that does not yield.
    """
    global _options
    if max_cached_bytes is None:
        max_cached_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if max_cached_bytes < 0 or min_bytes < 0:
        raise ValueError("max_cached_bytes and min_bytes must not be negative")
    options = (max(min_bytes, 1), max_cached_bytes, huge_pages)
    _C.memory_enable(*options)
    _options = options


def disable() -> None:
    """Give the freed blocks back and cache no more; live tensors stay valid."""
    global _options
    _C.memory_disable()
    _options = None


def empty_cache() -> None:
    """Give the freed blocks back to the system."""
    _C.memory_empty_cache()


def reset_peak() -> None:
    """Let `stats().peak_allocated_bytes` count from what is allocated now."""
    _C.memory_reset_peak()


def stats() -> Stats:
    """Figures of the cache."""
    values = _C.memory_stats()
    return Stats(**{name: kind(values[name]) for name, kind in Stats.__annotations__.items()})


@contextmanager
def enabled(
    max_cached_bytes: int | None = None, *, min_bytes: int = MIN_BYTES, huge_pages: bool = True
) -> Iterator[None]:
    """Enable the cache inside a `with` block, for all threads; afterwards it is as it was."""
    before = _options
    enable(max_cached_bytes, min_bytes=min_bytes, huge_pages=huge_pages)
    try:
        yield
    finally:
        if before is None:
            disable()
        else:
            enable(before[1], min_bytes=before[0], huge_pages=before[2])
