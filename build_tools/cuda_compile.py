"""Compile every CUDA source without a GPU and print what ptxas says of each kernel (`make cuda-compile`).

Compiles csrc/kernels/cuda/*.cu for the architectures below and csrc/ops/cuda/*.cpp against the headers of
the installed torch, which may be a build without CUDA. Fails on errors, on warnings, on register spills and
when the operators call a launcher that no kernel file defines. What is up to date is not compiled again.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from cuda_toolkit import NVCC_FLAGS, Toolkit, find_toolkit
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "cuda"
STUB = ROOT / "build_tools" / "cuda_stub"

# The first CUDA release that knows each; the newest that nvcc knows also keeps PTX, for later GPUs. sm_90a is
# for the files with products of warpgroups.
ARCHS = {"sm_80": (11, 0), "sm_90": (11, 8), "sm_90a": (12, 0), "sm_100": (12, 8)}

# Regular expression over the shortened kernel name -> why it may spill.
ALLOWED_SPILLS: dict[str, str] = {
    r"average_pool2d_backward<2, SlidingAxis, double, int>": "float64; 16 bytes, on sm_100 alone",
    r"depthwise_pixels<float, 3, 1>": "one register, on sm_100 alone; a row less a tile costs 11 %",
    r"depthwise_planes<Float16, 5, 1>": "one register, on sm_100 alone",
    r"tile_products<float, 2, ": "up to 17 words, read once a tile, not in its loops",
    r"weight_products<\w+, 1, 18>": "five words, on sm_80 alone; read once or twice a tile, not in its loops",
}


@dataclass
class Unit:
    """One compiler call."""

    source: Path
    target: Path
    command: list[str]
    phase: str = "-c"
    keeps: Path | None = None  # where the PTX goes that nvcc makes on its way

    def __str__(self) -> str:
        return f"{self.source.relative_to(ROOT)} -> {self.target.relative_to(ROOT)}"


@dataclass
class Kernel:
    """What ptxas reports of one kernel for one architecture; sizes in bytes."""

    name: str
    arch: str
    registers: int = 0
    shared: int = 0
    spill: int = 0


def parse_ptxas(text: str) -> list[Kernel]:
    """Kernels in the order of `-Xptxas -v`'s report, by their mangled names, without device functions."""
    kernels: list[Kernel] = []
    described = ""
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernels.append(Kernel(found[1], found[2]))
            described = ""
        elif found := re.search(r"Function properties for (\S+)", line):
            described = found[1]
        elif not kernels or described not in ("", kernels[-1].name):
            continue
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[-1].spill = int(found[1]) + int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(found[1])
            if shared := re.search(r"(\d+)(?:\+\d+)? bytes smem", line):
                kernels[-1].shared = int(shared[1])
    return kernels


def shorten(name: str) -> str:
    """A demangled kernel without its return type, namespaces and arguments."""
    name = re.sub(r"d2lfast::(cuda::)?|\(anonymous namespace\)::|<unnamed>::|_GLOBAL__N__\w+::", "", name)
    name = name.removeprefix("void ")
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:position]
            break
    return re.sub(r"\((?:int|unsigned int|bool)\)(-?\d+)", r"\1", name).replace("> >", ">>")


def demangle(names: list[str], toolkit: Toolkit) -> list[str]:
    """Readable names; the mangled ones where no demangler is installed."""
    for tool in (str(toolkit.home / "bin" / "cu++filt"), "c++filt"):
        if names and shutil.which(tool):
            run = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
            return run.stdout.splitlines()
    return names


def has_warpgroups(source: Path) -> bool:
    """Whether a kernel file is compiled for sm_90a too."""
    return '#include "warpgroup.cuh"' in source.read_text()


def kernel_units(toolkit: Toolkit) -> list[Unit]:
    """One unit per kernel file, and one for sm_90a, with the flags of setup.py but those for profilers.

    One call for the other architectures compiles a file's host side once.
    """
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, *NVCC_FLAGS, "-Xptxas=-v", "-Werror=all-warnings"]
    flags += ["-Xcompiler=-fPIC,-Wall,-Wextra,-Wno-unknown-pragmas,-Werror"]
    units = []

    def code(arch: str, of: str = "sm") -> str:
        return f"-gencode=arch={arch.replace('sm', 'compute')},code={arch.replace('sm', of)}"

    known = [arch for arch, since in ARCHS.items() if toolkit.version >= since]
    archs = [arch for arch in known if arch != "sm_90a"]
    kinds = {"": [*map(code, archs), code(archs[-1], "compute")]}
    if "sm_90a" in known:
        kinds[".sm_90a"] = [code("sm_90a"), "-DD2LFAST_SM90A"]
    for source in sorted(ROOT.glob("csrc/kernels/cuda/*.cu")):
        for kind, codes in kinds.items():
            if kind and not has_warpgroups(source):
                continue
            target, command = OUT / f"{source.stem}{kind}.o", [str(toolkit.nvcc), *flags, *codes]
            units.append(Unit(source, target, command, keeps=OUT / "ptx" / f"{source.stem}{kind}"))
    return units


def glue_units(toolkit: Toolkit) -> list[Unit]:
    """One unit per operator file. Only their compilation is of interest, so they are not optimised."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-DD2LFAST_WITH_CUDA"]
    flags += ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unknown-pragmas"]
    for folder in [*cpp_extension.include_paths(), toolkit.home / "include", STUB]:
        flags += ["-isystem", str(folder)]
    return [
        Unit(source, OUT / f"{source.stem}.ops.o", [*compiler, *flags])
        for source in sorted(ROOT.glob("csrc/ops/cuda/*.cpp"))
    ]


def dependencies(depfile: Path) -> list[str]:
    """The prerequisites in a make rule that a compiler wrote."""
    text = depfile.read_text().replace("\\\n", " ")
    return [name.replace("\\ ", " ") for name in re.findall(r"(?:\\ |\S)+", text.split(": ", 1)[1])]


def stored_log(unit: Unit, facts: dict) -> str | None:
    """The compiler's output of the last compilation if it is still valid."""
    try:
        old = json.loads(unit.target.with_suffix(".json").read_text())
        made = unit.target.stat().st_mtime_ns
        if old["facts"] == {**facts, "command": unit.command} and all(
            os.stat(name).st_mtime_ns <= made for name in old["dependencies"]
        ):
            return old["log"]
    except (OSError, ValueError, KeyError):
        pass
    return None


def compile_unit(unit: Unit, facts: dict) -> tuple[bool, str]:
    """Whether the unit compiled, and the compiler's output."""
    log = stored_log(unit, facts)
    if log is not None:
        return True, log
    facts = {**facts, "command": unit.command}
    stamp = unit.target.with_suffix(".json")
    stamp.unlink(missing_ok=True)
    depfile = unit.target.with_suffix(".d")
    files = ["-MF", str(depfile), unit.phase, str(unit.source), "-o", str(unit.target)]
    command = [*unit.command, "-MD", *files]
    with tempfile.TemporaryDirectory() as folder:
        if unit.keeps:
            command += ["--keep", "--keep-dir", folder]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if unit.keeps:
            unit.keeps.mkdir(parents=True, exist_ok=True)
            for made in Path(folder).glob("*.ptx"):
                shutil.move(made, unit.keeps / made.name)
    log = run.stdout + run.stderr
    if run.returncode == 0:
        kept = {"facts": facts, "dependencies": dependencies(depfile), "log": log}
        stamp.write_text(json.dumps(kept))
        print(f"compiled {unit}", flush=True)
    return run.returncode == 0, log


def facts_of(toolkit: Toolkit) -> dict:
    """Beside the command, what the units depend on."""
    return {"torch": torch.__version__, "cuda": list(toolkit.version)}


def symbols(objects: list[Path], kind: str) -> set[str]:
    """Demangled d2lfast::cuda symbols of objects; `kind` is nm's --undefined-only or --defined-only."""
    text = subprocess.run(["nm", "-C", kind, *objects], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\b[TUW] (d2lfast::cuda::.+)$", text, re.MULTILINE))


def report(kernels: list[Kernel]) -> bool:
    """Print one row per kernel; returns whether one spills that may not."""
    rows: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        rows.setdefault(kernel.name, {})[kernel.arch] = kernel
    if not rows:
        return False
    width = max(map(len, rows))
    archs = [arch for arch in ARCHS if any(arch in by_arch for by_arch in rows.values())]
    heads = [f"{head:^{8 * len(archs) - 1}}" for head in ("registers", "shared bytes", "spilled bytes")]
    print(f"\n{'':{width}}  {'  '.join(heads)}")
    print(f"{'kernel':{width}} " + " ".join(f" {arch:>7}" for arch in archs * 3))
    failed = False
    for name, by_arch in rows.items():
        line = f"{name:{width}}"
        for field in ("registers", "shared", "spill"):
            line += " " + "".join(f" {getattr(by_arch[a], field) if a in by_arch else '-':>7}" for a in archs)
        if any(kernel.spill for kernel in by_arch.values()):
            reason = next((why for pattern, why in ALLOWED_SPILLS.items() if re.search(pattern, name)), None)
            line += f"  allowed: {reason}" if reason else "  SPILLS"
            failed = failed or reason is None
        print(line)
    print(f"\n{len(rows)} kernels for {', '.join(archs)}.")
    return failed


def main() -> int:
    """Exit status of `make cuda-compile`."""
    toolkit = find_toolkit()
    if toolkit is None:
        print("cuda-compile: no nvcc on PATH or in CUDA_HOME, so no CUDA source was compiled.")
        return 1 if os.environ.get("CI") else 0
    OUT.mkdir(parents=True, exist_ok=True)
    glue = glue_units(toolkit)
    units = kernel_units(toolkit) + glue
    facts = facts_of(toolkit)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda unit: compile_unit(unit, facts), units))
    failed = False
    for unit, (compiled, log) in zip(units, results):
        if not compiled:
            errors = re.sub(r"^ptxas info .*\n(?: +\d+ bytes stack frame.*\n)?", "", log, flags=re.MULTILINE)
            print(f"\n{unit} failed:\n{errors}")
            failed = True
        elif "wgmma.mma_async instructions are serialized" in log:  # information for ptxas, not a warning
            print(f"\n{unit}:\n{log}")
            failed = True
    if failed:
        return 1
    kernels = [kernel for _, log in results for kernel in parse_ptxas(log)]
    for kernel, name in zip(kernels, demangle([kernel.name for kernel in kernels], toolkit)):
        kernel.name = shorten(name)
    failed = report(kernels)
    missing = set()
    if glue:
        missing = symbols([unit.target for unit in glue], "--undefined-only")
        missing -= symbols([unit.target for unit in units], "--defined-only")
    for name in sorted(missing):
        print(f"csrc/ops/cuda calls {name}, which no csrc/kernels/cuda/*.cu defines.")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
