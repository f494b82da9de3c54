"""The CUDA kernels and their operators on an emulated GPU (tests/cuda/emulation): no device is needed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent

# The operator tests that run with the CUDA operators in the place of the CPU's, but for those marked `cpu`.
FAMILIES = {
    "pool2d": ["test_pool2d.py", "test_adaptive_pool2d.py"],
    "batch_norm": ["test_batch_norm.py", "test_batch_norm_inplace.py", "../nn/test_sync_batch_norm.py"],
    "losses_and_dense": ["test_cross_entropy.py", "test_linear.py"],
    "recurrent": ["test_recurrent.py"],
    "recurrent_layer": ["test_recurrent_layer.py"],
    "conv2d": ["test_conv2d.py"],
    "conv2d_residual": ["test_conv2d_residual.py"],
    "conv2d_implicit": ["test_conv2d_implicit.py"],
    "conv2d_winograd": ["test_conv2d_winograd.py"],
}

FAR_END = ("-n", "0", "cuda/far_end.py")  # a process at a time: each takes 5 GiB


def build(**variables):
    command = [sys.executable, str(HERE / "emulation" / "build.py")]
    environment = {**os.environ, **variables}
    run = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def library():
    return build()


def ptx_in(folder):
    return {"D2LFAST_EMULATED_PTX": str(folder)} if any(folder.glob("*.ptx")) else {}


@pytest.fixture(scope="session")
def compiled(library):
    """What runs the kernels as nvcc compiles them; as C++ where there is no nvcc."""
    return ptx_in(Path(library).parent / "ptx")


@pytest.fixture(scope="session")
def ptx(compiled):
    return compiled or pytest.skip("needs nvcc")


@pytest.fixture(params=["C++", "PTX"])
def code(request):
    """Both, the second as far as there is one."""
    return {} if request.param == "C++" else request.getfixturevalue("ptx")


def run_on_emulated_gpu(library, *arguments, **variables):
    """pytest, on all processors: this file takes longest, and its last tests run beside no others."""
    environment = {**os.environ, "D2LFAST_EMULATED_CUDA": library, **variables}
    command = [sys.executable, "-m", "pytest", "-n", str(os.cpu_count() or 1), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=TESTS, env=environment)


def on_emulated_gpu(library, *arguments, **variables):
    run = run_on_emulated_gpu(library, *arguments, **variables)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]


def built(tmp_path, library, name, kernels=()):
    """A program of the folder `emulation`, with these of the library's kernels."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    source, compiled, program = HERE / "emulation" / f"{name}.cpp", tmp_path / f"{name}.o", tmp_path / name
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-fsanitize=thread"]
    subprocess.run([*compiler, *flags, "-I", source.parent, "-c", source, "-o", compiled], check=True)
    # Without the flag, whose own library would answer the calls of global_memory.cpp.
    objects = [Path(library).parent / object for object in ("global_memory.o", *kernels)]
    subprocess.run([*compiler, compiled, *objects, "-o", program], check=True)
    return program


def operator_tests(library, family, expression="", **variables):
    on_emulated_gpu(library, *(f"ops/{name}" for name in FAMILIES[family]), "-k", expression, **variables)


@pytest.mark.parametrize("family", FAMILIES)
def test_operators(library, compiled, family):
    operator_tests(library, family, **compiled)


@pytest.mark.parametrize("shared_bytes", ["3000", "14000", "232448"])
def test_recurrent_layers_outside_of_registers(library, compiled, shared_bytes):
    """On a GPU whose registers hold no weight; with little shared memory small layers are shared out."""
    expression = "forward_and_gradients and not large"
    gpu = {"D2LFAST_EMULATED_SHARED_BYTES": shared_bytes, "D2LFAST_EMULATED_REGISTERS": "32768"}
    operator_tests(library, "recurrent_layer", expression, **gpu, **compiled)


def test_random_cases(library, code):
    on_emulated_gpu(library, "fuzz/test_fuzz.py", "-k", "random_cases", D2LFAST_FUZZ_CASES="30", **code)


def launches(library, **variables):
    names = ("", "_batch_norm", "_conv2d", "_conv2d_products", "_cross_entropy", "_autotune", "_recurrent")
    on_emulated_gpu(library, *(f"cuda/launches{name}.py" for name in names), **variables)


def test_launches(library, compiled):
    launches(library, **compiled)


@pytest.mark.parametrize("arch", ["80", "100"])
def test_launches_of_other_architectures(library, ptx, arch):
    """Whose PTX differs: sm_80 has no clusters."""
    gpu = {"D2LFAST_EMULATED_ARCH": arch}
    build(**gpu)
    other = ptx_in(Path(library).parent / f"ptx_{arch}") or pytest.skip("nvcc does not know it")
    launches(library, **gpu, **other)


@pytest.mark.parametrize("capability", ["80", "90"])
def test_tiles_of_convolutions(library, code, capability):
    """With one multiprocessor, whose tiles are wide from a few blocks on, and with products of warpgroups."""
    gpu = {"D2LFAST_EMULATED_PROCESSORS": "1", "D2LFAST_EMULATED_CAPABILITY": capability, **code}
    on_emulated_gpu(library, "cuda/launches_conv2d.py", "-k", "implicit or residual", **gpu)
    if capability == "90":
        operator_tests(library, "conv2d_implicit", **gpu)
        on_emulated_gpu(library, *FAR_END, "-k", "implicit", **gpu)


def test_far_end(library, code):
    on_emulated_gpu(library, *FAR_END, **code)


def test_far_end_of_kernels(library, tmp_path):
    """Winograd's transforms and the recurrent kernels, whose operators multiply matrices of that size."""
    kinds = ("", "_cluster", "_cluster_exact", "_cluster_tensor_core", "_grid", "_layer")
    families = ("conv2d_winograd", *(f"recurrent{kind}" for kind in kinds))
    program = built(tmp_path, library, "far_end", [f"{family}.kernel.o" for family in families])
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


# What is said, and whether the values are right: they are not touched by a kernel that was stopped.
PRODUCTS = {
    "product": ("ran", "right"),
    "product, no swizzle": ("ran", "wrong"),
    "product, no proxy fence": ("written without a fence", "right"),
    "product, no barrier": ("races with a write", "right"),
    "product, no fence of sums": ("into sums without a fence", "right"),
    "product, no wait": ("ran", "wrong"),
    "product, early write": ("during a product", "right"),
    "product, early sums": ("sums in the factors", "right"),
    "product, other factors": ("differ by thread", "right"),
    "product, half a warpgroup": ("not all threads reach", "right"),
}
PRODUCT_FAULTS = {name: said for name, (said, _) in PRODUCTS.items()}
PRODUCT_FAULTS |= {f"{name} values": values for name, (_, values) in PRODUCTS.items()}
FAULTS = {
    "race": "races with a write",
    "overwrite": "races with a read",
    "uninitialised": "nobody wrote",
    "outside": "outside shared memory",
    "divergent": "not all threads reach",
    "partial warp": "not all threads reach",
    "global race": "a read of global memory that races with a write of thread 0 of block 0",
    "global barrier": "ran",
    "global blocks": "a write of global memory that races with a read of thread 0 of block 2",
    "global grid": "a write of global memory that races with a read of thread 0 of block",
    "global both write": "a write of global memory that races with a write of thread 0 of block 0",
    "global bytes": "ran",
    "global overlap": "a write of global memory that races with a write of thread 0 of block 0",
    "global readers": "a write of global memory that races with a read of threads of block 0",
    "missing wait": "during an asynchronous copy",
    "missing barrier": "races with a write",
    "early copy": "races with a write of thread 63",
    "too many rows": "launch of 1 x 65536",
    "too many threads": "blocks of 1025 threads",
    "no blocks": "launch of 0 x 1",
    "too much shared memory": "49153 bytes of shared memory with static arrays",
    "not cooperative": "not cooperative",
    "overlap": "ran",
    "overlap values": "of both types",
    "correct": "ran",
    "cooperative": "ran",
    "results": "right",
    "cluster": "ran",
    "cluster values": "right",
    "cluster, not begun": "a block that has not begun",
    "cluster, no barrier": "a read of shared memory that nobody wrote",
    "cluster, barrier of a block": "a cluster of another size",
    "cluster, another block": "a cluster of another size",
    "cluster, odd": "launch of 3 x 1",
    **PRODUCT_FAULTS,
    "no guard": "outside a device guard",
}


def test_finds_faults(tmp_path, library):
    """Each fault of emulation/faults.cpp is named, and correct kernels run."""
    program = built(tmp_path, library, "faults")
    run = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60)
    said = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    assert said.keys() == FAULTS.keys()
    for name, part in FAULTS.items():
        assert part in said[name], (name, said[name])


# A file, what is replaced in its kernels by what, tests that run them, and what these then say.
MUTATIONS = {
    "no barrier": (
        "cross_entropy", r"\bbar\.sync\s+0;", "", "cross_entropy", "3000", "a race on shared memory",
    ),
    "one block": (
        "cross_entropy", r", %ctaid\.x;", ", 0;",
        "cross_entropy", "neighbours", "a write of global memory that races",
    ),
    "off its boundary": (
        "batch_norm", r"(st\.global\.v[24]\.\w+\s+\[%rd\d+)\]", r"\1+4]",
        "batch_norm", "several_pieces", "a misaligned access to global memory",
    ),
    "no wait for copies": (
        "conv2d_implicit", r"cp\.async\.wait_group \d;", "", "conv2d", "implicit_gemm", "difference: nan",
    ),
    "no wait for products": (
        "conv2d_implicit_warpgroup", r"wgmma\.wait_group\.sync\.aligned \d;", "",
        "conv2d", "implicit_gemm and bfloat16", "difference: nan",
    ),
    "the same factors in each product": (
        "conv2d_implicit_warpgroup", r"46116862933053603\d\d;", "4611686293305360384;",
        "conv2d", "implicit_gemm and bfloat16", "Mismatched elements",
    ),
    "fragments in another order": (
        "conv2d_tile_products", r"(mma\.sync\S+ \{[^}]*\}, \{)([^,]*),([^,]*),", r"\1\3,\2,",
        "conv2d_products", "on_tensor_cores", "not equal",
    ),
    "no barrier of the cluster": (
        "recurrent_cluster_exact", r"barrier\.cluster\.wait\.acquire;", "",
        "recurrent", "clusters and 65", "a race on shared memory",
    ),
    "a store into its own block": (
        "recurrent_cluster_exact", r"mapa\.shared::cluster\.u32 (%r\d+), (%r\d+), %r\d+;", r"mov.b32 \1, \2;",
        "recurrent", "clusters and 65", "AssertionError",
    ),
    "a block outside the cluster": (
        "recurrent_cluster_exact", r"(mapa\.shared::cluster\.u32 %r\d+, %r\d+), %r\d+;", r"\1, 2;",
        "recurrent", "clusters and 65", "a block outside the cluster",
    ),
    "no barrier before parts are added": (
        "recurrent_cluster_tensor_core", r"\bbar\.sync\s+0;", "",
        "recurrent", "clusters and 64-1 and tf32", "a race on shared memory",
    ),
    "units in another order": (
        "recurrent_cluster_tensor_core", r"(mma\.sync\S+ \{[^}]*\}, \{)([^,]*),([^,]*),", r"\1\3,\2,",
        "recurrent", "clusters and 64-1 and tf32", "AssertionError",
    ),
    "an unknown operation": (
        "cross_entropy", r"ex2\.approx", "ex3.approx", "cross_entropy", "[10", "operation ex3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_finds_faults_of_compiled_kernels(tmp_path, library, ptx, name):
    source, pattern, replacement, tests, expression, said = MUTATIONS[name]
    for path in Path(ptx["D2LFAST_EMULATED_PTX"]).iterdir():
        if path.suffix == ".ptx" or path.name == "symbols":
            (tmp_path / path.name).symlink_to(path)
    mutated = tmp_path / f"{source}.ptx"
    text, count = re.subn(pattern, replacement, mutated.read_text())
    assert count > 0
    mutated.unlink()
    mutated.write_text(text)
    gpu = {"D2LFAST_EMULATED_PTX": str(tmp_path), "D2LFAST_EMULATED_CAPABILITY": "90"}
    run = run_on_emulated_gpu(library, "-n", "0", "-x", f"cuda/launches_{tests}.py", "-k", expression, **gpu)
    assert said in run.stdout, run.stdout[-3000:]
    assert run.returncode == 1


def test_counts_costs_of_accesses(tmp_path, library, ptx):
    """Sectors and wavefronts by instruction, of which a warp needs no less than its bytes fill."""
    file = tmp_path / "counts.tsv"
    tests = ("-n", "0", "cuda/launches_cross_entropy.py", "-k", "neighbours")
    on_emulated_gpu(library, *tests, D2LFAST_EMULATED_COUNTS=str(file), **ptx)
    rows = [line.split("\t", 5) for line in file.read_text().splitlines()]
    assert {memory for _, memory, *_ in rows} == {"global", "shared"}
    for _, _, times, needed, least, _ in rows:
        assert 0 < int(times) <= int(least) <= int(needed) <= 32 * int(times)


def test_quads_are_read_from_different_banks(tmp_path, library, ptx):
    """As planned: by lanes at neighbouring pixels and taps, of which some lie in rows of the next pixels."""
    file = tmp_path / "counts.tsv"
    test = "cuda/launches_conv2d_products.py::test_direct_convolution_on_tensor_cores"
    names = [f"{test}[groups of {n}-torch.bfloat16]" for n in (4, 16)]
    on_emulated_gpu(library, "-n", "0", *names, D2LFAST_EMULATED_COUNTS=str(file), **ptx)
    rows = [line.split("\t", 5) for line in file.read_text().splitlines()]
    reads = [
        row for row in rows if "tile_products" in row[0] and row[1] == "shared" and row[5].startswith("ld")
    ]
    assert len({kernel for kernel, *_ in reads}) == 2
    assert sum(int(row[3]) for row in reads) <= 1.2 * sum(int(row[4]) for row in reads)
