"""`d2lfast train`, `translate`, `generate` and `show` on small data."""

import copy
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from d2lfast.commands import app
from d2lfast.inference.saved import load_saved
from d2lfast.models.registry import NETWORKS
from d2lfast.training import train, twins
from d2lfast.training.workload import workload

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
from test_data import contents, write

TEXT = "the time traveller for so it will be convenient to speak of him was expounding " * 6
PAIRS = "Go.\tVa !\nHi.\tSalut !\nRun!\tCours !\nI lost.\tJ'ai perdu.\n" * 4


@pytest.fixture
def data(tmp_path, monkeypatch):
    write(tmp_path / "fashion-mnist", contents(train=40, test=20))
    (tmp_path / "timemachine.txt").write_text(TEXT)
    (tmp_path / "fra.txt").write_text(PAIRS)
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "French.txt").write_text("Émile\nBélanger\nRoy\n" * 4, encoding="utf-8")
    (tmp_path / "names" / "Greek.txt").write_text("Pappas\nXenos\n" * 4)
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    lines = [",".join([*(f"{x:.4f}" for x in row), str(int(sum(row) > 0))]) for row in rows.tolist()]
    (tmp_path / "diabetes.csv").write_text("\n".join(lines))
    monkeypatch.setenv("D2LFAST_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


# Those with large images are trained in test_workloads_of_large_images alone, without the command.
SMALL = [name for name, entry in NETWORKS.items() if not entry.resize or entry.resize == 28]


@pytest.mark.parametrize("name", [name for name in SMALL if name != "resnet18-small"])
def test_every_small_network_trains(data, name):
    text = good("train", name, "--epochs", 1, "--batch-size", 20, "--out", "out", "--threads", 1)
    assert "/s (median of the epochs)" in text
    assert {path.suffix for path in (data / "out").iterdir() if path.stem == name} == {".pt", ".csv", ".png"}
    saved = load_saved(data / "out" / f"{name}.pt")
    assert saved.name == name
    assert not saved.net.training


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SMALL])
def test_workloads_of_large_images(data, name):
    work = workload(name, batch_size=2)
    X, y = next(iter(work.data.train_dataloader()))
    size = NETWORKS[name].resize
    assert X.shape == (2, 1, size, size)
    assert y.shape == (2,)
    assert work.epochs == 10
    assert f"resized to {size}x{size}" in work.source


@pytest.mark.parametrize(
    ("name", "size"),
    [("lenet", None), ("bn-lenet", None), ("resnet18", 32), ("densenet", 32), ("names", None)],
)
def test_twins_begin_alike_and_see_the_same_batches(data, name, size):
    work = workload(name, batch_size=10, resize=size)
    pair = twins(work.module, work.data, max_epochs=2, seed=3)
    states = [trainer.model.state_dict() for trainer in pair]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(*values) for values in zip(*(state.values() for state in states)))
    seen = []
    for trainer in pair:
        batches, prepare = [], trainer.prepare_batch
        trainer.prepare_batch = lambda batch, seen=batches, f=prepare: seen.append(batch) or f(batch)
        seen.append(batches)
    train(pair)
    assert len(seen[0]) == len(seen[1]) > 2 * pair[0].num_train_batches
    for batches in zip(*seen):
        assert all(torch.equal(*tensors) for tensors in zip(*batches, strict=True))
    order = [torch.cat([batch[-1] for batch in seen[0][start:][:2]]) for start in (0, len(seen[0]) // 2)]
    assert not torch.equal(*order)


def test_a_network_with_its_loss_can_be_copied(data):
    module = workload("softmax").module(torch.nn)
    copied = copy.deepcopy(module)
    X, y = torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2])
    assert torch.equal(copied.loss(copied(X), y), module.loss(module(X), y))
    assert copied.net is not module.net


def test_list(data):
    assert set(good("train", "list").split()) == {*NETWORKS, "rnn-lm"}


class TestLanguage:
    def test_twins_agree_and_the_prefix_is_continued(self, data):
        options = (
            "--cell",
            "gru",
            "--layers",
            2,
            "--hidden",
            8,
            "--epochs",
            2,
            "--batch-size",
            64,
            "--threads",
            1,
        )
        text = good("train", "rnn-lm", *options, "--compare", "--prefix", "The Time")
        assert float(re.search(r"curves: (\S+) in training", text)[1]) < 1e-4
        assert "perplexity" in text
        assert re.search(r"Tokens/s in training .*: d2lfast [\d,]+, torch [\d,]+; speed-up", text)
        lines = [
            line.split(": ")[1] for line in text.splitlines() if line.startswith(("d2lfast: ", "torch: "))
        ]
        assert lines[0] == lines[1]
        assert lines[0].startswith("the time")
        assert len(lines[0]) == 58
        again = good("generate", "--model", "rnn-lm-gru-2.pt", "--prefix", "The Time", "--length", 50)
        assert again.strip("\n") == lines[0]

    @pytest.mark.parametrize("prefix", ["王", "123"])
    def test_a_prefix_without_letters(self, data, prefix):
        good("train", "rnn", "--epochs", 1, "--batch-size", 64)
        result = run("generate", "--model", "rnn.pt", "--prefix", prefix)
        assert result.exit_code == 1
        assert result.output == f"the prefix {prefix!r} has no letter from a to z, all that the model knows\n"

    def test_an_empty_text_is_named(self, data):
        (data / "timemachine.txt").write_text(" \n")
        result = run("train", "rnn-lm")
        assert result.exit_code == 1
        assert result.output == f"{data / 'timemachine.txt'} is empty\n"


class TestNames:
    def test_train_predict_and_confusion(self, data):
        options = ("--hidden", 8, "--layers", 1, "--bidirectional", "--epochs", 3, "--predict", "Bélanger")
        text = good("train", "names", *options)
        assert "20 names in 2 languages, 16 for training" in text
        assert re.search(r"Validation accuracy: [01]\.\d+\.", text)
        assert re.search(r"d2lfast: Bélanger: (French|Greek) \d\.\d\d, ", text)
        assert (data / "names-confusion.png").read_bytes().startswith(b"\x89PNG")
        # Nothing is left to train: the saved model answers.
        more = good("train", "names", *options, "--resume", "--predict", "Pappas")
        assert "Resumed after epoch 3" in more
        assert text.splitlines()[-1] in more

    def test_a_name_without_letters(self, data):
        result = run("train", "names", "--predict", "王")
        assert result.exit_code == 1
        assert result.output.startswith("'王' has no Latin letters")

    def test_an_empty_file(self, data):
        (data / "names" / "Greek.txt").write_text("")
        result = run("train", "names")
        assert result.exit_code == 1
        assert result.output == f"{data / 'names' / 'Greek.txt'} is empty\n"


class TestTranslation:
    @pytest.fixture
    def model(self, data):
        text = good("train", "seq2seq", "--epochs", 1, "--batch-size", 8)
        assert text.count("BLEU") == 4
        return data / "seq2seq.pt"

    def test_translates(self, model):
        assert good("translate", "go .", "--beam", 2).endswith("\n")
        result = run("translate", "Go frobnicate.")
        assert result.exit_code == 0
        assert "never seen: frobnicate" in result.output

    def test_bad_use(self, model):
        for arguments, message in (
            (("translate", " "), "nothing to translate"),
            (
                ("translate", "go .", "--model", "absent.pt"),
                "There is no model absent.pt; `d2lfast train seq2seq`",
            ),
            (
                ("generate", "--model", "seq2seq.pt"),
                "seq2seq.pt holds seq2seq, which is trained on translation",
            ),
        ):
            result = run(*arguments)
            assert result.exit_code == 1
            assert message in result.output
        model.write_bytes(b"no")
        result = run("translate", "go .")
        assert result.exit_code == 1
        assert "is no checkpoint" in result.output


class TestShow:
    def test_pictures(self, data):
        good("train", "lenet", "--epochs", 1, "--out", "out")
        text = good("show", "lenet", "--out", "out", "--image", 3)
        assert text.count(".png") == 3
        for kind in ("predictions", "filters", "features"):
            assert (data / "out" / f"lenet-{kind}.png").read_bytes().startswith(b"\x89PNG")
        result = run("show", "lenet", "--out", "out", "--image", 20)
        assert result.exit_code == 1
        assert "the last one has the number 19" in result.output

    def test_a_network_without_convolutions(self, data):
        good("train", "softmax", "--epochs", 1)
        assert "Only predictions: the network has no convolution" in good("show", "softmax")

    def test_another_network(self, data):
        good("train", "softmax", "--epochs", 1)
        result = run("show", "lenet", "--weights", "softmax.pt")
        assert result.exit_code == 1
        assert "holds softmax, not lenet" in result.output


def test_resume(data):
    good("train", "softmax", "--epochs", 2)
    text = good("train", "softmax", "--epochs", 4, "--resume")
    assert "Resumed after epoch 2" in text
    whole = good("train", "softmax", "--epochs", 4, "--out", "whole")
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [line.split() for line in whole.splitlines() if line.strip()[:1].isdigit()]


def test_resize(data):
    text = good("train", "regnetx32", "--epochs", 1, "--batch-size", 20, "--resize", 32, "--threads", 2)
    assert "resized to 32x32" in text
    assert load_saved(data / "regnetx32.pt").net(torch.rand(1, 1, 32, 32)).shape == (1, 10)
    work = workload("alexnet", batch_size=2, resize=72)
    assert work.sizes["image_size"] == 72
    assert next(iter(work.data.get_dataloader(True)))[0].shape[-1] == 72
    result = run("train", "rnn", "--resize", 32)
    assert result.exit_code == 1
    assert "rnn does not take images" in result.output


def test_amp_channels_last_and_folder(data, monkeypatch):
    monkeypatch.delenv("D2LFAST_DATA")
    good("train", "lenet", "--epochs", 1, "--amp", "--channels-last", "--data", data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnn-lm", "--cell", "cnn"], "--cell must be one of"),
        (["lenet", "--cell", "gru"], "--cell is for rnn-lm"),
        (["lenet", "--layers", "2"], "--layers is for"),
        (["lenet", "--hidden", "2"], "--hidden is for"),
        (["rnn-lm", "--bidirectional"], "--bidirectional is for names"),
        (["resnet19"], "perhaps resnet18"),
    ],
)
def test_wrong_use(data, arguments, message):
    result = run("train", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_folder_that_cannot_be_made(data):
    (data / "file").write_text("")
    result = run("train", "lenet", "--out", data / "file" / "out")
    assert result.exit_code == 1
    assert result.output.startswith(f"Nothing can be written to {data / 'file' / 'out'}")


def test_ctrl_c_keeps_whole_epochs(data, monkeypatch):
    from d2lfast.training import Trainer

    fit, calls = Trainer.fit_epoch, []

    def interrupted(self):
        calls.append(self.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        fit(self)

    monkeypatch.setattr(Trainer, "fit_epoch", interrupted)
    text = good("train", "softmax", "--epochs", 9, "--compare")
    assert "Stopped after" in text
    assert "speed-up" in text
    monkeypatch.setattr(Trainer, "fit_epoch", fit)
    assert "Resumed after epoch" in good("train", "softmax", "--epochs", 3, "--resume")


def test_nothing_is_left_beside_the_files(data):
    good("train", "softmax", "--epochs", 1, "--out", "out")
    assert sorted(os.listdir(data / "out")) == ["softmax.csv", "softmax.png", "softmax.pt"]
