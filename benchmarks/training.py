"""Retraining: ours beside a plain PyTorch loop that does the same work, and beside the machine's peak.

python benchmarks/training.py [--train 2000] [--epochs 8] [--rounds 3] [--device cpu]
The plain loop is what one writes first: a torchvision data set whose __getitem__ makes a picture, a tensor of it,
removes the ranked pixels and applies torchvision transforms, a DataLoader with its best number of workers, float32, one
training at a time on all cores. Ours is what the grid does: on a CPU one single-threaded training a core, several at
once. Same images (textures, half of the pixels removed at random), model, recipe, epochs and seeds; in turn.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.datasets import VisionDataset

from roarlib.data import datasets
from roarlib.engine import estimators, models, train
from roarlib.study import machine
from roarlib.study.machine import device_of, precision_of
from roarlib.study.params import Study

PERCENT = 50


class Degraded(VisionDataset):
    """Images with their top percent removed, one at a time, as public ROAR codes do it."""

    def __init__(self, split, found, ranking, augmented):
        super().__init__(root=None)
        self.images, self.labels = split.images.transpose(0, 2, 3, 1), split.labels  # (N, H, W, C), as CIFAR10's
        self.ranking, self.fill = ranking, torch.from_numpy(found.mean)[:, None, None]
        self.to_tensor = transforms.ToTensor()
        crop = [transforms.RandomCrop(found.shape[1], padding=4)] if augmented else []
        self.transform = transforms.Compose([transforms.Normalize(found.mean.tolist(), found.std.tolist()), *crop])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.to_tensor(Image.fromarray(self.images[i]))
        image = torch.where(torch.from_numpy(self.ranking[i] < PERCENT), self.fill, image)
        return self.transform(image), int(self.labels[i])


def setting(options):
    """(study, data, rankings of Random) of the comparison."""
    study = Study(
        name="bench",
        estimators=["random"],
        train_images=options.train,
        test_images=1000,
        batch_size=50,
        epochs=options.epochs,
        learning_rate=0.1,
        augment="crop",
        device=options.device,
        precision=options.precision,
    )
    found, rankings = datasets.load(study), {}
    for name in datasets.SPLITS:
        blank = torch.zeros(found.split(name).images.shape)
        drawn = estimators.random(None, blank, None, ids=torch.arange(len(blank)), seed=0)
        rankings[name] = np.ascontiguousarray(drawn[:, :1].numpy())
    return study, found, rankings


def plain(study, found, rankings, seed, workers):
    """The plain loop: (seconds of training, accuracy)."""
    torch.manual_seed(seed)
    device = device_of(study)
    model = models.build(study.model, len(found.classes), found.shape).to(device)
    loaders = {
        name: DataLoader(
            Degraded(found.split(name), found, rankings[name], name == "train"),
            batch_size=study.batch_size,
            shuffle=name == "train",
            drop_last=name == "train",
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for name in datasets.SPLITS
    }
    steps = study.epochs * len(loaders["train"])
    optimiser, schedule = train._optimiser(study, model, steps)
    started = time.perf_counter()
    for _ in range(study.epochs):
        for x, y in loaders["train"]:
            loss = F.cross_entropy(model(x.to(device)), y.to(device), label_smoothing=study.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loaders["test"])
    return seconds, right / len(found.test)


WORKER = {}


def begin(options, threads):
    torch.set_num_threads(threads)
    WORKER["setting"] = setting(options)


def ours(seed, epochs=None):
    """One of our retrainings, in a worker: its accuracy."""
    study, found, rankings = WORKER["setting"]
    study = study.model_copy(update={"epochs": epochs or study.epochs})
    model = train.train(study, found, seed, rankings["train"], PERCENT)
    return train.tested(study, model, found, rankings["test"], PERCENT)["accuracy"]


def share_of_peak(study, found, rate, device):
    """(share of the best matrix-multiply rate that so many samples a second need, that rate in FLOP/s)."""
    model = models.build(study.model, len(found.classes), found.shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(8, *found.shape)).sum().backward()
    half = torch.bfloat16 if precision_of("auto", device) == "bfloat16" else torch.float32
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=half) for _ in range(2))
    best = np.inf
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    peak = 2 * size**3 / best
    return rate * counter.get_total_flops() / 8 / peak, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of ours")
    options = parser.parse_args()
    study, found, rankings = setting(options)
    device, cores = device_of(study), machine.cores()
    at_once = cores if device.type == "cpu" else 1
    torch.set_num_threads(cores)
    trial = study.model_copy(update={"epochs": 1})
    workers = min(range(cores + 1), key=lambda w: plain(trial, found, rankings, 0, w)[0])
    seconds, right = {"ours": [], "plain": []}, {"ours": [], "plain": []}
    with ProcessPoolExecutor(at_once, get_context("spawn"), begin, (options, cores // at_once)) as pool:
        list(pool.map(ours, range(at_once), [1] * at_once))  # start and warm up
        for turn in range(options.rounds):
            seeds = range(turn * at_once, (turn + 1) * at_once)
            started = time.perf_counter()
            right["ours"] += pool.map(ours, seeds)
            seconds["ours"].append((time.perf_counter() - started) / at_once)
            runs = [plain(study, found, rankings, seed, workers) for seed in seeds]
            seconds["plain"].append(statistics.mean(s for s, _ in runs))
            right["plain"] += [a for _, a in runs]
    samples = options.epochs * (options.train // study.batch_size) * study.batch_size
    precision = precision_of(study.precision, device)
    print(
        f"{machine.hardware(device.type)}; {study.model}, {samples} samples a training; "
        f"ours {precision}, {at_once} at once"
    )
    print(f"{'':<8}{'samples/s':>11}{'seconds':>9}{'accuracy, mean and spread':>28}{'trainings':>11}")
    for name, runs in seconds.items():
        middle = statistics.median(runs)
        accuracy = f"{np.mean(right[name]):.1%} ± {np.std(right[name], ddof=1):.1%}"
        print(f"{name:<8}{samples / middle:>11.0f}{middle:>9.2f}{accuracy:>28}{len(right[name]):>11}")
    share, peak = share_of_peak(study, found, samples / statistics.median(seconds["ours"]), device)
    print(f"{share:.1%} of the best {precision} matrix multiplication here, {peak / 1e9:.0f} GFLOP/s")
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    figures = {
        "benchmark": "training",
        "device": str(device),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(r, 2) for r in ratios],
        "precision": precision,
        "workers_of_plain": workers,
        "accuracy_difference": round(float(np.mean(right["ours"]) - np.mean(right["plain"])), 4),
        "share_of_peak": round(share, 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
