import copy
import csv
import pickle
import warnings

import pytest
import torch
from support import Points, data, linear, module
from torch import nn
from torch.nn import functional as F

from d2lfast.data import TensorLoader
from d2lfast.models import bn_lenet
from d2lfast.training import SGD, Classifier, DataModule, Module, ProgressBar, Trainer


class Line(Module):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.LazyLinear(1)

    def loss(self, y_hat, y):
        return F.mse_loss(y_hat, y)


class Scratch(Line):
    def configure_optimizers(self):
        return SGD(self.parameters(), self.lr)


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


@pytest.mark.parametrize("kind", [Line, Scratch])
def test_the_books_program_runs(kind):
    model = kind()
    trainer = Trainer(max_epochs=30)
    trainer.fit(model, Points())
    assert model.net.weight.item() == pytest.approx(2, abs=0.05)
    assert model.net.bias.item() == pytest.approx(-1, abs=0.05)
    assert trainer.epoch == len(trainer.history) == 30
    assert trainer.train_batch_idx == 30 * trainer.num_train_batches == 120
    assert trainer.val_batch_idx == 120
    assert trainer.history[-1].validation["loss"] < 1e-2


def test_an_epoch_is_the_books_loop():
    torch.manual_seed(0)
    given = data(70)
    ours = linear()
    model = copy.deepcopy(ours)
    trainer = Trainer(1, seed=3)
    trainer.fit(ours, given)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
    loss_sum = correct = 0.0
    X, y = given.train.data, given.train.targets
    for part in order.split(32):
        logits = model(X[part])
        loss = F.cross_entropy(logits, y[part])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        loss_sum += loss.item() * len(part)
        correct += (logits.argmax(1) == y[part]).sum().item()
    epoch = trainer.history[0]
    torch.testing.assert_close(weights(ours), weights(model))
    assert epoch.loss == pytest.approx(loss_sum / 70, rel=1e-5)
    assert epoch.accuracy == pytest.approx(correct / 70)
    logits = model(given.val.data)
    assert epoch.validation_loss == pytest.approx(F.cross_entropy(logits, given.val.targets).item(), rel=1e-5)
    accuracy = (logits.argmax(1) == given.val.targets).float().mean().item()
    assert epoch.validation_accuracy == pytest.approx(accuracy)


def test_validation_leaves_statistics_and_weights():
    trainer = Trainer(1)
    trainer.prepare(module(bn_lenet()), data())
    trainer.model.eval()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.validate() == trainer.validate()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_a_seed_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Trainer(1, seed=1).fit(module(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), data())
    model = nn.Linear(784, 10)  # draws from the generator again
    assert not torch.equal(torch.get_rng_state(), before)
    state = torch.get_rng_state()
    Trainer(1, seed=1).fit(module(nn.Sequential(nn.Flatten(), nn.Dropout(), model)), data())
    assert torch.equal(torch.get_rng_state(), state)


class TestClipping:
    def test_bounds_the_norm(self):
        trainer = Trainer(1, gradient_clip_val=0.5)
        model = nn.Linear(3, 4)
        for scale, expected in ((100.0, 0.5), (1e-3, None)):
            model.weight.grad = torch.ones(4, 3) * scale
            model.bias.grad = None
            trainer.clip_gradients(0.5, model)
            norm = model.weight.grad.norm().item()
            assert norm == pytest.approx(expected or scale * 12**0.5, rel=1e-4)

    def test_is_used_in_training(self):
        lr, clip = 1.0, 1e-3
        model = Line(lr)
        trainer = Trainer(1, gradient_clip_val=clip)
        trainer.prepare(model, Points(batch_size=32))
        before = weights(model).clone()
        trainer.run_epoch()
        assert (weights(model) - before).norm().item() == pytest.approx(lr * clip, rel=1e-3)


def dropout_net():
    return module(nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Dropout(), nn.Linear(16, 10)))


class TestCheckpoint:
    def run(self, path, epochs, net=None, **options):
        model = net or dropout_net()
        trainer = Trainer(epochs, seed=5, checkpoint=path, **options)
        trainer.fit(model, data())
        return trainer

    def test_a_resumed_training_equals_one_in_one_go(self, tmp_path):
        torch.manual_seed(1)
        start = dropout_net()
        whole = self.run(tmp_path / "a.pt", 4, copy.deepcopy(start))
        self.run(tmp_path / "b.pt", 2, copy.deepcopy(start))
        resumed = self.run(tmp_path / "b.pt", 4, resume=True)
        assert torch.equal(weights(whole.model), weights(resumed.model))
        assert [e.loss for e in whole.history] == [e.loss for e in resumed.history]
        assert resumed.train_batch_idx == whole.train_batch_idx

    def test_without_resume_it_starts_anew(self, tmp_path):
        self.run(tmp_path / "a.pt", 2)
        assert len(self.run(tmp_path / "a.pt", 1).history) == 1

    def test_a_finished_training_is_left(self, tmp_path):
        first = self.run(tmp_path / "a.pt", 2)
        again = self.run(tmp_path / "a.pt", 2, resume=True)
        assert torch.equal(weights(first.model), weights(again.model))

    def test_an_interruption_while_writing_leaves_the_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a.pt"
        self.run(path, 1)
        before = path.read_bytes()

        def broken(state, where):
            where.write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.run(path, 2)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
    def test_a_damaged_one_is_named(self, tmp_path, content):
        path = tmp_path / "a.pt"
        self.run(path, 1)
        path.write_bytes(path.read_bytes()[:-100] if content is None else content)
        with pytest.raises(ValueError, match=r"a\.pt is no checkpoint"):
            self.run(path, 2, resume=True)

    def test_one_of_another_model_is_named(self, tmp_path):
        self.run(tmp_path / "a.pt", 1)
        with pytest.raises(ValueError, match=r"a\.pt belongs to another model"):
            self.run(tmp_path / "a.pt", 2, linear(), resume=True)

    def test_of_the_books_own_optimizer(self, tmp_path):
        for resume in (False, True):
            Trainer(2, checkpoint=tmp_path / "a.pt", resume=resume).fit(Scratch(), Points())


def test_ctrl_c_keeps_the_model_and_the_last_epoch(tmp_path):
    class Interrupted(DataModule):
        passes = 0

        def train_dataloader(self):
            loader = TensorLoader(*inner.train_dataloader().tensors, batch_size=8)
            outer = self

            class Loader:
                def __len__(self):
                    return len(loader)

                def __iter__(self):
                    outer.passes += 1
                    yield from list(loader)[: 1 if outer.passes == 2 else 4]
                    if outer.passes == 2:
                        raise KeyboardInterrupt

            return Loader()

        def val_dataloader(self):
            return None

    inner = Points()
    model = Line()
    trainer = Trainer(5, checkpoint=tmp_path / "a.pt", log=tmp_path / "log.csv")
    model.net(inner.X)
    with pytest.warns(UserWarning, match=r"stopped after 1 of 5 epochs; the model is kept; .*a\.pt holds"):
        trainer.fit(model, Interrupted())
    assert trainer.interrupted
    assert len(trainer.history) == 1
    assert trainer.train_batch_idx == 5
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert not torch.equal(state["model"]["net.weight"], model.net.weight)


def test_log_and_picture(tmp_path):
    model = linear()
    Trainer(3, log=tmp_path / "log.csv", plot=tmp_path / "curves.png").fit(model, data())
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) == {
        "epoch", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "examples_per_second"
    }  # fmt: skip
    assert float(rows[2]["train_loss"]) == pytest.approx(model.trainer.history[2].loss)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    # Three training batches per epoch and two points, two of validation and one.
    assert [len(points) for points in model.board.data.values()] == [9, 9, 3, 3]


def test_an_epoch_of_one_batch_is_drawn(tmp_path):
    model = linear()
    Trainer(2, plot=tmp_path / "curves.png").fit(model, data(32, 32, 32))
    assert [point.x for point in model.board.data["train_loss"]] == [0, 1]
    assert [point.x for point in model.board.data["val_acc"]] == [1, 2]


def test_bfloat16_and_channels_last():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.out = nn.Linear(4, 10)

        def forward(self, x):
            y = self.conv(x)
            seen.append((y.dtype, y.is_contiguous(memory_format=torch.channels_last)))
            return self.out(y.mean((2, 3)))

    Trainer(1, amp=True, channels_last=True).fit(module(Net()), data())
    assert set(seen) == {(torch.bfloat16, True)}


def test_data_without_validation():
    trainer = Trainer(2)
    trainer.fit(Line(), Points(validation=False))
    assert trainer.num_val_batches == 0
    assert trainer.history[-1].validation == {}


def test_a_model_in_training_can_be_copied_and_pickled(tmp_path):
    model = linear()
    Trainer(1).fit(model, data())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not hasattr(twin, "trainer")
        assert torch.equal(weights(twin), weights(model))


def test_progress_bar():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    bar = ProgressBar(console)
    bar.expect(6, 2)
    with bar:
        Trainer(2, progress=bar, name="ours").fit(linear(), data())
    text = console.file.getvalue()
    assert "2/2" in text
    assert "examples/s" in text
    assert "ours: loss" in text


def test_progress_of_its_own(capsys):
    trainer = Trainer(2, progress=True)
    trainer.fit(linear(), data())
    assert trainer.progress is True
    assert "2/2" in capsys.readouterr().out


def test_num_gpus_without_any_trains_on_the_cpu():
    trainer = Trainer(1, num_gpus=2)
    assert len(trainer.gpus) == min(2, torch.cuda.device_count())
    if not trainer.gpus:
        assert trainer.device.type == "cpu"


def test_a_users_fit_epoch_is_used():
    calls = []

    class Mine(Trainer):
        def fit_epoch(self):
            calls.append(self.epoch)
            super().fit_epoch()

    Mine(2).fit(linear(), data())
    assert calls == [0, 1]


class TestClassifier:
    def test_accuracy_and_loss(self):
        model = Classifier()
        logits = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 5.0]]])
        labels = torch.tensor([[1, 1], [1, 0]])
        assert model.accuracy(logits, labels) == 0.5
        assert model.accuracy(logits, labels, averaged=False).tolist() == [1, 0, 1, 0]
        expected = F.cross_entropy(logits.reshape(4, 2), labels.reshape(4), reduction="none")
        torch.testing.assert_close(model.loss(logits, labels), expected.mean())
        torch.testing.assert_close(model.loss(logits, labels, averaged=False), expected)

    def test_layer_summary(self, capsys):
        model = Classifier()
        model.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
        before = weights(model).clone()
        model.layer_summary((1, 1, 8, 8))
        assert capsys.readouterr().out.splitlines() == [
            "Conv2d output shape:\t torch.Size([1, 2, 6, 6])",
            "BatchNorm2d output shape:\t torch.Size([1, 2, 6, 6])",
            "Flatten output shape:\t torch.Size([1, 72])",
        ]
        assert torch.equal(weights(model), before)
        assert model.training

    def test_undefined_parts_say_so(self):
        for call in (lambda m: m.loss(1, 2), lambda m: m.forward(1)):
            with pytest.raises(NotImplementedError, match="Module must define"):
                call(Module())
        with pytest.raises(NotImplementedError, match="must define get_dataloader"):
            DataModule().train_dataloader()


def test_apply_init_reaches_lazy_layers_and_subclasses():
    class Mine(nn.Conv2d):
        pass

    model = Line()
    model.net = nn.Sequential(Mine(1, 2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    touched = []
    model.apply_init([torch.rand(2, 1, 5, 5)], lambda m: touched.append(type(m).__name__))
    assert touched == ["Mine", "BatchNorm2d", "Flatten", "Linear", "Sequential"]
    assert model.net[1].running_mean.abs().sum() == 0
    assert model.net.training
