"""The setting of malloc under which both sides run; page faults of fresh buffers can outweigh a kernel."""

import ctypes
import os
import platform
from pathlib import PurePath

from d2lfast import memory

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_kept = False


def keep_memory() -> bool:
    """Make malloc keep freed blocks for the rest of the process, for every allocation of both sides.

    Blocks come from the heap, which is never trimmed. (glibc takes no M_MMAP_THRESHOLD above 32 MiB, so
    larger buffers would still be mapped and faulted in afresh: mapping is switched off instead.)

    Returns:
        False where the C library has no such setting.
    """
    global _kept
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One call after the other: both must be tried.
    settings = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)]
    _kept = all(settings)
    return _kept


def malloc_setting() -> str:
    """The setting in words, for the header of a table."""
    if memory.stats().enabled:
        return "d2lfast.memory caches large tensors"
    setting = "keeps its blocks (M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1)" if _kept else "default"
    preloaded = [PurePath(name).name for name in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    return f"{setting}; preloaded: {', '.join(preloaded)}" if preloaded else setting
