"""Build, check and measure on a machine with a GPU (`make gpu-check`), in less than nine minutes.

Needs torch with CUDA, nvcc and pytest in the interpreter that runs this; no network. `--dry-run` prints the
commands, `--only NAME` runs one step (again).
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 530  # for all steps together


@dataclass
class Step:
    """A command, its environment and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    tool: str | None = None  # program that the step needs

    def __str__(self) -> str:
        settings = "".join(f"{name}={value} " for name, value in self.environment.items())
        return f"{self.name:10} {self.seconds:4} s  {settings}{' '.join(self.command)}"


def steps(python: str, arch: str, parallel: bool, csv: Path) -> list[Step]:
    """The steps in their order; `parallel`: pytest-xdist is installed."""
    jobs = str(min(16, os.cpu_count() or 1))
    pytest = [python, "-m", "pytest"]
    suite = [*pytest, *(["-n", jobs] if parallel else [])]
    on_device = {"D2LFAST_TEST_DEVICE": "cuda"}
    # Of our kernels alone: it takes copies of cuBLAS that write zeros (cp.async) for reads out of bounds.
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"]
    sanitizer += ["--kernel-name", "kns=d2lfast", "--tool"]
    build = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch, "MAX_JOBS": jobs}
    marked = [*pytest, "tests/cuda", "tests/ops", "-m", "sanitizer"]
    modules = ["tests/nn", "tests/models/test_twins.py"]
    return [
        Step("build", [python, "setup.py", "--quiet", "build_ext", "--inplace"], 180, build),
        Step("device", [*pytest, "tests/cuda", "-m", "gpu"], 60),
        Step("operators", [*suite, "tests/ops"], 120, on_device),
        Step("modules", [*suite, *modules], 60, on_device),
        Step("fuzz", [*suite, "tests/fuzz"], 60, on_device),
        Step("benchmark", [python, "-m", "d2lfast.bench.gpu", "--out", str(csv)], 90),
        Step("memcheck", [*sanitizer, "memcheck", *marked], 60, on_device, "compute-sanitizer"),
        Step("racecheck", [*sanitizer, "racecheck", *marked], 60, on_device, "compute-sanitizer"),
    ]


def run(step: Step, seconds: float) -> tuple[str, float]:
    """What became of a step ("passed", or the reason why not) and how long it took."""
    if step.tool is not None and shutil.which(step.tool) is None:
        return f"not run: no {step.tool}", 0.0
    if seconds < 5:
        return "not run: no time left", 0.0
    environment = {**os.environ, **step.environment, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    try:
        code = subprocess.run(
            step.command, cwd=ROOT, env=environment, timeout=min(seconds, step.seconds)
        ).returncode
        result = "passed" if code == 0 else f"failed: exit status {code}"
    except subprocess.TimeoutExpired as error:
        result = f"failed: more than {error.timeout:.0f} s"
    return result, time.monotonic() - start


def table(results: list[tuple[Step, str, float]]) -> str:
    """One line for each step."""
    return "\n".join(f"{step.name:10} {taken:6.1f} s  {result}" for step, result, taken in results)


def device_arch() -> str | None:
    """Compute capability of the device, as torch's build wants it; None without a device."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if every step that could run passed, and the build and the tests ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--only", help="run this step alone")
    options = parser.parse_args(arguments)
    arch = "9.0" if options.dry_run else device_arch()
    if arch is None:
        print("gpu-check: torch sees no CUDA device.")
        return 1
    parallel = not options.dry_run and subprocess.run([sys.executable, "-c", "import xdist"]).returncode == 0
    csv = ROOT / "benchmarks" / "results" / f"cuda-sm{arch.replace('.', '')}.csv"
    chosen = [
        step for step in steps(sys.executable, arch, parallel, csv) if options.only in (None, step.name)
    ]
    if not chosen:
        parser.error(f"no step is called {options.only}")
    if options.dry_run:
        print("\n".join(map(str, chosen)))
        return 0
    deadline = time.monotonic() + SECONDS
    results = []
    for step in chosen:
        print(f"\n== {step}", flush=True)
        result, taken = run(step, deadline - time.monotonic())
        results.append((step, result, taken))
        if step.name == "build" and result != "passed":
            break
    print(f"\n{table(results)}")
    return 0 if all(result == "passed" or "compute-sanitizer" in result for _, result, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
