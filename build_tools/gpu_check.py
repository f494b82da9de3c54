"""Build, check and measure on a machine with a GPU (`make gpu-check`), in less than nine minutes.

Needs torch with CUDA, nvcc and pytest in the interpreter that runs this; no network. `--dry-run` prints the
commands, `--only NAME` runs one step (again), `--out DIR` is for the log and the benchmark's table.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import cuda_toolkit

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 530  # for all steps together
GRACE = 10  # seconds in which a step that is interrupted may still report
SHOWN = 1500  # characters of a step's output, of which the log has all


@dataclass
class Step:
    """A command, its environment and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = "".join(f"{name}={value} " for name, value in self.environment.items())
        return f"{self.name:10} {self.seconds:4} s  {settings}{' '.join(self.command)}"


def compute_sanitizer() -> str:
    """The program on PATH, else the toolkit's."""
    found = shutil.which("compute-sanitizer")
    if found is None and (toolkit := cuda_toolkit.find_toolkit()) is not None:
        found = shutil.which(toolkit.home / "bin" / "compute-sanitizer")
    return found or "compute-sanitizer"


def steps(python: str, arch: str, parallel: bool, csv: Path) -> list[Step]:
    """The steps in their order; `parallel`: pytest-xdist is installed."""
    jobs = str(min(16, os.cpu_count() or 1))
    pytest = [python, "-m", "pytest", "--tb=short"]
    # A kernel that hangs ends its worker, which xdist replaces; a signal would not end the wait for it.
    suite = [*pytest, "-o", "timeout=45", "-o", "timeout_method=thread", *(["-n", jobs] if parallel else [])]
    # cuBLAS refuses torch's deterministic mode without a workspace; inductor would start compilers of its own
    # in every worker.
    on_device = {
        "D2LFAST_TEST_DEVICE": "cuda",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    # Of our kernels alone. memcheck is known to take zeros that cp.async writes for reads out of bounds
    # (cuBLAS release notes): not of implicit_gemm, whose copies of pixels outside have addresses outside.
    sanitizer = [compute_sanitizer(), "--error-exitcode", "9", "--tool"]
    racecheck = [*sanitizer, "racecheck", "--kernel-name", "kns=d2lfast"]
    memcheck = [*sanitizer, "memcheck", "--report-api-errors", "no"]
    for source in sorted(ROOT.glob("csrc/kernels/cuda/*.cu")):
        if not source.stem.startswith("conv2d_implicit"):  # names of kernels hold their file's
            memcheck += ["--kernel-name", f"kns={source.stem}_cu_"]
    build = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch, "MAX_JOBS": jobs}
    # Ends between two tests, since the sanitizer does not pass signals on.
    marked = [*pytest, "-o", "session_timeout=45", "tests/cuda", "tests/ops", "-m", "sanitizer"]
    modules = ["tests/nn", "tests/models/test_twins.py"]
    return [
        Step("build", [python, "setup.py", "--quiet", "build_ext", "--inplace"], 180, build),
        Step("device", [*suite, "tests/cuda", "-m", "gpu"], 60),
        Step("operators", [*suite, "tests/ops"], 150, on_device),
        Step("modules", [*suite, *modules], 60, on_device),
        Step("fuzz", [*suite, "tests/fuzz"], 60, on_device),
        Step("benchmark", [python, "-m", "d2lfast.bench.gpu", "--out", str(csv)], 90),
        Step("memcheck", [*memcheck, *marked], 60, on_device),
        Step("racecheck", [*racecheck, *marked], 60, on_device),
    ]


def stop(process: subprocess.Popen) -> None:
    """Interrupts a step, so that pytest reports what it has seen, and ends whatever it has started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(step: Step, seconds: float, log: BinaryIO) -> tuple[str, float]:
    """What became of a step ("passed", or the reason why not) and how long it took; `log` has its output."""
    if shutil.which(step.command[0]) is None:
        return f"not run: no {step.command[0]}", 0.0
    if seconds < 5:
        return "not run: no time left", 0.0
    # ninja may be beside an interpreter that was called by its path.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, **step.environment, "PYTHONPATH": str(ROOT)}
    allowed = min(seconds, step.seconds)
    # A shell's background jobs ignore interrupts, and so would theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        code = process.wait(allowed)
        result = "passed" if code == 0 else f"failed: exit status {code}"
    except subprocess.TimeoutExpired:
        stop(process)
        result = f"failed: more than {allowed:.0f} s"
    except KeyboardInterrupt:
        stop(process)
        raise
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
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--only", help="run this step alone")
    parser.add_argument("--out", type=Path, help="folder of the log and the table")
    options = parser.parse_args(arguments)
    arch = "9.0" if options.dry_run else device_arch()
    if arch is None:
        print("gpu-check: torch sees no CUDA device.")
        return 1
    parallel = not options.dry_run and subprocess.run([sys.executable, "-c", "import xdist"]).returncode == 0
    folder = (options.out or ROOT / "benchmarks" / "results").resolve()
    csv = folder / f"cuda-sm{arch.replace('.', '')}.csv"
    chosen = [
        step for step in steps(sys.executable, arch, parallel, csv) if options.only in (None, step.name)
    ]
    if not chosen:
        parser.error(f"no step is called {options.only}")
    if options.dry_run:
        print("\n".join(map(str, chosen)))
        return 0
    path = (options.out or ROOT / "build").resolve() / "gpu-check.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = []
    with path.open("ab") as log:
        for step in chosen:
            print(f"\n== {step}", flush=True)
            log.write(f"\n== {step}\n".encode())
            log.flush()
            first = log.tell()
            result, taken = run(step, SECONDS - (time.monotonic() - start), log)
            results.append((step, result, taken))
            output = path.read_bytes()[first:].decode(errors="replace")
            print(f"{output[-SHOWN:]}\n{table(results[-1:])}", flush=True)
            if step.name == "build" and result != "passed":
                break
    print(f"\n{table(results)}\n\nAll output: {path}")
    return 0 if all(result == "passed" or "compute-sanitizer" in result for _, result, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
