"""Downloading a file: it is whole or not there, and no network can make the caller wait long."""

import hashlib
import os
import tempfile
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

CONNECT_SECONDS = 8.0
# Below this rate a download counts as stuck.
BYTES_PER_SECOND = 100_000
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Remote:
    """What a published file must be."""

    md5: str
    size: int

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is there and is this one."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == self.md5


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/d2lfast`, or `~/.cache/d2lfast`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or os.path.expanduser("~/.cache")) / "d2lfast"


def fetch(urls: Sequence[str], path: Path, remote: Remote) -> None:
    """Download the first of `urls` that answers with the right file to `path`.

    Raises:
        OSError: none of them does within a short time; `path` is as it was before.
    """
    errors = []
    for url in urls:
        try:
            content = _download(url, remote.size)
        except (OSError, HTTPException) as error:
            errors.append(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}")
            continue
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != remote.md5:
            errors.append(f"{url}: not the published file (MD5 {digest})")
            continue
        _write(path, content)
        return
    raise OSError("; ".join(errors))


def _download(url: str, size: int) -> bytes:
    """Read at most `size` bytes and one more, in a thread: looking up a name has no time limit."""
    chunks: list[bytes] = []
    failure: list[Exception] = []
    connected, done = threading.Event(), threading.Event()

    def work() -> None:
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response:
                connected.set()
                received = 0
                while received <= size and not abandoned.is_set() and (chunk := response.read(_CHUNK)):
                    chunks.append(chunk)
                    received += len(chunk)
        except Exception as error:
            failure.append(error)
        finally:
            connected.set()
            done.set()

    abandoned = threading.Event()
    threading.Thread(target=work, daemon=True).start()
    try:
        if not connected.wait(CONNECT_SECONDS):
            raise TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s")
        limit = CONNECT_SECONDS + size / BYTES_PER_SECOND
        if not done.wait(limit):
            raise TimeoutError(f"too slow: {sum(map(len, chunks)):,} of {size:,} bytes in {limit:.0f} s")
    finally:
        abandoned.set()
    if failure:
        raise failure[0]
    return b"".join(chunks)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
