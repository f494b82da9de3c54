import tarfile
import zipfile

import pytest
import torch
from torch import nn

from d2lfast import book as d2l


def test_tensor_names():
    x = torch.arange(6.0).reshape(2, 3)
    assert d2l.numpy(x.requires_grad_()).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert d2l.size(x) == 6
    assert d2l.reshape(x, (3, 2)).shape == (3, 2)
    assert torch.equal(d2l.transpose(x), x.t())
    assert d2l.reduce_sum(x, 0).tolist() == [3, 5, 7]
    assert d2l.reduce_mean(x).item() == 2.5
    assert d2l.argmax(x, axis=1).tolist() == [2, 2]
    assert d2l.astype(x, torch.int32).dtype == d2l.int32
    assert d2l.expand_dims(x, 0).shape == (1, 2, 3)
    assert d2l.swapaxes(x, 0, 1).shape == (3, 2)
    assert d2l.repeat(x, 2, 1).shape == (4, 3)
    assert d2l.concat((x, x), 1).shape == (2, 6)
    assert d2l.to(x, "cpu") is x


def test_devices():
    assert d2l.cpu() == torch.device("cpu")
    assert d2l.gpu(1) == torch.device("cuda:1")
    if d2l.num_gpus() == 0:
        assert d2l.try_gpu() == d2l.cpu()
        assert d2l.try_all_gpus() == [d2l.cpu()]


def test_timer_and_accumulator(capsys):
    timer = d2l.Timer()
    timer.stop()
    timer.start()
    timer.stop()
    assert timer.sum() == pytest.approx(timer.cumsum()[-1])
    assert timer.avg() == pytest.approx(timer.sum() / 2)
    sums = d2l.Accumulator(2)
    sums.add(1, torch.tensor(2))
    sums.add(1, 2)
    assert (sums[0], sums[1]) == (2, 4)
    sums.reset()
    assert sums[1] == 0
    with d2l.Benchmark("work"):
        pass
    assert capsys.readouterr().out.startswith("work: 0.0")


def test_checks():
    d2l.check_len([1, 2], 2)
    d2l.check_shape(torch.ones(2, 3), (2, 3))
    with pytest.raises(AssertionError, match="length 1"):
        d2l.check_len([1], 2)
    with pytest.raises(AssertionError, match="shape"):
        d2l.check_shape(torch.ones(2), (3,))


def test_old_linear_regression():
    w, b = torch.zeros(2, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    X, y = d2l.synthetic_data(torch.tensor([2.0, -3.4]), 4.2, 400)
    for _ in range(3):
        for Xb, yb in d2l.load_array((X, y), 10):
            d2l.squared_loss(d2l.linreg(Xb, w, b), yb).sum().backward()
            d2l.sgd([w, b], 0.05, 10)
    torch.testing.assert_close(w.detach().flatten(), torch.tensor([2.0, -3.4]), atol=0.05, rtol=0)
    assert d2l.evaluate_loss(lambda x: d2l.linreg(x, w, b), [(X, y)], d2l.squared_loss) < 0.01
    assert d2l.accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])) == 1
    assert d2l.get_fashion_mnist_labels([0, 9]) == ["t-shirt", "ankle boot"]


def test_grad_clipping():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.full((2, 2), 3.0)
    d2l.grad_clipping(layer, 1)
    assert layer.weight.grad.norm().item() == pytest.approx(1, rel=1e-4)


class TestPlots:
    @pytest.fixture(autouse=True)
    def _agg(self):
        import matplotlib

        matplotlib.use("Agg")
        yield
        d2l.plt.close("all")

    @pytest.mark.parametrize(
        ("arguments", "lines"),
        [
            (([1, 2, 3],), 1),
            ((torch.arange(3), [torch.ones(3), torch.zeros(3)]), 2),
            (([[1, 2], [3, 4]], [[1, 2], [2, 1]]), 2),
            (([torch.arange(3), torch.arange(2)], [torch.arange(3), torch.arange(2)]), 2),
        ],
    )
    def test_plot(self, arguments, lines):
        axes = d2l.plot(
            *arguments, xlabel="x", ylabel="y", legend=["a", "b"][:lines], xlim=[0, 3], yscale="linear"
        )
        assert len(axes.lines) == lines
        assert axes.get_xlabel() == "x"

    def test_histogram(self):
        axes = d2l.show_list_len_pair_hist(["a", "b"], "length", "count", [[1], [1, 2]], [[1, 2, 3]])
        assert axes.get_ylabel() == "count"

    def test_animator_of_one_curve(self):
        animator = d2l.Animator("epoch", xlim=[0, 2])
        for x in range(3):
            animator.add(x, torch.tensor(float(x)))
        assert animator.Y == [[0, 1, 2]]
        assert len(animator.figure.axes[0].lines) == 1


class TestHub:
    def test_download_and_extract(self, tmp_path):
        source = tmp_path / "source"
        source.mkdir()
        with zipfile.ZipFile(source / "things.zip", "w") as archive:
            archive.writestr("things/a.txt", "a")
        import hashlib

        digest = hashlib.sha1((source / "things.zip").read_bytes()).hexdigest()
        path = d2l.download((source / "things.zip").as_uri(), tmp_path / "data", digest)
        assert path == str(tmp_path / "data" / "things.zip")
        d2l.extract(path)
        assert (tmp_path / "data" / "things" / "a.txt").read_text() == "a"
        with pytest.raises(OSError, match=r"other\.zip cannot be downloaded; put it there by hand"):
            d2l.download((source / "other.zip").as_uri(), tmp_path / "data")
        with pytest.raises(ValueError, match="neither an address nor one of"):
            d2l.download("nothing")

    def test_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "src").mkdir()
        with tarfile.open(tmp_path / "src" / "set.tar.gz", "w:gz") as tar:
            tar.add(__file__, arcname="set/file.py")
        import hashlib

        content = (tmp_path / "src" / "set.tar.gz").read_bytes()
        url = (tmp_path / "src" / "set.tar.gz").as_uri()
        monkeypatch.setitem(d2l.DATA_HUB, "set", (url, hashlib.sha1(content).hexdigest()))
        folder = d2l.download_extract("set")
        assert folder.endswith("data/set")
        from pathlib import Path

        assert (Path(folder) / "file.py").exists()

    def test_nothing_is_written_outside(self, tmp_path):
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            tar.add(__file__, arcname="../outside.py")
        with pytest.raises(ValueError, match=r"bad\.tar is damaged"):
            d2l.extract(str(tmp_path / "bad.tar"), str(tmp_path / "inside"))
        assert not (tmp_path / "outside.py").exists()
        (tmp_path / "text.zip").write_text("text")
        with pytest.raises(ValueError, match="neither a zip nor a tar"):
            d2l.extract(str(tmp_path / "text.zip"))
