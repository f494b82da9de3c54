import sys

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast.data import Images
from d2lfast.models import bn_lenet, lenet
from d2lfast.training import RECIPES, Comparison, Epoch, Run, train, twins


@pytest.fixture(autouse=True)
def _one_thread():
    """The batches are tiny: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(train=96, validation=40, classes=10):
    """Bright stripes whose place is the class: a network learns them in a few steps."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (train, validation):
        labels = torch.arange(count) % classes
        pictures = torch.rand(count, 1, 28, 28, generator=generator) * 0.2
        for picture, label in zip(pictures, labels):
            picture[0, 2 * label : 2 * label + 3] += 0.8
        parts += [pictures, labels]
    return Images("stripes", "memory", tuple(map(str, range(classes))), *parts)


def linear(num_classes=10, *, layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


def run_of(model, data=None, **kwargs):
    return Run("run", model, data or images(), **{"batch_size": 32, "learning_rate": 0.1, **kwargs})


class TestRun:
    def test_learns_and_records(self):
        torch.manual_seed(0)
        run = run_of(bn_lenet(), images(192))
        train([run], 15)
        assert len(run.history) == 15
        last = run.history[-1]
        assert last.loss < 0.5 * run.history[0].loss
        assert last.accuracy > 0.9
        assert last.validation_accuracy > 0.8
        assert last.examples == 192
        assert last.examples_per_second == 192 / last.seconds
        assert run.model.training

    def test_an_epoch_is_the_books_loop(self):
        torch.manual_seed(0)
        data = images(70)
        run = run_of(linear(layers=nn), data, seed=3)
        model = linear(layers=nn)
        model.load_state_dict(run.model.state_dict())
        order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
        loss_sum = correct = 0.0
        for part in order.split(32):
            logits = model(data.train_images[part])
            loss = nn.functional.cross_entropy(logits, data.train_labels[part])
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            loss_sum += loss.item() * len(part)
            correct += (logits.argmax(1) == data.train_labels[part]).sum().item()
        epoch = run.train_epoch()
        for ours, expected in zip(run.model.parameters(), model.parameters()):
            torch.testing.assert_close(ours, expected)
        assert epoch.loss == pytest.approx(loss_sum / 70, rel=1e-5)
        assert epoch.accuracy == pytest.approx(correct / 70)
        logits = model(data.validation_images)
        expected_loss = nn.functional.cross_entropy(logits, data.validation_labels).item()
        assert epoch.validation_loss == pytest.approx(expected_loss, rel=1e-5)
        accuracy = (logits.argmax(1) == data.validation_labels).float().mean().item()
        assert epoch.validation_accuracy == pytest.approx(accuracy)

    def test_validation_leaves_statistics_and_weights(self):
        run = run_of(bn_lenet())
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        assert run.validate() == run.validate()
        assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())

    def test_the_global_generator_is_left_alone(self):
        run = run_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10)))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        run.train_epoch()
        assert torch.equal(torch.get_rng_state(), before)


class TestTwins:
    @pytest.mark.parametrize("build", [lenet, bn_lenet])
    def test_begin_alike_and_stay_together(self, build):
        ours, native = twins(build, images(), batch_size=32, learning_rate=0.5, seed=4)
        assert (ours.name, native.name) == ("d2lfast", "torch")
        assert type(ours.model.net[0]) is d2lfast.nn.Conv2d
        assert type(native.model.net[0]) is nn.Conv2d
        for a, b in zip(ours.model.parameters(), native.model.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a is not b
        train([ours, native], 3)
        comparison = Comparison(ours, native)
        assert comparison.loss_difference < 1e-3
        assert comparison.validation_loss_difference < 1e-2
        assert comparison.speed_up > 0

    def test_same_random_numbers_inside_the_network(self):
        def build(num_classes, *, layers):
            return layers.Sequential(
                nn.Flatten(), nn.Linear(784, 50), nn.Dropout(), nn.Linear(50, num_classes)
            )

        pair = twins(build, images(), batch_size=32, learning_rate=0.1)
        train(pair, 2)
        assert Comparison(*pair).loss_difference == 0

    def test_a_seed_gives_the_same_run_again_and_another_does_not(self):
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed * 100)
            pair = twins(linear, images(), batch_size=32, learning_rate=0.1, seed=seed)
            train(pair[:1], 2)
            losses.append([epoch.loss for epoch in pair[0].history])
        assert losses[0] == losses[1] != losses[2]

    def test_take_turns(self):
        pair = twins(linear, images(), batch_size=32, learning_rate=0.1)
        order = []
        train(pair, 4, lambda run, epoch: order.append((run.name, epoch is run.history[-1])))
        names = ["d2lfast", "torch", "torch", "d2lfast"] * 2
        assert order == [(name, True) for name in names]


def test_comparison():
    def history(losses, seconds):
        return [Epoch(loss, 0, 2 * loss, 0, second, 100) for loss, second in zip(losses, seconds)]

    a, b = (run_of(linear(layers=nn)) for _ in range(2))
    a.history, b.history = history([3, 2, 1], [9, 1, 1]), history([3, 2.25, 0.9], [9, 4, 4])
    comparison = Comparison(a, b)
    assert comparison.loss_difference == 0.25
    assert comparison.validation_loss_difference == 0.5
    assert comparison.speed_up == 4
    b.history.pop()
    with pytest.raises(ValueError, match="shorter"):
        _ = comparison.loss_difference


def test_recipes():
    recipe = RECIPES["lenet"]
    assert recipe.epochs_for(60_000, 128) == 10
    assert recipe.epochs_for(3_600, 128) * 29 >= recipe.steps
    assert recipe.epochs_for(1, 128) == recipe.steps


class TestCurves:
    def test_are_drawn(self, tmp_path):
        from d2lfast.training.plot import save_curves

        pair = twins(linear, images(), batch_size=32, learning_rate=0.1)
        train(pair, 2)
        for runs in (pair, pair[:1]):
            path = tmp_path / str(len(runs)) / "curves.png"
            save_curves(runs, path, "title")
            assert path.read_bytes().startswith(b"\x89PNG")

    def test_without_matplotlib_it_says_what_to_install(self, tmp_path, monkeypatch):
        from d2lfast.training.plot import save_curves

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'd2lfast\[plot\]'"):
            save_curves([], tmp_path / "x.png", "title")
