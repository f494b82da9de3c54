"""The extension's at::parallel_for runs in torch's threads (without -fopenmp it would be a serial loop)."""

import os
import pathlib
import subprocess
import sys

import pytest

from d2lfast import _extension

# CPU time of each thread of the process, by the kernel's account, before and after a second of work.
PROGRAM = """
import os, sys, time, torch, d2lfast
torch.set_num_threads(int(sys.argv[1]))
x = torch.randn(8, 16, 256, 256)
w = torch.randn(16, 16, 3, 3)
layers = {
    "conv2d": lambda: d2lfast.nn.functional.conv2d(x, w, padding=1),
    "max_pool2d": lambda: d2lfast.nn.functional.max_pool2d(x, 3, 1),
    "batch_norm": lambda: d2lfast.nn.functional.batch_norm(x, None, None, training=True),
}
def seconds():
    ticks = {}
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/schedstat") as f:
            ticks[thread] = int(f.read().split()[0]) / 1e9
    return ticks
with d2lfast.conv2d_algorithm("direct"), torch.no_grad():
    layer = layers[sys.argv[2]]
    layer()
    before, end, calls = seconds(), time.monotonic() + 1, 0
    while time.monotonic() < end or calls < 3:
        layer()
        calls += 1
    after = seconds()
print(sorted((after[t] - before.get(t, 0) for t in after), reverse=True))
"""


def shares(layer, threads):
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    root = str(pathlib.Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads), layer],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    times = [float(x) for x in result.stdout.strip().strip("[]").split(",")]
    return [x / sum(times) for x in times]


def test_extension_was_built_with_openmp():
    assert _extension.load().has_openmp


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's account of threads")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
@pytest.mark.parametrize("layer", ["conv2d", "max_pool2d", "batch_norm"])
def test_two_threads_share_the_work(layer):
    """CPU time, not wall time: a busy machine makes both slower, but does not move the work."""
    alone = shares(layer, 1)
    assert alone[0] > 0.9, alone
    both = shares(layer, 2)
    assert both[1] > 0.3, both
    assert sum(both[:2]) > 0.95, both
