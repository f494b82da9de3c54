import sys

import pytest
import torch
from support import data, images, linear, module
from torch import nn

import d2lfast
from d2lfast.data import ImageData
from d2lfast.models import bn_lenet, lenet
from d2lfast.training import RECIPES, Comparison, Epoch, Trainer, train, trainer_of, twins


class TestTwins:
    @pytest.mark.parametrize("build", [lenet, bn_lenet])
    def test_begin_alike_and_stay_together(self, build):
        ours, native = twins(lambda layers: module(build(layers=layers), 0.5), data(), max_epochs=3, seed=4)
        assert (ours.name, native.name) == ("d2lfast", "torch")
        assert type(ours.model.net.net[0]) is d2lfast.nn.Conv2d
        assert type(native.model.net.net[0]) is nn.Conv2d
        for a, b in zip(ours.model.parameters(), native.model.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a is not b
        train([ours, native])
        comparison = Comparison(ours, native)
        assert comparison.loss_difference < 1e-3
        assert comparison.validation_loss_difference < 1e-2
        assert comparison.speed_up > 0

    def test_same_random_numbers_inside_the_network(self):
        def build(layers):
            return module(
                layers.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.Dropout(), nn.Linear(50, 10))
            )

        pair = twins(build, data(), max_epochs=2)
        train(pair)
        assert Comparison(*pair).loss_difference == 0

    def test_a_seed_gives_the_same_run_again_and_another_does_not(self):
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed * 100)
            pair = twins(linear, data(), max_epochs=2, seed=seed)
            train(pair[:1])
            losses.append([epoch.loss for epoch in pair[0].history])
        assert losses[0] == losses[1] != losses[2]

    def test_take_turns(self):
        pair = twins(linear, data(), max_epochs=4)
        order = []
        train(pair, lambda run, epoch: order.append((run.name, epoch is run.history[-1])))
        names = ["d2lfast", "torch", "torch", "d2lfast"] * 2
        assert order == [(name, True) for name in names]

    def test_lazy_layers_begin_alike(self):
        def build(layers):
            return module(layers.Sequential(layers.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(10)))

        ours, native = twins(build, data(), max_epochs=1)
        for a, b in zip(ours.model.parameters(), native.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_comparison():
    def history(losses, seconds):
        return [
            Epoch({"loss": loss}, {"loss": 2 * loss}, second, 100) for loss, second in zip(losses, seconds)
        ]

    a, b = Trainer(3), Trainer(3)
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

        pair = twins(linear, data(), max_epochs=2)
        train(pair)
        for runs in (pair, pair[:1]):
            path = tmp_path / str(len(runs)) / "curves.png"
            save_curves(runs, path, "title")
            assert path.read_bytes().startswith(b"\x89PNG")

    def test_without_matplotlib_it_says_what_to_install(self, tmp_path, monkeypatch):
        from d2lfast.training.plot import save_curves

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'd2lfast\[plot\]'"):
            save_curves([], tmp_path / "x.png", "title")


def test_one_alone_learns():
    trainer = trainer_of(
        lambda layers: module(bn_lenet(layers=layers)), d2lfast.nn, ImageData(images(192), 32),
        seed=0, max_epochs=15,
    )  # fmt: skip
    train([trainer])
    last = trainer.history[-1]
    assert last.loss < 0.5 * trainer.history[0].loss
    assert last.accuracy > 0.9
    assert last.validation_accuracy > 0.8
    assert last.examples == 192
    assert last.examples_per_second == 192 / last.seconds
