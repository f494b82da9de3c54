"""`make gpu-check` and the benchmark behind it, as far as they go without a device."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from d2lfast.bench import gpu
from d2lfast.bench.registry import cases

TOOL = Path(__file__).resolve().parents[2] / "build_tools" / "gpu_check.py"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import gpu_check

    return gpu_check


def dry_run(*arguments):
    command = [sys.executable, str(TOOL), "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_dry_run_names_every_step():
    lines = dry_run()
    names = [line.split()[0] for line in lines]
    assert names == [
        "build", "device", "operators", "modules", "fuzz", "benchmark", "memcheck", "racecheck",
    ]  # fmt: skip
    assert "TORCH_CUDA_ARCH_LIST=9.0" in lines[0]
    assert len(dry_run("--only", "fuzz")) == 1
    checked = [word for word in lines[-2].split() if word.startswith("kns=")]
    assert "kns=cross_entropy_cu_" in checked
    assert not any("implicit" in name for name in checked)


def test_steps(tool, tmp_path):
    python = sys.executable
    passes = tool.Step("passes", [python, "-c", "import os; assert os.environ['X'] == '1'"], 60, {"X": "1"})
    fails = tool.Step("fails", [python, "-c", "raise SystemExit(3)"], 60)
    lacks = tool.Step("lacks", ["no-such-program"], 60)
    with (tmp_path / "log").open("wb") as log:
        assert tool.run(passes, 60, log)[0] == "passed"
        assert tool.run(fails, 60, log)[0] == "failed: exit status 3"
        assert tool.run(lacks, 60, log)[0] == "not run: no no-such-program"
        assert tool.run(passes, 1, log)[0] == "not run: no time left"


def test_a_step_that_hangs_reports_and_leaves_no_process(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "GRACE", 5)
    code = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(600)
"""
    path = tmp_path / "log"
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    try:
        with path.open("wb") as log:
            result, taken = tool.run(tool.Step("hangs", [sys.executable, "-c", code], 2), 60, log)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert result == "failed: more than 2 s"
    assert taken < 20
    first, second = path.read_text().splitlines()
    assert second == "interrupted"
    for _ in range(100):
        state = Path(f"/proc/{first.split()[1]}/stat")
        ended = not state.exists() or state.read_text().split()[2] == "Z"
        if ended:
            break
        time.sleep(0.1)
    assert ended


def test_a_lost_context_ends_the_worker(tmp_path):
    """Not the tests after it, which another worker takes."""
    (tmp_path / "conftest.py").write_text((TOOL.parents[1] / "tests" / "conftest.py").read_text())
    (tmp_path / "test_faults.py").write_text("""
import pytest, torch

@pytest.mark.parametrize("i", range(6))
def test_fault(i, monkeypatch):
    def synchronize():
        if i == 2:
            raise torch.AcceleratorError("an illegal memory access was encountered")
    torch.cuda.synchronize, torch.cuda.is_initialized = synchronize, lambda: True
""")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1", str(tmp_path)]
    environment = {**os.environ, "D2LFAST_TEST_DEVICE": "cpu"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 failed, 6 passed, 1 error" in run.stdout, run.stdout
    assert "worker 'gw0' crashed while running 'test_faults.py::test_fault[2]'" in run.stdout
    assert "AcceleratorError: an illegal memory access" in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_says_that_there_is_no_device():
    run = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "no CUDA device" in run.stdout


def test_rows_and_file(tmp_path):
    """With a clock that calls everything once and says that ours takes half of native's time."""

    def milliseconds(calls):
        for call in calls:
            call()
        return [2.0, 1.0] * (len(calls) // 2)

    case = cases("pool2d")[-1]
    rows = list(gpu.rows_of(case, torch.float32, "cpu", milliseconds))
    assert len(rows) == 2 * len(case.layouts)
    assert all(row.speedup_same_layout == 2 and row.floor_ms > 0 for row in rows)
    rows += gpu.network_rows(
        "lenet", "cpu", milliseconds=lambda steps: [6.0, 3.0, 2.0], graph=lambda *_: None
    )
    assert [(row.algorithm, row.speedup_best_native) for row in rows[-2:]] == [
        ("launched", 2),
        ("cuda_graph", 3),
    ]
    path = tmp_path / "folder" / "table.csv"
    gpu.write(path, rows, {"device": "none"})
    first, *table = path.read_text().splitlines()
    assert first == "# device: none"
    assert [row["case"] for row in csv.DictReader(table)] == [row.case for row in rows]
