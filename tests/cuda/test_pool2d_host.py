"""The arithmetic of the CUDA pooling kernels on the CPU: tests/cuda/pool2d_host.cpp under sanitizers."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def test_items_match_reference(tmp_path):
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "pool2d_host"
    flags = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [*compiler, *flags, *sanitizers, str(HERE / "pool2d_host.cpp"), "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    ran = subprocess.run([program], capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
