"""Downloading a file: it is whole or not there, and no network can make the caller wait long."""

import hashlib
import os
import sys
import threading
import time
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
    """What a published file must be: its MD5 and its size in bytes; or its SHA-1, of unknown size."""

    md5: str = ""
    size: int | None = None
    sha1: str = ""

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is there and is this one."""
        if not path.is_file() or (self.size is not None and path.stat().st_size != self.size):
            return False
        return not self.wrong(path)

    def wrong(self, path: Path) -> str:
        """The digest of the file at `path` if it is not this one's, else nothing."""
        for name, expected in (("md5", self.md5), ("sha1", self.sha1)):
            if expected:
                digest = hashlib.new(name, path.read_bytes(), usedforsecurity=False)
                if digest.hexdigest() != expected:
                    return f"{name.upper()} {digest.hexdigest()}"
        return ""


def fetch(urls: Sequence[str], path: Path, remote: Remote) -> None:
    """Download the first of `urls` that answers with the right file to `path`.

    What arrived of a download that broke off is kept beside `path` as `.part`; the next call goes on from
    there. A terminal shows how far it is.

    Raises:
        OSError: none of them does within a short time; `path` is as it was before. The message says where to
            put the file by hand.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    errors = []
    for url in urls:
        # A part that does not fit what follows is found by the digest: once more from the beginning.
        for _ in range(2 if part.exists() else 1):
            try:
                _download(url, part, remote.size)
            except (OSError, HTTPException) as error:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                errors.append(f"{url}: {reason}")
                break
            digest = remote.wrong(part)
            if not digest:
                part.chmod(0o644)
                os.replace(part, path)
                return
            part.unlink()
            errors.append(f"{url}: not the published file ({digest})")
    if part.exists() and part.stat().st_size == 0:
        part.unlink()
    raise OSError(f"{path.name} cannot be downloaded; put it there by hand: {path} ({'; '.join(errors)})")


def _download(url: str, part: Path, size: int | None) -> None:
    """Append to `part` up to `size` bytes and a chunk, in a thread: name look-ups have no time limit."""
    failure: list[Exception] = []
    connected, done, abandoned = threading.Event(), threading.Event(), threading.Event()
    have = part.stat().st_size if part.exists() else 0
    received = 0

    def work() -> None:
        nonlocal received
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as response:
                connected.set()
                follows = have and response.status == 206
                with open(part, "ab" if follows else "wb") as file:
                    total = have if follows else 0
                    while not abandoned.is_set() and (size is None or total <= size):
                        chunk = response.read1(_CHUNK)
                        if not chunk:
                            break
                        file.write(chunk)
                        received += len(chunk)
                        total += len(chunk)
                if size is not None and total < size and not abandoned.is_set():
                    raise ConnectionError(f"broke off after {total:,} of {size:,} bytes")
        except Exception as error:
            failure.append(error)
        finally:
            connected.set()
            done.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        if not connected.wait(CONNECT_SECONDS):
            raise TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s")
        start = time.monotonic()
        while not done.wait(0.1):
            _show(part.stem, have + received, size)
            seconds = time.monotonic() - start
            if seconds > CONNECT_SECONDS + received / BYTES_PER_SECOND:
                raise TimeoutError(f"too slow: {received:,} bytes in {seconds:.0f} s")
    finally:
        abandoned.set()
        _show("", 0, None)
    if failure:
        raise failure[0]


def _show(name: str, received: int, size: int | None) -> None:
    if sys.stderr is None or not sys.stderr.isatty():
        return
    whole = f" of {size / 1e6:.1f}" if size else ""
    text = f"{name}: {received / 1e6:.1f}{whole} MB" if name else ""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()
