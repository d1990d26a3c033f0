"""ROAD's imputation: ours, a batch at a time, beside a direct sparse solve, image by image.

python benchmarks/imputation.py [--images 128] [--rounds 3]
The sparse solve is what public implementations do, written as well as we can: the matrix is assembled by numpy at once,
and SciPy factorises it once for the three channels of an image. Same images (textures), same holes, in turn; the sparse
solve has one core, as it must image by image, ours has torch's threads.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from roarlib import impute, results, textures

STEPS = [(i, j, 2.0 if 0 in (i, j) else 1.0) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def sparse_solve(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """One image (C, H, W) float64 with its missing pixels (H, W) solved directly; weights times 12."""
    height, width = missing.shape
    number = np.full((height + 2, width + 2), -1)  # -1: known; -2: beyond the border
    number[[0, -1]] = number[:, [0, -1]] = -2
    row, column = np.nonzero(missing)
    count = len(row)
    number[row + 1, column + 1] = np.arange(count)
    framed = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    total, right, parts = np.zeros(count), np.zeros((count, len(image))), []
    for i, j, weight in STEPS:
        neighbour = number[row + 1 + i, column + 1 + j]
        total += weight * (neighbour != -2)
        known = neighbour == -1
        right[known] += weight * framed[:, row[known] + 1 + i, column[known] + 1 + j].T
        inside = neighbour >= 0
        parts.append((np.nonzero(inside)[0], neighbour[inside], np.full(inside.sum(), -weight)))
    parts.append((np.arange(count), np.arange(count), total))
    rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    out = image.copy()
    out[:, row, column] = splu(csc_matrix((values, (rows, columns)))).solve(right).T
    return out


def holes(kind: str, percent: int, count: int, size: int) -> np.ndarray:
    """Missing pixels bool (N, H, W): scattered at random, or one disc somewhere."""
    rng = np.random.default_rng(percent)
    if kind == "scattered":
        return rng.random((count, size, size)) < percent / 100
    y, x = np.mgrid[:size, :size]
    centres = rng.uniform(0.4, 0.6, (2, count, 1, 1)) * size
    distance = np.hypot(x - centres[0], y - centres[1]).reshape(count, -1)
    edge = np.quantile(distance, percent / 100, axis=1, keepdims=True)
    return (distance < edge).reshape(count, size, size)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{results.hardware()}; torch threads {torch.get_num_threads()}; milliseconds an image of 3 channels")
    print(f"{'pixels':>7}{'hole':>11}{'percent':>9}{'sparse solve':>14}{'ours':>9}{'ratio':>8}{'difference':>12}")
    ratios = {32: [], 224: []}
    for size, count in ((32, options.images), (224, max(2, options.images // 32))):
        pixels = textures.make(count, 0, size)[0].astype(np.float64)
        images = (pixels - pixels.mean()) / pixels.std()
        batch = torch.from_numpy(images).float()
        for kind in ("scattered", "disc"):
            for percent in (30, 50, 90):
                missing = holes(kind, percent, count, size)
                seconds = {"direct": [], "ours": []}
                for _ in range(options.rounds if size == 32 else 1):
                    started = time.perf_counter()
                    direct = [sparse_solve(*pair) for pair in zip(images, missing, strict=True)]
                    seconds["direct"].append((time.perf_counter() - started) / count)
                    started = time.perf_counter()
                    ours = impute.linear(batch, torch.from_numpy(missing)[:, None])
                    seconds["ours"].append((time.perf_counter() - started) / count)
                direct_ms, ours_ms = (1000 * statistics.median(seconds[who]) for who in ("direct", "ours"))
                ratios[size].append(direct_ms / ours_ms)
                off = np.abs(ours.numpy() - np.stack(direct)).max()
                ratio = direct_ms / ours_ms
                print(f"{size:>7}{kind:>11}{percent:>9}{direct_ms:>14.2f}{ours_ms:>9.3f}{ratio:>8.1f}{off:>12.1e}")
                assert off < 1e-4
    figures = {"benchmark": "imputation", "ratio": round(statistics.median(ratios[32]), 1)}
    figures |= {"least": round(min(ratios[32]), 1), "ratio_224": round(statistics.median(ratios[224]), 1)}
    print(json.dumps(figures | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
