"""Build the emulated GPU: d2lfast's CUDA kernels and operators as C++, registered for the CPU.

Prints the library's path. Loading it replaces d2lfast's CPU operators in that process, and tensors come from
fenced memory. Where there is an nvcc, the kernels' PTX comes to the folder `ptx` beside the library, which
runs it if D2LFAST_EMULATED_PTX names the folder; that of another architecture, D2LFAST_EMULATED_ARCH, to
`ptx_80` or `ptx_100`. What `make cuda-compile` has made is copied, what is up to date not compiled again.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
OUT = ROOT / "build" / "emulation"
ARCH = os.environ.get("D2LFAST_EMULATED_ARCH", "90")  # of the PTX
PTX = OUT / ("ptx" if ARCH == "90" else f"ptx_{ARCH}")
sys.path.insert(0, str(ROOT / "build_tools"))

import cuda_compile  # noqa: E402
from cuda_toolkit import NVCC_FLAGS, Toolkit, find_toolkit  # noqa: E402

FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-g1"]
FLAGS += ["-Wno-unused-parameter", "-Wno-unknown-pragmas", "-Wno-attributes", "-Wno-clobbered"]
# Misaligned vectors and the like trap; the emulation itself checks shared memory, the allocator tensors.
TRAPS = [
    "-fsanitize=undefined",
    "-fno-sanitize=vptr,float-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
]
# Accesses to memory call global_memory.cpp. The kernels that run longest in the tests, in which each result
# is one thread's, take a third longer so: their PTX alone is watched.
CALLS = ["-fsanitize=thread"]
UNWATCHED = ("conv2d_direct", "conv2d_implicit", "conv2d_tiles", "conv2d_tile_products")


def units() -> list[cuda_compile.Unit]:
    """Compiler calls for kernels, operators and the allocator."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    torch_include = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    emulation = ["-I", str(HERE)]
    made = []
    for source in sorted(ROOT.glob("csrc/kernels/cuda/*.cu")):
        calls = [] if source.stem in UNWATCHED else CALLS
        command = [*compiler, *FLAGS, *TRAPS, *calls, "-O1", *emulation, "-x", "c++"]
        made.append(cuda_compile.Unit(source, OUT / f"{source.stem}.kernel.o", command))
    operators = [*compiler, *FLAGS, "-O0", *emulation, *torch_include, "-DD2LFAST_CUDA_KEY=CPU"]
    for source in [*sorted(ROOT.glob("csrc/ops/cuda/*.cpp")), HERE / "memory.cpp"]:
        made.append(cuda_compile.Unit(source, OUT / f"{source.stem}.ops.o", operators))
    watch = [*compiler, *FLAGS, "-O2"]
    made.append(cuda_compile.Unit(HERE / "global_memory.cpp", OUT / "global_memory.o", watch))
    compiled = [*compiler, *FLAGS, "-O3", "-march=native", "-ffp-contract=off", "-fwrapv", *emulation]
    for source in sorted((HERE / "ptx").glob("*.cpp")):
        made.append(cuda_compile.Unit(source, OUT / f"ptx_{source.stem}.o", compiled))
    return made


def kept_ptx(toolkit: Toolkit) -> dict[Path, Path]:
    """By source, the PTX of this architecture that `make cuda-compile` kept, where it is up to date."""
    facts = cuda_compile.facts_of(toolkit)
    kept = {}
    for unit in cuda_compile.kernel_units(toolkit):
        source = unit.source
        # A call for one architecture does not name it.
        alone = ARCH == "90" and cuda_compile.has_warpgroups(source)
        made = unit.keeps / (f"{source.stem}.ptx" if alone else f"{source.stem}.compute_{ARCH}.ptx")
        if made.exists() and cuda_compile.stored_log(unit, facts) is not None:
            kept[source] = made
    return kept


def ptx_units(toolkit: Toolkit) -> list[cuda_compile.Unit]:
    """Calls of nvcc with the flags of a build; none if it does not know the architecture."""
    made = []
    if toolkit.version < cuda_compile.ARCHS[f"sm_{ARCH}"]:
        return made
    for source in sorted(ROOT.glob("csrc/kernels/cuda/*.cu")):
        of_warpgroups = ARCH == "90" and cuda_compile.has_warpgroups(source)
        arch = ["-arch=compute_90a", "-DD2LFAST_SM90A"] if of_warpgroups else [f"-arch=compute_{ARCH}"]
        command = [str(toolkit.nvcc), *cpp_extension.COMMON_NVCC_FLAGS, *NVCC_FLAGS, *arch]
        made.append(cuda_compile.Unit(source, PTX / f"{source.stem}.ptx", command, "-ptx"))
    return made


def build() -> Path:
    """The library; raises RuntimeError with the compiler's output."""
    PTX.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__}
    objects = units()
    calls = list(objects)
    toolkit = find_toolkit()
    programs = ptx_units(toolkit) if toolkit else []
    kept = kept_ptx(toolkit) if toolkit else {}
    for unit in programs:
        if unit.source in kept:
            unit.target.with_suffix(".json").unlink(missing_ok=True)
            shutil.copyfile(kept[unit.source], unit.target)
        else:
            calls.append(unit)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda unit: cuda_compile.compile_unit(unit, facts), calls))
    for unit, (compiled, log) in zip(calls, results):
        if not compiled:
            raise RuntimeError(f"{unit} failed:\n{log}")
    for old in set(PTX.glob("*.ptx")) - {unit.target for unit in programs}:
        old.unlink()
    library, symbols = OUT / "emulated_cuda.so", OUT / "symbols"
    objects = [str(unit.target) for unit in objects]
    newest = max(os.stat(name).st_mtime_ns for name in objects)
    if not symbols.exists() or symbols.stat().st_mtime_ns < newest:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        # Schemas and checks that all devices share are the extension's.
        extension = Path(importlib.util.find_spec("d2lfast._C").origin)
        link = [*compiler, "-shared", "-o", str(library), *objects, "-Wl,--no-undefined", str(extension)]
        link += [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu"]
        link += [f"-Wl,-rpath,{path}" for path in (*cpp_extension.library_paths(), extension.parent)]
        subprocess.run(link, check=True)
        # By which a kernel's address is its name, also in an unnamed namespace.
        names = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
        symbols.write_text("\n".join(re.findall(r"^\S+ [tT] .*d2lfast4cuda.*$", names, re.MULTILINE)))
    if not (PTX / "symbols").is_symlink():
        (PTX / "symbols").unlink(missing_ok=True)
        (PTX / "symbols").symlink_to(symbols)
    return library


if __name__ == "__main__":
    print(build())
