"""Measured algorithms: their file, and that nothing but the choice depends on them."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import d2lfast
from d2lfast import _extension, _tuning
from d2lfast.nn import functional as F

pytestmark = pytest.mark.cpu

SHAPE, WEIGHT = (2, 16, 9, 9), (16, 16, 3, 3)
PASSES = ("forward", "grad_input", "grad_weight")
# What the CPU can compute of SHAPE in float32.
CANDIDATES = {"batch", "winograd", "winograd_2x2", "channels", "planes", "direct", "aten"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and neither findings nor warnings of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_tuning, "_file", _tuning._File())
    was = d2lfast.backends.conv2d.autotune
    d2lfast.backends.conv2d.autotune = False
    _extension.load().clear_tuning()
    yield tmp_path / "d2lfast"
    d2lfast.backends.conv2d.autotune = False
    _extension.load().clear_tuning()
    d2lfast.backends.conv2d.autotune = was


def tensors(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in (SHAPE, WEIGHT, (16,))
    )


def step(x, w, b, convolve=F.conv2d):
    y = convolve(x, w, b, padding=1)
    return [y, *torch.autograd.grad(y.square().sum(), (x, w, b))]


def explained(**options):
    return d2lfast.explain("conv2d", SHAPE, WEIGHT, padding=1, **options)


def fresh():
    """Forget as a new process would have."""
    d2lfast.backends.conv2d.autotune = False
    _extension.load().clear_tuning()
    _tuning._file = _tuning._File()
    d2lfast.backends.conv2d.autotune = True


def entries(path=None):
    document = json.loads((path or _tuning.tuning_file()).read_text())
    return {tuple(key): name for *key, name in document["algorithms"]}


def write(algorithms, **changes):
    path = _tuning.tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"environment": _tuning._environment(), "algorithms": algorithms, **changes}
    path.write_text(json.dumps(document))


def entry(what, name):
    """A line of the file for a pass of SHAPE as the tests call it."""
    shape = [*SHAPE, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1]
    key = [PASSES.index(what), 1, 0, torch.get_num_threads(), 1, *shape, 0, 0]
    return [*key, name]


def test_each_pass_is_measured_once_and_kept():
    table = explained()
    d2lfast.backends.conv2d.autotune = True
    assert explained() == table
    with torch.no_grad():
        F.conv2d(*tensors(), padding=1)
    found = explained()
    assert found["forward"].endswith(" (autotuned)")
    assert (found["grad_input"], found["grad_weight"]) == (table["grad_input"], table["grad_weight"])
    step(*tensors())
    found = explained()
    names = {what: name.removesuffix(" (autotuned)") for what, name in found.items()}
    assert all(name.endswith(" (autotuned)") for name in found.values())
    assert set(names.values()) <= CANDIDATES
    assert entries() == {tuple(entry(what, name)[:-1]): name for what, name in names.items()}
    before = _tuning.tuning_file().stat().st_mtime_ns
    step(*tensors(seed=1))
    assert _tuning.tuning_file().stat().st_mtime_ns == before


def test_switched_off_the_table_is_back():
    table = explained()
    with d2lfast.backends.conv2d.flags(autotune=True):
        assert d2lfast.backends.conv2d.autotune
        step(*tensors())
        assert explained() != table
    assert not d2lfast.backends.conv2d.autotune
    assert explained() == table
    step(*tensors())
    with d2lfast.backends.conv2d.flags(autotune=True):
        assert explained() != table


@pytest.mark.parametrize("name", sorted(CANDIDATES))
def test_the_file_decides(name):
    write([entry(what, name) for what in PASSES])
    d2lfast.backends.conv2d.autotune = True
    # Not every algorithm computes every pass; what the file may not say is measured.
    with d2lfast.conv2d_algorithm(name):
        able = [what for what, algorithm in explained().items() if algorithm == name]
    assert "forward" in able
    found = explained()
    assert [what for what in able if found[what] != f"{name} (autotuned)"] == []
    found = step(*tensors())
    with d2lfast.backends.conv2d.flags(autotune=False), d2lfast.conv2d_algorithm(name):
        wanted = step(*tensors())
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)


def test_a_request_by_name_stands():
    d2lfast.backends.conv2d.autotune = True
    step(*tensors())
    with d2lfast.conv2d_algorithm("direct"):
        assert set(explained().values()) == {"direct"}
    with d2lfast.conv2d_algorithm("direct/auto/aten"):
        assert explained()["forward"] == "direct"
        assert explained()["grad_input"].endswith(" (autotuned)")


def test_forbidden_winograd_is_not_found():
    write([entry("forward", "winograd")])
    with d2lfast.backends.conv2d.flags(allow_winograd=False, autotune=True):
        step(*tensors())
        assert not any("winograd" in name for name in explained().values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_while_measuring_and_after(dtype, layout):
    x, w, b = (t.detach() for t in tensors(dtype))
    x, w = (t.contiguous(memory_format=layout).requires_grad_() for t in (x, w))
    b.requires_grad_()
    wanted = step(*(t.detach().double().requires_grad_() for t in (x, w, b)), torch.nn.functional.conv2d)
    d2lfast.backends.conv2d.autotune = True
    eps = torch.finfo(dtype).eps
    for _ in range(2):
        for found, exact in zip(step(x, w, b), wanted):
            assert found.dtype == dtype
            error = (found.double() - exact).norm() / exact.norm()
            assert error <= 4 * eps + 4 * torch.finfo(torch.float32).eps * (dtype != torch.float64)


def test_nothing_is_measured_without_elements():
    d2lfast.backends.conv2d.autotune = True
    x, w, b = tensors()
    step(x[:0], w, b)
    assert not _tuning.tuning_file().exists()


def test_double_backward():
    d2lfast.backends.conv2d.autotune = True
    x, w = (
        torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((1, 2, 4, 4), (2, 2, 3, 3))
    )
    assert torch.autograd.gradcheck(lambda *args: F.conv2d(*args, padding=1), (x, w))
    assert torch.autograd.gradgradcheck(lambda *args: F.conv2d(*args, padding=1), (x, w))


def test_compiled():
    table = explained()
    d2lfast.backends.conv2d.autotune = True
    convolve = torch.compile(F.conv2d, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        for found, exact in zip(step(*tensors(), convolve), step(*tensors(), torch.nn.functional.conv2d)):
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)
    assert all(explained()[what] != name for what, name in table.items())


DAMAGED = {
    "empty": b"",
    "truncated": b'{"environment": {',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "list": b"[]",
    "number": b"1",
    "no algorithms": b'{"environment": 1}',
}
ENTRIES = {
    "short": [[1, 2, "direct"]],
    "text": [[*["x"] * len(_tuning.FIELDS), "direct"]],
    "no name": [[0] * (len(_tuning.FIELDS) + 1)],
    "huge": [[*[2**70] * len(_tuning.FIELDS), "direct"]],
    "no list": 5,
}


@pytest.mark.parametrize("damage", [*DAMAGED, *ENTRIES, "foreign"])
def test_a_damaged_file_is_replaced_with_one_warning(damage, caplog):
    if damage == "foreign":
        write([entry("forward", "direct")], environment={**_tuning._environment(), "cpu": "another"})
    elif damage in ENTRIES:
        write(ENTRIES[damage])
    else:
        write([])
        _tuning.tuning_file().write_bytes(DAMAGED[damage])
    with caplog.at_level(logging.WARNING, "d2lfast"):
        d2lfast.backends.conv2d.autotune = True
        assert not any(name.endswith("(autotuned)") for name in explained().values())
        step(*tensors())
    assert len(caplog.records) == 1
    assert str(_tuning.tuning_file()) in caplog.text
    assert len(entries()) == 3
    caplog.clear()
    fresh()
    assert all(name.endswith("(autotuned)") for name in explained().values())
    assert not caplog.records


def test_names_that_are_no_algorithm_are_measured_again():
    write([entry("forward", "fastest"), entry("grad_input", "implicit_gemm"), entry("grad_weight", "gemm")])
    d2lfast.backends.conv2d.autotune = True
    assert not any(name.endswith("(autotuned)") for name in explained().values())
    step(*tensors())
    assert set(entries().values()) <= CANDIDATES
    assert all(name.endswith("(autotuned)") for name in explained().values())


@pytest.mark.parametrize("where", ["cache", "folder", "lock"])
def test_an_unwritable_folder_costs_one_warning(where, cache, caplog):
    path = _tuning.tuning_file()
    if where == "cache":
        cache.write_text("")
    elif where == "folder":
        path.mkdir(parents=True)
    else:
        path.with_suffix(".lock").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "d2lfast"):
        d2lfast.backends.conv2d.autotune = True
        found = step(*tensors())
    for ours, exact in zip(found, step(*tensors(), torch.nn.functional.conv2d)):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-3)
    assert all(name.endswith("(autotuned)") for name in explained().values())
    kinds = [record.args[1] for record in caplog.records]
    assert "written" in kinds
    assert len(kinds) == len(set(kinds))


WORKER = """
import sys, torch, d2lfast
from d2lfast.nn import functional as F
assert d2lfast.backends.conv2d.autotune
torch.set_num_threads(1)
worker = int(sys.argv[1])
sys.stdin.read()
for i in range(12):
    x, w = torch.randn(1, 2, 6 + worker, 6 + i), torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(F.conv2d(x, w), torch.conv2d(x, w), rtol=1e-4, atol=1e-4)
"""


def run(*arguments, environment=None, **options):
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        env={**os.environ, "D2LFAST_AUTOTUNE": "1", **(environment or {})},
        cwd=Path(d2lfast.__file__).parents[1], text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        **options,
    )  # fmt: skip


def test_concurrent_processes_lose_nothing():
    workers = [run(WORKER, str(i), stdin=subprocess.PIPE) for i in range(4)]
    for worker in workers:
        worker.stdin.close()
        worker.stdin = None
    results = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, results
    assert [error for _, error in results if "autotuned" in error] == []
    sizes = {key[7:9] for key in entries()}
    assert sizes == {(6 + worker, 6 + i) for worker in range(4) for i in range(12)}
    # No temporary file is left behind.
    names = {path.name for path in _tuning.tuning_file().parent.iterdir()}
    assert names == {_tuning.tuning_file().name, _tuning.tuning_file().with_suffix(".lock").name}


@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("0", "False"), ("", "False")])
def test_switch(value, expected):
    process = run(
        "import d2lfast; print(d2lfast.backends.conv2d.autotune)", environment={"D2LFAST_AUTOTUNE": value}
    )
    out, error = process.communicate(timeout=240)
    assert out.strip() == expected, error


def test_findings_of_other_threads():
    """Backward passes run in a thread of autograd, whose findings count too; two at a time do not hang."""
    import threading

    d2lfast.backends.conv2d.autotune = True
    threads = [threading.Thread(target=step, args=tensors(seed=i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert len(entries()) == 3
