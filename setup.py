"""Build of the d2lfast extension. Switches (docs/environment.md): FORCE_CUDA, FORCE_CPU, DEBUG, SANITIZE,
TORCH_CUDA_ARCH_LIST, MAX_JOBS, D2LFAST_NO_EXTENSION."""

import json
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

import cuda_toolkit  # noqa: E402

# Compiled as one file each: torch's headers take three quarters of the time of such a file alone. Anonymous
# namespaces of a bundle are one.
BUNDLES = {
    "bindings": ("generate_binding", "library"),
    "autograd_1": ("ops/batch_norm", "ops/conv2d", "ops/cross_entropy", "ops/pool2d", "ops/recurrent"),
    "autograd_2": (
        "ops/adaptive_pool2d",
        "ops/batch_norm_inplace",
        "ops/linear",
        "ops/recurrent_layer",
        "ops/sync_batch_norm",
    ),
    "tensors": (
        "ops/activation",
        "ops/allocate",
        "ops/autocast",
        "ops/recurrent_layer_checks",
        "ops/recurrent_reference",
    ),
    "cpu_operators": ("ops/cpu/conv2d", "ops/cpu/cross_entropy", "ops/cpu/library", "ops/cpu/linear"),
    "cpu_pooling_and_norm": (
        "ops/cpu/adaptive_pool2d",
        "ops/cpu/batch_norm_backward",
        "ops/cpu/batch_norm_channels",
        "ops/cpu/batch_norm_forward",
        "ops/cpu/batch_norm_runner",
        "ops/cpu/pool2d",
        "ops/cpu/sync_batch_norm",
    ),
    "cpu_recurrent": (
        "ops/cpu/recurrent",
        "ops/cpu/recurrent_generate",
        "ops/cpu/recurrent_layer",
        "ops/cpu/recurrent_layer_backward",
        "ops/cpu/recurrent_layer_backward_large",
        "ops/cpu/recurrent_layer_forward",
    ),
}
GIB_PER_JOB = 1.2  # a file that includes torch's autograd headers peaks at about 1 GB


def flag(name):
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def import_torch():
    try:
        import torch
        import torch.utils.cpp_extension
    except ImportError:
        sys.exit(
            "d2lfast needs an installed torch to build its extension: run 'pip install torch==2.13.0', then "
            "repeat (with uv or 'python -m build', also pass --no-build-isolation)."
        )
    include = Path(torch.utils.cpp_extension.include_paths()[0])
    missing = [d for d in ("ATen", "c10", "torch/csrc") if not (include / d).is_dir()]
    if missing:
        sys.exit(
            f"The installed torch {torch.__version__} lacks its headers ({', '.join(missing)}): reinstall it."
        )
    return torch


def use_cuda(torch):
    """CUDA needs a torch with CUDA, an nvcc of the same major version, and a GPU or FORCE_CUDA=1."""
    forced = flag("FORCE_CUDA")
    if flag("FORCE_CPU"):
        return False
    if not forced and not torch.cuda.is_available():
        return False
    if torch.version.cuda is None:
        if forced:
            sys.exit(f"FORCE_CUDA=1, but torch {torch.__version__} is a build without CUDA.")
        return False
    toolkit = cuda_toolkit.find_toolkit()
    if toolkit is None:
        if forced:
            sys.exit("FORCE_CUDA=1, but no nvcc was found: put it on PATH or set CUDA_HOME.")
        print("d2lfast: a GPU is present but no nvcc was found: building for the CPU only.")
        return False
    version = toolkit.version
    wanted = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    nvcc = f"nvcc {version[0]}.{version[1]}"
    if version[0] != wanted[0]:
        sys.exit(
            f"{nvcc} cannot build for torch with CUDA {torch.version.cuda}; set FORCE_CPU=1 "
            "for a build without CUDA."
        )
    if version != wanted:
        print(f"d2lfast: {nvcc} and torch's CUDA {torch.version.cuda} differ in the minor version.")
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if archs not in {"", "native"}:
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_toolkit.with_sm90a(archs)
    elif not torch.cuda.is_available():
        # torch's list for this case is empty, which it then fails on.
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_toolkit.default_archs(version)
    else:
        seen = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        if min(seen) < cuda_toolkit.LEAST_CAPABILITY:
            least = ".".join(map(str, cuda_toolkit.LEAST_CAPABILITY))
            sys.exit(
                f"A GPU has a compute capability below {least}, which the kernels need: name those to build "
                "for in TORCH_CUDA_ARCH_LIST, or set FORCE_CPU=1 for a build without CUDA."
            )
        if (9, 0) in seen:  # otherwise torch chooses
            listed = ";".join(f"{major}.{minor}" for major, minor in sorted(seen))
            os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_toolkit.with_sm90a(listed)
    # So that the build calls the nvcc that was checked above, with its own headers.
    torch.utils.cpp_extension.CUDA_HOME = str(toolkit.home)
    return True


def default_jobs():
    jobs = os.cpu_count() or 1
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError):
        return jobs
    return max(1, min(jobs, int(available / GIB_PER_JOB)))


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def bundled(files):
    """The files with those of a bundle replaced by one file that includes them."""
    folder = ROOT / "build" / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, stems in BUNDLES.items():
        members = [f"csrc/{stem}.cpp" for stem in stems]
        files = [file for file in files if file not in members]
        bundle = folder / f"{name}.cpp"
        text = "".join(f'#include "{(ROOT / member).as_posix()}"\n' for member in members)
        # A new time stamp would compile it again.
        if not bundle.exists() or bundle.read_text() != text:
            bundle.write_text(text)
        found.append(str(bundle.relative_to(ROOT)))
    return found + files


def extension(torch):
    cpp_extension = torch.utils.cpp_extension
    cuda = use_cuda(torch)
    sanitize = os.environ.get("SANITIZE", "")
    debug = flag("DEBUG")
    cxx = [
        "-std=c++20",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-unknown-pragmas",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ]
    cxx += (
        ["-O0", "-g"]
        if debug
        else ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    )
    link = []
    if sanitize:
        cxx += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1"]
        link += [f"-fsanitize={sanitize}"]
    if "ATen parallel backend: OpenMP" in torch.__config__.parallel_info():
        # Without it at::parallel_for compiles to a serial loop.
        cxx += ["-fopenmp"]
        link += ["-fopenmp"]
    files = bundled(
        sources(
            "csrc/*.cpp",
            "csrc/memory/*.cpp",
            "csrc/ops/*.cpp",
            "csrc/ops/cpu/*.cpp",
            "csrc/kernels/cpu/*.cpp",
        )
    )
    flags = {"cxx": cxx}
    macros = []
    if cuda:
        files += sources("csrc/ops/cuda/*.cpp", "csrc/kernels/cuda/*.cu")
        flags["nvcc"] = [*cuda_toolkit.NVCC_FLAGS, "-lineinfo"]
        macros += [("D2LFAST_WITH_CUDA", None)]
        if cuda_toolkit.has_sm90a(os.environ.get("TORCH_CUDA_ARCH_LIST", "")):
            macros += [("D2LFAST_SM90A", None)]
    info = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cuda_archs": os.environ.get("TORCH_CUDA_ARCH_LIST", "those of the GPUs at build time")
        if cuda
        else None,
        "python": platform.python_version(),
        "cxx_flags": cxx,
        "debug": debug,
        "sanitize": sanitize or None,
    }
    for name, value in info.items():
        print(f"d2lfast build: {name} = {value}")
    (ROOT / "d2lfast" / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
    os.environ.setdefault("MAX_JOBS", str(default_jobs()))
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return kind(
        "d2lfast._C",
        files,
        depends=sources("csrc/**/*.h", "csrc/**/*.inc", "csrc/**/*.cuh"),
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=link,
    )


if flag("D2LFAST_NO_EXTENSION"):
    setup(packages=find_packages(include=["d2lfast", "d2lfast.*"]))
else:
    # The metadata commands of pip and sdist need no torch and build nothing.
    building = {"build_ext", "build", "install", "bdist_wheel", "develop", "editable_wheel"} & set(sys.argv)
    torch = import_torch() if building else None
    setup(
        packages=find_packages(include=["d2lfast", "d2lfast.*"]),
        package_data={"d2lfast": ["_build_info.json", "py.typed"]},
        ext_modules=[extension(torch)] if torch else [Extension("d2lfast._C", [])],
        cmdclass={"build_ext": torch.utils.cpp_extension.BuildExtension} if torch else {},
    )
