"""Whether and how setup.py builds for CUDA, with stand-ins for torch and the toolkit."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("FORCE_CPU", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH")


@pytest.fixture
def setup_py(monkeypatch):
    """The names of setup.py, run without building anything."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in SWITCHES:
        monkeypatch.setenv(name, "")
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def toolkit(monkeypatch, setup_py):
    """Installs a toolkit of a version, or none."""

    def install(version):
        module = setup_py["cuda_toolkit"]
        found = version and module.Toolkit(Path("/toolkit/bin/nvcc"), Path("/toolkit"), version)
        monkeypatch.setattr(module, "find_toolkit", lambda: found)

    return install


def fake_torch(cuda="13.0", gpu=False, capabilities=((8, 6),)):
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: gpu,
            device_count=lambda: len(capabilities),
            get_device_capability=lambda i: capabilities[i],
        ),
        utils=SimpleNamespace(cpp_extension=SimpleNamespace(CUDA_HOME="/elsewhere")),
    )


def test_force_cpu_wins(setup_py, toolkit, monkeypatch):
    toolkit((13, 0))
    monkeypatch.setenv("FORCE_CPU", "1")
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert setup_py["use_cuda"](fake_torch(gpu=True)) is False


def test_no_gpu_means_cpu(setup_py, toolkit):
    toolkit((13, 0))
    assert setup_py["use_cuda"](fake_torch()) is False


def test_gpu_means_cuda(setup_py, toolkit, monkeypatch):
    toolkit((13, 0))
    torch = fake_torch(gpu=True)
    assert setup_py["use_cuda"](torch) is True
    assert setup_py["os"].environ["TORCH_CUDA_ARCH_LIST"] == "", "torch chooses for the GPUs it sees"
    assert torch.utils.cpp_extension.CUDA_HOME == "/toolkit"


def test_forced_without_cuda_torch(setup_py, toolkit, monkeypatch):
    toolkit((13, 0))
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"^FORCE_CUDA=1, but torch 2.13.0 is a build without CUDA\.$"):
        setup_py["use_cuda"](fake_torch(cuda=None))


def test_gpu_but_torch_without_cuda(setup_py, toolkit):
    toolkit((13, 0))
    assert setup_py["use_cuda"](fake_torch(cuda=None, gpu=True)) is False


def test_forced_without_nvcc(setup_py, toolkit, monkeypatch):
    toolkit(None)
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="no nvcc was found: put it on PATH or set CUDA_HOME"):
        setup_py["use_cuda"](fake_torch())


def test_gpu_without_nvcc_says_so(setup_py, toolkit, capsys):
    toolkit(None)
    assert setup_py["use_cuda"](fake_torch(gpu=True)) is False
    assert "no nvcc was found" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["", "native"])
@pytest.mark.parametrize(
    ("version", "archs"),
    [
        ((12, 6), "8.0;8.6+PTX;9.0a"),
        ((12, 8), "8.0;9.0a;10.0;12.0+PTX"),
        ((13, 0), "8.0;9.0a;10.0;12.0+PTX"),
    ],
)
def test_archs_without_gpu(setup_py, toolkit, monkeypatch, version, archs, given):
    toolkit(version)
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert setup_py["use_cuda"](fake_torch(cuda=f"{version[0]}.{version[1]}")) is True
    assert setup_py["os"].environ["TORCH_CUDA_ARCH_LIST"] == archs


def test_given_archs_stay(setup_py, toolkit, monkeypatch):
    toolkit((13, 0))
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert setup_py["use_cuda"](fake_torch()) is True
    assert setup_py["os"].environ["TORCH_CUDA_ARCH_LIST"] == "8.6"


@pytest.mark.parametrize(
    ("given", "archs", "has"),
    [
        ("9.0", "9.0a", True),
        ("8.0 9.0", "8.0;9.0a", True),
        ("9.0;9.0a", "9.0a", True),
        ("9.0a+PTX", "9.0a+PTX", True),
        ("8.0;9.0+PTX", "8.0;9.0+PTX", False),
        ("9.0a;9.0+PTX", "9.0a;9.0+PTX", False),
    ],
)
def test_code_of_sm90a(setup_py, toolkit, monkeypatch, given, archs, has):
    toolkit((13, 0))
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert setup_py["use_cuda"](fake_torch()) is True
    assert setup_py["os"].environ["TORCH_CUDA_ARCH_LIST"] == archs
    assert setup_py["cuda_toolkit"].has_sm90a(archs) is has


def test_code_of_sm90a_for_a_hopper_gpu(setup_py, toolkit):
    toolkit((13, 0))
    assert setup_py["use_cuda"](fake_torch(gpu=True, capabilities=((9, 0), (8, 0), (9, 0)))) is True
    assert setup_py["os"].environ["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0a"


def test_old_gpu_exits(setup_py, toolkit, monkeypatch):
    toolkit((13, 0))
    torch = fake_torch(gpu=True, capabilities=((9, 0), (7, 5)))
    with pytest.raises(SystemExit, match=r"compute capability below 8\.0, which the kernels need"):
        setup_py["use_cuda"](torch)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert setup_py["use_cuda"](torch) is True


def test_minor_mismatch_prints(setup_py, toolkit, capsys):
    toolkit((13, 1))
    assert setup_py["use_cuda"](fake_torch(gpu=True)) is True
    assert "nvcc 13.1 and torch's CUDA 13.0 differ in the minor version" in capsys.readouterr().out


def test_major_mismatch_exits(setup_py, toolkit):
    toolkit((12, 8))
    with pytest.raises(
        SystemExit, match=r"^nvcc 12.8 cannot build for torch with CUDA 13.0; set FORCE_CPU=1"
    ):
        setup_py["use_cuda"](fake_torch(gpu=True))
