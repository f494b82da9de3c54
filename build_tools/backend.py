"""PEP 517 backend: setuptools' own, plus the torch of the environment that pip installs into.

An isolated build sees only the packages of `[build-system] requires`. Naming torch there would make pip
download another torch than the installed one, and the extension would not load. So the target's
site-packages go to the end of the path: setuptools still comes from the isolated environment.
"""

import importlib.util
import sys
import sysconfig

if importlib.util.find_spec("torch") is None:
    for key in ("purelib", "platlib"):
        path = sysconfig.get_path(key)
        if path not in sys.path:
            sys.path.append(path)

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import build_editable, build_sdist, build_wheel  # noqa: F401
