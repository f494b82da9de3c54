"""Accuracies of a network, its native twin, and the native twin in another order of sums, over several seeds.

    python benchmarks/accuracy.py densenet --resize 32 --lr 0.02 --batch-size 64 --epochs 8 --settle 2

The control is torch.nn too, in channels_last or, without images, with another number of threads: how far two
trainings come apart that differ in rounding alone.
"""

import argparse
import hashlib
import statistics

import torch
from torch import nn

from d2lfast.training import Trainer, trainer_of, twins
from d2lfast.training.workload import workload


def digest(tensors):
    """What tells one list of tensors from another."""
    state = hashlib.sha1()
    for tensor in tensors:
        state.update(tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def run(trainer: Trainer, settle: int, threads: int) -> tuple[float, list[str]]:
    """Train, the last `settle` epochs at a tenth of the rate; return accuracy and digests of the batches."""
    seen = []
    prepare = trainer.prepare_batch

    def recorded(batch):
        seen.append(digest(batch))
        return prepare(batch)

    trainer.prepare_batch = recorded
    torch.set_num_threads(threads)
    while trainer.epoch < trainer.max_epochs:
        if settle and trainer.epoch == trainer.max_epochs - settle:
            for group in trainer.optim.param_groups:
                group["lr"] /= 10
        trainer.run_epoch()
    return trainer.history[-1].validation_accuracy, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("--resize", type=int, help="height and width of images")
    parser.add_argument("--lr", type=float, help="default: as d2lfast train")
    parser.add_argument("--batch-size", type=int, help="default: as d2lfast train")
    parser.add_argument("--epochs", type=int, help="default: as d2lfast train")
    parser.add_argument("--settle", type=int, default=0, help="last epochs, at a tenth of the learning rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    work = workload(
        args.network, resize=args.resize, lr=args.lr, batch_size=args.batch_size, epochs=args.epochs
    )
    options = {"max_epochs": work.epochs, "gradient_clip_val": work.network.clip}
    images = work.network.resize is not None
    rows = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        ours, native = twins(work.module, work.data, seed=seed, **options)
        control = trainer_of(work.module, nn, work.data, seed=seed, channels_last=images, **options)
        control.model.load_state_dict(native.model.state_dict())
        trainers = (ours, native, control)
        assert len({digest(each.model.state_dict().values()) for each in trainers}) == 1
        other = args.threads if images else 3 - min(2, args.threads)
        results = [
            run(each, args.settle, n) for each, n in zip(trainers, (args.threads, args.threads, other))
        ]
        assert results[0][1] == results[1][1] == results[2][1]
        rows.append([accuracy for accuracy, _ in results])
        print(f"seed {seed}: d2lfast {rows[-1][0]:.4f}, torch {rows[-1][1]:.4f}, control {rows[-1][2]:.4f}")
    for name, column in (("d2lfast", 0), ("control", 2)):
        points = [100 * (row[column] - row[1]) for row in rows]
        spread = statistics.stdev(points) if len(points) > 1 else float("nan")
        print(f"{name} - torch: {statistics.mean(points):+.2f} points, standard deviation {spread:.2f}")


if __name__ == "__main__":
    main()
