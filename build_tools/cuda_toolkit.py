"""The CUDA toolkit of a build and the flags of our kernels, for setup.py and cuda_compile.py."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

LEAST_CAPABILITY = (8, 0)  # ptxas refuses cp.async and products of bfloat16 for less
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]


class Toolkit(NamedTuple):
    """An installed CUDA toolkit."""

    nvcc: Path
    home: Path
    version: tuple[int, int]


def find_toolkit() -> Toolkit | None:
    """The toolkit of CUDA_HOME or CUDA_PATH, else the one of the nvcc on PATH, else None.

    Its home is what nvcc itself reports: the file on PATH may be a wrapper outside the toolkit.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(named) / "bin" / "nvcc" if named else Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    if not nvcc.is_file():
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if release is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    home = Path(top[1]).resolve() if top else nvcc.parent.parent
    if not (home / "bin" / "nvcc").is_file():
        home = nvcc.parent.parent
    return Toolkit(nvcc, home, (int(release[1]), int(release[2])))


def default_archs(version: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST for a build that sees no GPU; a binary also runs on later minor architectures."""
    if version < (12, 8):
        return "8.0;8.6+PTX;9.0a"
    return "8.0;9.0a;10.0;12.0+PTX"


def with_sm90a(archs: str) -> str:
    """TORCH_CUDA_ARCH_LIST with 9.0a in the place of 9.0: both run on that device alone, and products of
    warpgroups are of the former. "9.0+PTX", whose PTX later devices may need, stays."""
    wanted = ["9.0a" if arch == "9.0" else arch for arch in re.split(r"[;\s]+", archs)]
    return ";".join(dict.fromkeys(wanted))


def has_sm90a(archs: str) -> bool:
    """Whether TORCH_CUDA_ARCH_LIST asks for sm_90a, and not for sm_90, which might be loaded instead."""
    wanted = {arch.removesuffix("+PTX") for arch in re.split(r"[;\s]+", archs)}
    return "9.0a" in wanted and "9.0" not in wanted
