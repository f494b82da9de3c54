"""`make cuda-compile`: reading ptxas' report, and what is compiled again."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

REPORT = """\
ptxas info    : 0 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_Z4pool' for 'sm_80'
ptxas info    : Function properties for _Z4pool
    24 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 3.210 ms
ptxas info    : Function properties for _Z6helper
    64 bytes stack frame, 64 bytes spill stores, 64 bytes spill loads
ptxas info    : Compiling entry function '_Z8backward' for 'sm_80'
ptxas info    : Function properties for _Z8backward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers, 400 bytes cmem[0]
"""


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "build_tools"))
    try:
        spec = importlib.util.spec_from_file_location(
            "cuda_compile", ROOT / "build_tools" / "cuda_compile.py"
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["cuda_compile"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "build_tools"))
        sys.modules.pop("cuda_compile", None)


def test_parse_ptxas(tool):
    assert tool.parse_ptxas(REPORT) == [
        tool.Kernel("_Z4pool", "sm_80", registers=40, shared=1024, spill=28),
        tool.Kernel("_Z8backward", "sm_80", registers=18, shared=0, spill=0),
    ]


def test_spills_fail_unless_allowed(tool, monkeypatch, capsys):
    kernels = tool.parse_ptxas(REPORT)
    assert tool.report(kernels) is True
    assert "SPILLS" in capsys.readouterr().out
    monkeypatch.setattr(tool, "ALLOWED_SPILLS", {"pool": "a reason"})
    assert tool.report(kernels) is False
    assert "allowed: a reason" in capsys.readouterr().out


@pytest.mark.parametrize("version", [(12, 0), (12, 6), (12, 8), (13, 0)])
def test_compiles_for_the_oldest_gpu_of_a_build(tool, version):
    first = sys.modules["cuda_toolkit"].default_archs(version).split(";")[0]
    assert f"sm_{first.replace('.', '')}" == next(iter(tool.ARCHS))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void d2lfast::cuda::(anonymous namespace)::pool<d2lfast::cuda::Window<(int)3, (int)2>, (bool)1, "
            "float>(float const*, d2lfast::cuda::Items<int>)",
            "pool<Window<3, 2>, 1, float>",
        ),
        ("void d2lfast::cuda::_GLOBAL__N__0a1b_9_x_cu_9f::k<int (*)(int)>(int)", "k<int (*)(int)>"),
        ("plain(int)", "plain"),
    ],
)
def test_shorten(tool, name, short):
    assert tool.shorten(name) == short


def test_recompiles_only_what_changed(tool, tmp_path, monkeypatch):
    """With a stand-in compiler, called with: -MD -MF depfile -c source -o object."""
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    source, header = tmp_path / "a.cu", tmp_path / "a dir" / "a.h"
    header.parent.mkdir()
    header.touch()
    source.touch()
    (tmp_path / "rule").write_text(f"a.o: {source} \\\n {header}\n".replace("a dir", "a\\ dir"))
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho ran >> runs\ncp rule "$3"\ntouch "$7"\necho the log\n'
    )
    compiler.chmod(0o755)
    unit = tool.Unit(source, tmp_path / "a.o", [str(compiler)])

    def runs(torch="2"):
        assert tool.compile_unit(unit, {"torch": torch}) == (True, "the log\n")
        return (tmp_path / "runs").read_text().count("ran")

    assert runs() == 1
    assert runs() == 1
    later = unit.target.stat().st_mtime_ns + 10**9
    os.utime(header, ns=(later, later))
    assert runs() == 2
    os.utime(unit.target, ns=(later, later))
    assert runs() == 2
    assert runs(torch="3") == 3
    unit.target.unlink()
    assert runs(torch="3") == 4


def test_failure_is_not_stored(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    unit = tool.Unit(tmp_path / "a.cu", tmp_path / "a.o", ["sh", "-c", "echo broken >&2; exit 1"])
    for _ in range(2):
        assert tool.compile_unit(unit, {}) == (False, "broken\n")


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_without_nvcc(tool, monkeypatch, capsys, ci, status):
    monkeypatch.setattr(tool, "find_toolkit", lambda: None)
    monkeypatch.setenv("CI", ci)
    assert tool.main() == status
    assert "no nvcc" in capsys.readouterr().out


def test_floors_are_of_this_source():
    """docs/cuda-floors.md is what its program writes: cases, algorithms and floors."""
    program = [sys.executable, str(ROOT / "build_tools" / "cuda_floors.py"), "--check"]
    assert subprocess.run(program).returncode == 0


def test_units_of_sm90a(tool):
    """The files with products of warpgroups, with the host's side of them; PTX is of the newest other."""
    units = tool.kernel_units(tool.Toolkit(Path("nvcc"), Path("/toolkit"), (13, 0)))
    special = [unit for unit in units if unit.target.name.endswith(".sm_90a.o")]
    names = ["conv2d_implicit_warpgroup.cu", "conv2d_implicit_weight_warpgroup.cu"]
    assert [unit.source.name for unit in special] == names
    assert all("-DD2LFAST_SM90A" in unit.command for unit in special)
    others = [unit for unit in units if unit not in special]
    assert len(others) == len({unit.source for unit in units})
    code = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90, 100)]
    code.append("-gencode=arch=compute_100,code=compute_100")
    for unit in others:
        assert [word for word in unit.command if word.startswith("-gencode")] == code
