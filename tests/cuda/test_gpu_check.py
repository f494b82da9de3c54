"""`make gpu-check` and the benchmark behind it, as far as they go without a device."""

import csv
import subprocess
import sys
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


def test_steps(tool, capfd):
    python = sys.executable
    passes = tool.Step("passes", [python, "-c", "import os; assert os.environ['X'] == '1'"], 60, {"X": "1"})
    fails = tool.Step("fails", [python, "-c", "raise SystemExit(3)"], 60)
    hangs = tool.Step("hangs", [python, "-c", "import time; time.sleep(60)"], 1)
    lacks = tool.Step("lacks", [python], 60, tool="no-such-program")
    assert tool.run(passes, 60)[0] == "passed"
    assert tool.run(fails, 60)[0] == "failed: exit status 3"
    assert tool.run(hangs, 60)[0] == "failed: more than 1 s"
    assert tool.run(lacks, 60)[0] == "not run: no no-such-program"
    assert tool.run(passes, 1)[0] == "not run: no time left"


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
