"""The kernels of the other instruction sets of this processor: the `isa` tests again, and pairwise."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from d2lfast import _extension
from d2lfast.testing import OPERATORS, fuzz_case, inputs_of, run

TESTS = pathlib.Path(__file__).resolve().parents[1]
ORDER = ("baseline", "avx2", "avx512")
EXTENSION = _extension.load()
# The current set is tested by this very run.
OTHERS = [isa for isa in ORDER[: ORDER.index(EXTENSION.detected_isa()) + 1] if isa != EXTENSION.current_isa()]


def python(isa, *arguments, **variables):
    environment = {**os.environ, "D2LFAST_CPU_ISA": isa, **variables}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )


def test_caps():
    """Both variables cap the instruction set; neither raises it above the processor's."""
    code = "from d2lfast import _extension; print(_extension.load().current_isa())"
    for isa in ORDER:
        expected = ORDER[min(ORDER.index(isa), ORDER.index(EXTENSION.detected_isa()))]
        result = python(isa, "-c", code)
        assert result.stdout.strip() == expected, result.stderr
    assert python("avx512", "-c", code, ATEN_CPU_CAPABILITY="default").stdout.strip() == "baseline"


@pytest.mark.parametrize("isa", OTHERS)
def test_operators(isa):
    if os.environ.get("D2LFAST_CPU_ISA"):
        pytest.skip("D2LFAST_CPU_ISA caps this run: it is itself the run of one instruction set")
    # Its subclasses have the cases of TestConv2d, which may hand them to torch.
    deselect = f"--deselect={TESTS.name}/ops/test_conv2d.py::TestConv2d::"
    result = python(isa, "-m", "pytest", "-m", "isa", deselect, TESTS / "ops", "--tb=short")
    assert result.returncode == 0, result.stdout[-8000:]
    assert " passed" in result.stdout or "[100%]" in result.stdout


CASES = 12


def results_of(path):
    """Called in a subprocess: outputs and gradients of some cases of each operator."""
    results = {}
    for operator, entry in OPERATORS.items():
        for index in range(CASES):
            case = fuzz_case(operator, 1, index)
            if operator == "conv2d":
                case = case.replace(options={**case.options, "algorithm": "direct"})
            # A kink of an activation may tell apart what is almost equal.
            case = case.replace(options={k: v for k, v in case.options.items() if k != "activation"})
            case = case.replace(dtype=torch.float32, dtypes={})
            try:
                result = run(case, entry.ours, inputs_of(case))
            except (RuntimeError, ValueError) as error:
                results[operator, index] = type(error).__name__
            else:
                results[operator, index] = (result.outputs, result.gradients)
    torch.save(results, path)


def test_tables_agree_pairwise(tmp_path):
    """The same results from every table, up to the order of additions."""
    found = {}
    for isa in ORDER[: ORDER.index(EXTENSION.detected_isa()) + 1]:
        path = tmp_path / f"{isa}.pt"
        code = f"import sys; sys.path.insert(0, {str(TESTS / 'system')!r}); import test_isa; "
        result = python(isa, "-c", code + f"test_isa.results_of({str(path)!r})")
        assert result.returncode == 0, result.stderr
        found[isa] = torch.load(path, weights_only=False)
    assert len(found) >= 1
    reference = found.popitem()[1]
    assert sum(not isinstance(value, str) for value in reference.values()) > len(reference) // 2
    for isa, results in found.items():
        for key, value in results.items():
            other = reference[key]
            assert isinstance(value, str) == isinstance(other, str), (isa, key)
            if isinstance(value, str):
                assert value == other
                continue
            # A gradient can be a sum of hundreds of terms.
            for i, (a, b) in enumerate(zip(value[0], other[0], strict=True)):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-4, equal_nan=True), (isa, key, i)
            for name, gradient in value[1].items():
                expected = other[1][name]
                scale = expected.abs().max().clamp(min=1).item() if expected.numel() else 1
                assert torch.allclose(gradient, expected, rtol=0, atol=1e-4 * scale), (isa, key, name)
