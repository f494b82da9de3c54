"""Folders of the user."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and measurements are kept: `$XDG_CACHE_HOME/d2lfast`, or `~/.cache/d2lfast`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or os.path.expanduser("~/.cache")) / "d2lfast"
