import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2lfast.training import distributed

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
from test_data import contents, write


def losses(path):
    with open(path, newline="") as file:
        return [
            [float(row[key]) for key in ("train_loss", "val_loss", "val_acc")] for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    ("network", "images", "options", "tolerance"),
    [
        ("bn-lenet", 90, ("--batch-size", "32", "--lr", "0.5"), 1e-4),
        # Rounding grows in a deep network: the steps are few and small.
        ("resnet18", 15, ("--batch-size", "15", "--lr", "0.001", "--resize", "64"), 1e-3),
    ],
)
def test_two_processes_train_as_one(tmp_path, network, images, options, tolerance):
    """The last batch of 90 images has 26: 13 each; of 15 images the parts are uneven."""
    write(tmp_path / "fashion-mnist", contents(train=images, test=15))
    environment = {**os.environ, "D2LFAST_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"}
    arguments = ["train", network, "--epochs", "2", "--device", "cpu", *options]
    results = []
    for out, launch in (
        ("one", [sys.executable, "-m", "d2lfast"]),
        (
            "two",
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                "2",
                "-m",
                "d2lfast",
            ],
        ),
    ):
        command = [*launch, *arguments, "--out", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr
        results.append((losses(tmp_path / out / f"{network}.csv"), done.stdout))
    one, two = (torch.tensor(rows) for rows, _ in results)
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
    assert "2 processes" in results[1][1]
    # One process alone speaks.
    assert results[1][1].count("Training speed") == 1
    states = [torch.load(tmp_path / out / f"{network}.pt")["model"] for out in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-3, atol=tolerance)


def test_parts_of_a_batch(monkeypatch):
    batch = [torch.arange(7), "not a tensor", torch.arange(7) * 2]
    for world, counts in ((1, [7]), (3, [2, 2, 3]), (9, [0, 1, 1, 1, 0, 1, 1, 1, 1])):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        seen, weights = [], []
        for rank in range(world):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            (first, text, last), weight = distributed.own_part(batch)
            assert text == "not a tensor"
            assert torch.equal(last, first * 2)
            assert weight == pytest.approx(counts[rank] * world / 7)
            weights.append(weight)
            if counts[rank]:
                seen += first.tolist()
            else:
                assert len(first) == 1
        assert sum(weights) == pytest.approx(world)
        assert seen == list(range(7))


def test_outside_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.processes() as own:
        assert own is None
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
