"""Retraining: ours beside a plain PyTorch loop that does the same work, and beside the machine's peak.

python benchmarks/training.py [--train 2000] [--epochs 8] [--seeds 3] [--device cpu]
The plain loop is what one writes first: a torchvision-style data set whose __getitem__ removes the ranked pixels of one
image and applies torchvision transforms, a DataLoader with its best number of workers, float32, the same model, recipe
and epochs. Both retrain on textures with half of the pixels removed at random; samples a second and accuracies.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from roarlib import attribute, data, models, results, train
from roarlib.params import Study


class Degraded(Dataset):
    """Images with their top `percent` removed, one at a time, as public ROAR codes do it."""

    def __init__(self, split, found, ranking, percent, augmented):
        self.split, self.ranking, self.percent = split, ranking, percent
        self.fill = torch.from_numpy(found.mean)[:, None, None]
        steps = [transforms.RandomCrop(found.shape[1], padding=4)] if augmented else []
        self.transform = transforms.Compose([transforms.Normalize(found.mean.tolist(), found.std.tolist()), *steps])

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        image = torch.from_numpy(self.split.images[i]).float() / 255
        image = torch.where(torch.from_numpy(self.ranking[i] < self.percent), self.fill, image)
        return self.transform(image), int(self.split.labels[i])


def plain(study, found, rankings, percent, seed, workers):
    """The plain loop: (seconds of training, accuracy)."""
    torch.manual_seed(seed)
    model = models.build(study.model, len(found.classes), found.shape)
    loaders = {
        name: DataLoader(
            Degraded(found.split(name), found, rankings[name], percent, name == "train"),
            batch_size=study.batch_size,
            shuffle=name == "train",
            drop_last=name == "train",
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for name in data.SPLITS
    }
    steps = study.epochs * len(loaders["train"])
    optimiser, schedule = train._optimiser(study, model, steps)
    started = time.perf_counter()
    for _ in range(study.epochs):
        for x, y in loaders["train"]:
            loss = F.cross_entropy(model(x), y, label_smoothing=study.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loaders["test"])
    return seconds, right / len(found.test)


def ours(study, found, rankings, percent, seed):
    """Our retraining: (seconds of training, accuracy)."""
    started = time.perf_counter()
    model = train.train(study, found, seed, rankings["train"], percent)
    seconds = time.perf_counter() - started
    return seconds, train.evaluate(study, model, found, rankings["test"], percent)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    study = Study(
        name="bench",
        estimators=["random"],
        train_images=options.train,
        test_images=1000,
        batch_size=50,
        epochs=options.epochs,
        learning_rate=0.1,
        augment="crop",
        precision="float32",
        device="cpu",
    )
    found, percent = data.load(study), 50
    rankings = {}
    for name in data.SPLITS:
        blank = torch.zeros(found.split(name).images.shape)
        drawn = attribute.random(None, blank, None, ids=torch.arange(len(blank)), seed=0)
        rankings[name] = np.ascontiguousarray(drawn[:, :1].numpy())
    runs = {"ours": [], "plain": []}
    torch.set_num_threads(results.cores())
    trial = study.model_copy(update={"epochs": 1})
    workers = min(range(results.cores() + 1), key=lambda w: plain(trial, found, rankings, percent, 0, w)[0])
    for seed in range(options.seeds):
        runs["ours"].append(ours(study, found, rankings, percent, seed))
        runs["plain"].append(plain(study, found, rankings, percent, seed, workers))
    samples = options.epochs * (options.train // study.batch_size) * study.batch_size
    print(
        f"{results.hardware()}; {study.model}, {samples} samples, {options.seeds} seeds, {results.cores()} threads each"
    )
    print(f"{'':<8}{'samples/s':>11}{'seconds':>9}{'accuracy, mean and spread':>28}")
    for name, run in runs.items():
        seconds, right = statistics.median(s for s, _ in run), [a for _, a in run]
        accuracy = f"{np.mean(right):.1%} ± {np.std(right, ddof=1):.1%}"
        print(f"{name:<8}{samples / seconds:>11.0f}{seconds:>9.2f}{accuracy:>28}")
    ratios = [p[0] / o[0] for o, p in zip(runs["ours"], runs["plain"], strict=True)]
    gap = statistics.mean(a for _, a in runs["ours"]) - statistics.mean(a for _, a in runs["plain"])
    print(
        json.dumps(
            {
                "benchmark": "training",
                "ratio": round(statistics.median(ratios), 2),
                "workers_of_plain": workers,
                "ratios": [round(r, 2) for r in ratios],
                "accuracy_difference": round(gap, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
