"""ROAD's linear imputation: a batch at a time against a sparse direct solve image by image, as public code does it.

python benchmarks/imputation.py [--images 128] [--large 6] [--rounds 3] [--device cpu]
The same textures and masks for both, at 32 and 224 pixels. The direct solve is SciPy's, its matrix assembled by whole
arrays, one factorisation for all channels; it uses one thread, ours one and then all. Rounds alternate, and a ratio is
the median over rounds.
"""

import argparse
import json
import time

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from roarlib.data import textures
from roarlib.engine import impute
from roarlib.study.machine import cores, hardware

PERCENTS = (30, 50, 90)
NEIGHBOURS = [(dy, dx, 2 - abs(dy * dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]  # times 12


def direct(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """An image float64 (C, H, W), its missing pixels (H, W) solved for by one sparse factorisation."""
    count = int(missing.sum())
    number = np.full(missing.shape, -1)
    number[missing] = np.arange(count)
    number, exists = np.pad(number, 1, constant_values=-1), np.pad(np.ones(missing.shape), 1)
    known = np.pad(np.where(missing, 0, image), ((0, 0), (1, 1), (1, 1)))
    y, x = np.nonzero(missing)
    y, x, own = y + 1, x + 1, np.arange(count)
    diagonal, right, rows, columns, values = np.zeros(count), np.zeros((count, len(image))), [own], [own], []
    for dy, dx, weight in NEIGHBOURS:
        diagonal += weight * exists[y + dy, x + dx]
        right += weight * known[:, y + dy, x + dx].T
        other = number[y + dy, x + dx]
        inside = other >= 0
        rows.append(own[inside])
        columns.append(other[inside])
        values.append(np.full(inside.sum(), -float(weight)))
    entries = np.concatenate([diagonal, *values]), (np.concatenate(rows), np.concatenate(columns))
    made = image.copy()
    made[:, missing] = spsolve(sparse.csc_matrix(entries, shape=(count, count)), right).reshape(count, -1).T
    return made


def holes(count: int, size: int, percent: int, kind: str) -> np.ndarray:
    """Masks (count, 1, size, size) with exactly percent missing: pixels drawn one by one, or one disc."""
    rng = np.random.default_rng(percent)
    order = rng.random((count, size * size))
    if kind == "disc":
        centre = rng.uniform(0.4 * size, 0.6 * size, (2, count, 1, 1))
        place = np.arange(size)
        order = ((place[:, None] - centre[0]) ** 2 + (place - centre[1]) ** 2).reshape(count, -1)
    rank = order.argsort(1).argsort(1)
    return (rank < percent * size * size // 100).reshape(count, 1, size, size)


def timed(call, device):
    started = time.perf_counter()
    made = call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, made


def compare(images, missing, solved, rounds, device, threads):
    """Milliseconds an image, ours with every number of threads, then the direct solve's (medians over the rounds); the
    ratios' medians; the largest difference.

    images: float32 (N, C, H, W). solved: how many of the images the direct solve takes on in each round.
    """
    x, m = torch.tensor(images, device=device), torch.tensor(missing, device=device)
    impute.linear(x[:2], m[:2])
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append([])
        for number in threads:
            torch.set_num_threads(number)
            seconds, made = timed(lambda: impute.linear(x, m), device)
            ours[-1].append(1000 * seconds / len(images))
        seconds, exact = timed(
            lambda: [direct(images[k].astype(float), missing[k, 0]) for k in range(solved)], device="cpu"
        )
        theirs.append([1000 * seconds / solved])
    difference = float(np.abs(made[:solved].cpu().numpy() - np.stack(exact)).max())
    ours, theirs = np.array(ours), np.array(theirs)
    return [*np.median(ours, 0), np.median(theirs)], np.median(theirs / ours, 0), difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="at 32 pixels")
    parser.add_argument("--large", type=int, default=6, help="images at 224 pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    threads = sorted({1, cores()}) if options.device == "cpu" else [1]
    print(f"{hardware(options.device)}; linear imputation, ms an image, with {threads} threads")
    columns = "".join(f"{f'ours, {n}':>9}" for n in threads), "".join(f"{'ratio':>8}" for _ in threads)
    print(f"{'pixels':>6}  {'missing':<16}{columns[0]}{'SciPy':>9}{columns[1]}{'difference':>12}")
    ratios, worst = {32: [], 224: []}, 0.0
    for size, count, solved, rounds in ((32, options.images, 32, options.rounds), (224, options.large, 1, 1)):
        images = textures.make(count, 0, size)[0].astype(np.float32)
        images = (images - images.mean((0, 2, 3), keepdims=True)) / images.std((0, 2, 3), keepdims=True)
        for percent in PERCENTS:
            for kind in ("scattered", "disc"):
                missing = holes(count, size, percent, kind)
                times, ratio, difference = compare(images, missing, min(solved, count), rounds, options.device, threads)
                ratios[size].append(ratio)
                worst = max(worst, difference)
                cells = "".join(f"{t:>9.3f}" for t in times) + "".join(f"{r:>8.1f}" for r in ratio)
                print(f"{size:>6}  {f'{percent}% {kind}':<16}{cells}{difference:>12.1e}", flush=True)
    middle = {size: np.round(np.median(found, 0), 1).tolist() for size, found in ratios.items()}
    least = {size: np.round(np.min(found, 0), 1).tolist() for size, found in ratios.items()}
    figures = {
        "benchmark": "imputation",
        "device": options.device,
        "threads": threads,
        "ratio": middle[32][0],
        "ratios": middle[32],
        "smallest_ratios": least[32],
        "ratios_224": middle[224],
        "smallest_ratios_224": least[224],
        "largest_difference": float(f"{worst:.2g}"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
