"""Measured algorithms of convolutions on the emulated GPU."""

import json

import pytest
import torch
from cuda.recorded import LAYOUTS, Launches, gpu

import d2lfast
from d2lfast import _extension, _tuning
from d2lfast.nn import functional as F

pytestmark = gpu
SHAPE, WEIGHT = (2, 16, 9, 9), (16, 16, 3, 3)


@pytest.fixture(autouse=True)
def autotune(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_tuning, "_file", _tuning._File())
    _extension.load().clear_tuning()
    with d2lfast.backends.conv2d.flags(autotune=True):
        yield
    _extension.load().clear_tuning()


def explained(layout=torch.contiguous_format, dtype=torch.float32):
    last = layout is torch.channels_last
    return d2lfast.explain("conv2d", SHAPE, WEIGHT, padding=1, dtype=dtype, channels_last=last, device="cuda")


def tensors(layout=torch.contiguous_format, dtype=torch.float32):
    leaves = [torch.randn(shape, dtype=dtype) for shape in (SHAPE, WEIGHT, (16,))]
    leaves[0] = leaves[0].to(memory_format=layout)
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_pass_is_measured_once(layout, dtype):
    """Every algorithm runs in the first call, one alone in the next, and the results are torch's."""
    leaves = tensors(layout, dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = torch.nn.functional.conv2d(*exact, padding=1)
    theirs = torch.autograd.grad(wanted.sum(), exact)
    launches, results = [], []
    for _ in range(2):
        with Launches() as made:
            output = F.conv2d(*leaves, padding=1)
            results.append([output, *torch.autograd.grad(output.sum(), leaves)])
        launches.append(made)
    kinds = [{kernel for *_, kernel in made} for made in launches]
    families = (
        "Conv2dDirectParams",
        "Conv2dImplicitParams",
        "Conv2dWeightParams",
        "Conv2dImplicitWeightParams",
    )
    for family in (*families, *(["Conv2dWinogradParams"] if dtype == torch.float32 else [])):
        assert any(family in kind for kind in kinds[0]), family
    assert len(launches[1]) < len(launches[0])
    names = explained(layout, dtype)
    assert all(name.endswith(" (autotuned)") for name in names.values())
    for result in results:
        for mine, reference in zip(result, (wanted, *theirs), strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            assert (mine.double() - reference).norm() <= tolerance * reference.norm()


def test_the_findings_are_those_of_the_gpu():
    """The CPU's table, and another model of GPU, have none of them."""
    F.conv2d(*tensors(), padding=1)
    rows = json.loads(_tuning.tuning_file().read_text())["algorithms"]
    fields = [dict(zip((*_tuning.FIELDS, "algorithm"), row)) for row in rows]
    assert [field["pass"] for field in fields] == [0]
    assert fields[0]["cuda"] > 1
    assert fields[0]["threads"] == 1
    assert explained()["forward"] == f"{fields[0]['algorithm']} (autotuned)"
    assert "autotuned" not in d2lfast.explain("conv2d", SHAPE, WEIGHT, padding=1)["forward"]


def test_nothing_is_measured_in_a_capture():
    leaves = [leaf.detach() for leaf in tensors()]
    with Launches("capture"):
        F.conv2d(*leaves, padding=1)
    assert "autotuned" not in explained()["forward"]
    F.conv2d(*leaves, padding=1)
    chosen = explained()["forward"]
    assert "autotuned" in chosen
    with Launches("capture") as captured:
        F.conv2d(*leaves, padding=1)
    with Launches() as made:
        F.conv2d(*leaves, padding=1)
    assert [kernel for *_, kernel in captured] == [kernel for *_, kernel in made]
