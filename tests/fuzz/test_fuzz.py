"""Random cases against native PyTorch. A failure prints the line that repeats it.

D2LFAST_FUZZ_CASES: cases for each operator (default 60); D2LFAST_FUZZ_SEED: another set of cases;
D2LFAST_FUZZ_CASE: this one alone.
"""

import os

import pytest

from d2lfast.algorithm import CONV2D_ALGORITHMS
from d2lfast.testing import OPERATORS, check, fuzz_case
from d2lfast.testing.cases import DEVICE

SEED = int(os.environ.get("D2LFAST_FUZZ_SEED", "0"))
CASES = int(os.environ.get("D2LFAST_FUZZ_CASES", "60"))
CASE = os.environ.get("D2LFAST_FUZZ_CASE")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_random_cases(operator):
    for index in range(CASES) if CASE is None else (int(CASE),):
        case = fuzz_case(operator, SEED, index)
        try:
            check(case)
        except Exception as error:
            replay = (
                f"D2LFAST_FUZZ_SEED={SEED} D2LFAST_FUZZ_CASE={index} "
                f"pytest 'tests/fuzz/test_fuzz.py::test_random_cases[{operator}]'"
            )
            raise AssertionError(f"{type(error).__name__}: {error}\n{case}\nreplay: {replay}") from error


def test_cases_are_reproducible_and_varied():
    for operator in OPERATORS:
        cases = [fuzz_case(operator, SEED, index) for index in range(50)]
        assert cases == [fuzz_case(operator, SEED, index) for index in range(50)]
        assert cases != [fuzz_case(operator, SEED + 1, index) for index in range(50)]
        assert len({case.dtype for case in cases}) == 4
        assert len({str(case.shapes) for case in cases}) > 40


@pytest.mark.skipif(DEVICE != "cpu", reason="the names of the CPU's algorithms")
def test_every_convolution_algorithm_is_drawn():
    drawn = [set(), set(), set()]
    for index in range(1000):
        for names, name in zip(drawn, fuzz_case("conv2d", SEED, index).options["algorithm"].split("/")):
            names.add(name)
    for names in drawn:
        assert names == {*CONV2D_ALGORITHMS} - {"implicit_gemm"}
