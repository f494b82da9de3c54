"""What the build promises: isolated kernels, light includes, a refusal of the wrong torch, packages."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch

import d2lfast
from d2lfast import _extension

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels"
SOURCES = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".inc", ".cpp", ".cu", ".cuh"}]
IN_CHECKOUT = pathlib.Path(d2lfast.__file__).parent.parent == ROOT


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def test_no_heavy_includes():
    assert SOURCES
    for path in SOURCES:
        for name in includes(path):
            assert name not in {"torch/extension.h", "torch/all.h", "torch/torch.h", "ATen/ATen.h"}, path


def test_kernels_know_no_torch():
    for path in KERNELS.rglob("*"):
        if path.is_file():
            for name in includes(path):
                assert not re.match(r"(torch|ATen|c10|pybind11|Python)\b", name), f"{path}: {name}"
                assert not name.startswith("../../ops"), f"{path}: {name}"


def test_kernels_allocate_nothing_and_start_no_threads():
    for path in [*KERNELS.glob("cpu/*.inc"), *KERNELS.glob("cpu/*.cpp")]:
        code = re.sub(r"//.*", "", path.read_text())
        for word in (r"\bnew\b", r"\bmalloc\b", r"\bthrow\b", r"std::vector", r"std::thread", r"#pragma omp"):
            assert not re.search(word, code), f"{path}: {word}"


def test_one_translation_unit_for_each_family_and_instruction_set():
    families = {p.stem.removesuffix("_baseline") for p in KERNELS.glob("cpu/*_baseline.cpp")}
    assert "conv2d" in families
    for family in families:
        for isa in ("baseline", "avx2", "avx512"):
            path = KERNELS / "cpu" / f"{family}_{isa}.cpp"
            assert includes(path) == [f"target_{isa}.h", f"{family}.inc"], path


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")
@pytest.mark.skipif(not IN_CHECKOUT, reason="the installed package has no object files")
def test_objects_export_their_table_alone():
    """A weak symbol compiled for a newer processor could be the copy that the linker keeps for everybody."""
    if _extension.build_info()["sanitize"] or _extension.build_info()["debug"]:
        pytest.skip("sanitizers and -O0 emit symbols of their own")
    objects = [
        p
        for p in (ROOT / "build").glob("temp*/**/kernels/cpu/*.o")
        if re.search(r"_(baseline|avx2|avx512)$", p.stem)
    ]
    stems = {p.stem for p in KERNELS.glob("cpu/*_*.cpp")}
    assert {p.stem for p in objects} >= stems, "build the extension in the checkout first"
    for path in objects:
        if path.stem not in stems:
            continue
        family, isa = path.stem.rsplit("_", 1)
        text = subprocess.run(
            ["nm", "--demangle", "--defined-only", path], capture_output=True, text=True, check=True
        )
        exported = [line.split(maxsplit=2)[1:] for line in text.stdout.splitlines()]
        exported = [(kind, name) for kind, name in exported if kind.isupper() or kind in "vw"]
        assert exported == [(exported[0][0], f"d2lfast::cpu::{isa}::{family}_kernels")], path
        assert exported[0][0] in "RD", path


def test_extension_exports_nothing_but_its_module():
    """Two extensions in one process must not meet each other's symbols; but for the marked checks."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    library = _extension.load().__file__
    text = subprocess.run(
        ["nm", "-D", "--demangle", "--defined-only", library], capture_output=True, text=True, check=True
    )
    exported = set(re.findall(r"\bd2lfast::(\S*?)\(", text.stdout))
    headers = "".join(path.read_text() for path in (ROOT / "csrc" / "ops").rglob("*.h"))
    marked = set(re.findall(r"D2LFAST_VISIBLE (?!__)[\w:<>, ]*?(\w+)\(", headers))
    assert marked
    assert exported == {f"ops::{name}" for name in marked}


def test_another_torch_is_refused(tmp_path, monkeypatch):
    info = {**_extension.build_info(), "torch": "1.2.3+other"}
    path = tmp_path / "_build_info.json"
    path.write_text(json.dumps(info))
    monkeypatch.setattr(_extension, "_BUILD_INFO", path)
    with pytest.raises(ImportError) as error:
        _extension.load()
    message = str(error.value)
    assert "1.2.3+other" in message
    assert torch.__version__ in message
    assert "pip install" in message


def test_missing_build_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_extension, "_BUILD_INFO", tmp_path / "absent.json")
    with pytest.raises(ImportError, match="has not been built; run: pip install"):
        _extension.load()


def test_build_info():
    info = _extension.build_info()
    assert info["torch"] == torch.__version__
    assert torch.__version__.split("+")[0] == torch.ops.d2lfast._build_torch_version()
    flags = " ".join(info["cxx_flags"])
    assert "-march" not in flags
    assert "-std=c++20" in flags


def copy_of_sources(to):
    """The files that git knows, or that are in the folder where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    if not any(names):
        pytest.skip("not a git checkout")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory):
    to = tmp_path_factory.mktemp("sources")
    copy_of_sources(to)
    return to


def backend(hook, tree, out, **variables):
    code = (
        f"import sys; sys.path.insert(0, 'build_tools'); import backend; print(backend.{hook}({str(out)!r}))"
    )
    environment = {**os.environ, **variables}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return pathlib.Path(out) / result.stdout.strip().splitlines()[-1]


def test_sdist_has_what_a_build_needs(source_tree, tmp_path):
    with tarfile.open(backend("build_sdist", source_tree, tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {str(p.relative_to(ROOT)) for p in SOURCES} | {
        "build_tools/backend.py",
        "setup.py",
        "pyproject.toml",
    }
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "d2lfast").rglob("*.py")} | {"d2lfast/py.typed"}
    assert wanted <= names, sorted(wanted - names)
    assert not any(name.endswith((".so", ".o", "_build_info.json")) for name in names)


def test_wheel_without_extension(source_tree, tmp_path):
    """The Python files; the compiled wheel is the same build that this test suite runs on."""
    wheel = backend("build_wheel", source_tree, tmp_path, D2LFAST_NO_EXTENSION="1")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "d2lfast").rglob("*.py")} <= names
    assert not any(name.startswith(("tests/", "csrc/")) for name in names)


def test_without_torch_one_sentence_says_what_to_do(source_tree):
    """`-S` hides the installed packages but for setuptools."""
    import setuptools

    packages = pathlib.Path(setuptools.__file__).parent.parent
    code = (
        "import sys, importlib.abc\n"
        "class NoTorch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ImportError('no torch')\n"
        f"sys.path.append({str(packages)!r}); sys.meta_path.insert(0, NoTorch())\n"
        "sys.argv = ['setup.py', 'build_ext']\n"
        "exec(open('setup.py').read(), {'__file__': 'setup.py', '__name__': '__main__'})"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=source_tree, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "pip install torch" in result.stderr
    assert "Traceback" not in result.stderr
