import gzip
import os
import re
import subprocess
import sys
import types

import pytest
import torch
from typer.testing import CliRunner

import d2lfast
from d2lfast import selftest
from d2lfast.commands import app
from d2lfast.selftest import Row

sys.path.insert(0, os.path.dirname(__file__))
from test_data import contents, write


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path, monkeypatch):
    write(tmp_path / "fashion-mnist", contents(train=90, test=30))
    monkeypatch.setenv("D2LFAST_DATA", str(tmp_path))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs)


class TestTrain:
    @pytest.mark.parametrize("network", ["lenet", "bn-lenet"])
    def test_compare(self, data, network):
        arguments = ["--epochs", "3", "--batch-size", "32", "--compare", "--out", str(data / "out")]
        result = run("train", network, *arguments, "--threads", "1", "--seed", "7", "--lr", "0.25")
        assert result.exit_code == 0, result.output
        text = result.output
        assert f"Fashion-MNIST from {data / 'fashion-mnist'}: 90 training and 30 validation images" in text
        count = {"lenet": "61,706", "bn-lenet": "44,878"}[network]
        assert f"Network: {network}, {count} parameters, Xavier initialisation, seed 7" in text
        assert "1 threads" in text
        assert "3 epochs of 3 batches of 32, SGD with learning rate 0.25" in text
        assert "6/6" in text
        difference = re.search(r"difference of the loss curves: (\S+) in training, (\S+) in validation", text)
        assert float(difference[1]) < 1e-3
        assert float(difference[2]) < 1e-2
        assert re.search(r"Validation accuracy: d2lfast 0\.\d{3}, torch 0\.\d{3}\.", text)
        speeds = re.search(r"d2lfast ([\d,]+), torch ([\d,]+); speed-up ([\d.]+)\.", text)
        ours, native = (float(speeds[i].replace(",", "")) for i in (1, 2))
        assert float(speeds[3]) == pytest.approx(ours / native, rel=0.02)
        picture = data / "out" / f"{network}.png"
        assert str(picture) in text
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_alone(self, data):
        result = run("train", "lenet", "--epochs", "1", "--out", str(data))
        assert result.exit_code == 0, result.output
        assert "Training speed:" in result.output
        assert "speed-up" not in result.output
        assert (data / "lenet.png").exists()

    def test_offline_it_trains_on_digits(self, tmp_path, monkeypatch):
        monkeypatch.delenv("D2LFAST_DATA", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(sys.modules["d2lfast.data.fashion_mnist"], "MIRRORS", ("file:///nowhere/",))
        result = run("train", "lenet", "--epochs", "1", "--batch-size", "500", "--out", str(tmp_path))
        assert result.exit_code == 0, result.output
        assert "handwritten digits (8x8, resized to 28x28) from scikit-learn: 1,500 training" in result.output

    def test_a_damaged_file_is_one_sentence(self, data):
        path = data / "fashion-mnist" / "train-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-7]))
        result = run("train", "lenet")
        assert result.exit_code == 1
        assert result.output.startswith(f"{path} is damaged")
        assert result.output.count("\n") == 1

    def test_a_device_that_is_not_there(self, data):
        result = run("train", "lenet", "--device", "nonsense", "--epochs", "1")
        assert result.exit_code == 1
        assert result.output.startswith("The device nonsense cannot be used")

    @pytest.mark.parametrize(
        "arguments", [["alexnett"], ["lenet", "--epochs", "0"], ["lenet", "--lr", "-1"], [], ["lenet", "--x"]]
    )
    def test_wrong_use(self, data, arguments):
        assert run("train", *arguments).exit_code == 2

    def test_without_matplotlib_it_says_so_before_training(self, data, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        result = run("train", "lenet")
        assert result.exit_code == 1
        assert result.output == "Drawing the curves needs matplotlib: pip install 'd2lfast[plot]'\n"


def test_info():
    result = run("info")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0]: line for line in result.output.splitlines()}
    assert d2lfast.__version__ in rows["d2lfast"]
    assert torch.__version__ in rows["torch"]
    assert re.search(r"(baseline|avx2|avx512) \(the processor has", rows["instruction set"])
    assert str(torch.get_num_threads()) in rows["threads"]
    assert {"OpenMP", "CUDA", "CUDA architectures", "compiler", "build flags"} <= rows.keys()
    assert "-fvisibility=hidden" in result.output


class TestSelftest:
    ROWS = (
        Row("conv2d", "cpu", "float32", "ok", "", 8, 1e-7, 2e-7, 2e-5),
        Row("conv2d", "cuda", "", "skipped", "not built for CUDA"),
    )

    @pytest.mark.parametrize(
        ("more", "code", "last"),
        [
            ((), 0, "All is well"),
            (
                (Row("gru_cell", "cpu", "float64", "failed", "differs", 2, 1.0, 2.0, 1e-12),),
                1,
                "1 of 3 checks failed.",
            ),
        ],
    )
    def test_prints_a_table_and_sets_the_exit_code(self, monkeypatch, more, code, last):
        monkeypatch.setattr(
            sys.modules["d2lfast.commands.selftest"], "run_selftest", lambda: [*self.ROWS, *more]
        )
        result = run("selftest")
        assert result.exit_code == code
        lines = result.output.splitlines()
        assert lines[0].split() == [
            "operator",
            "device",
            "dtype",
            "cases",
            "forward",
            "gradient",
            "allowed",
            "result",
        ]
        assert lines[1].split() == ["conv2d", "cpu", "float32", "8", "1.0e-07", "2.0e-07", "2e-05", "ok"]
        assert "conv2d cuda: skipped: not built for CUDA" in lines
        assert lines[-1].startswith(last)

    def test_passes_here(self):
        result = run("selftest")
        assert result.exit_code == 0, result.output
        assert all(name in result.output for name in selftest.registered_operators())


class TestBench:
    def test_hands_over(self, monkeypatch):
        calls = []
        bench = types.SimpleNamespace(app=lambda **kwargs: calls.append(kwargs))
        monkeypatch.setitem(sys.modules, "d2lfast.bench", bench)
        assert run("bench", "kernels", "--filter", "conv", "--json").exit_code == 0
        assert run("bench", "--help").exit_code == 0
        assert calls == [
            {"args": ["kernels", "--filter", "conv", "--json"], "prog_name": "d2lfast bench"},
            {"args": ["--help"], "prog_name": "d2lfast bench"},
        ]

    def test_help(self):
        result = run("bench", "--help")
        assert result.exit_code == 0, result.output
        assert "kernels" in result.output


class TestEntry:
    def test_module_and_function(self):
        for code in (
            "import runpy; runpy.run_module('d2lfast', run_name='__main__')",
            "from d2lfast.cli import main; main()",
        ):
            done = python(f"import sys; sys.argv = ['d2lfast', '--help']; {code}")
            assert done.returncode == 0, done.stderr
            assert all(name in done.stdout for name in ("train", "info", "selftest", "bench"))

    @pytest.mark.parametrize("name", ["typer", "rich"])
    def test_a_missing_extra_is_one_sentence(self, name):
        code = f"import sys; sys.modules['{name}'] = None; from d2lfast.cli import main; main()"
        done = python(code)
        assert done.returncode == 1
        assert done.stderr == f"The command line needs {name}: pip install 'd2lfast[cli]'\n"

    def test_the_package_itself_imports_none_of_the_extras(self):
        code = (
            "import sys, d2lfast, d2lfast.data, d2lfast.training, d2lfast.selftest\n"
            "found = {'typer', 'rich', 'matplotlib', 'sklearn', 'pytest'} & set(sys.modules)\n"
            "assert not found, found"
        )
        done = python(code)
        assert done.returncode == 0, done.stderr

    def test_starting_up_loads_no_benchmarks_nor_matplotlib(self):
        code = (
            "import sys, d2lfast.commands\n"
            "found = {'matplotlib', 'sklearn', 'd2lfast.training.plot'} & set(sys.modules)\n"
            "assert not found, found"
        )
        done = python(code)
        assert done.returncode == 0, done.stderr
