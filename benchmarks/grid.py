"""A whole grid: where its time goes, how it grows with images, estimators, percents and seeds, and what cells cost.

python benchmarks/grid.py [--device cpu] [--cells 1000]
Runs small studies on textures as `roar run` does and fits a straight line to the seconds of each kind of growth; then
cells that do nothing but leave their rows (what scheduling, claims and files take), and the smoke study with one worker
and with two.
"""

import argparse
import json
import os
import tempfile
import time

import numpy as np

from roarlib.data import datasets
from roarlib.grid import cluster, kernel
from roarlib.grid.cells import Grid
from roarlib.grid.runner import Run
from roarlib.study import params, results
from roarlib.study.files import write_atomically
from roarlib.study.machine import hardware
from roarlib.study.names import PAPER
from roarlib.study.params import Study

NAMES = [name for name in PAPER if name.startswith("grad")]
GROWTH = {  # what grows, and through which values
    "train_images": [500, 1000, 2000],
    "estimators": [NAMES[:1], NAMES[:2], NAMES[:4]],
    "percents": [[50], [30, 70], [10, 30, 50, 70]],
    "seeds": [[0], [0, 1], [0, 1, 2, 3]],
}
PARTS = {"retrain": "training", "base": "training", "ranking": "attribution", "deletion": "scoring"}


def measured(device: str, **changes) -> dict[str, float]:
    """Wall seconds of a study's run, and its workers' seconds by part, overhead being the rest of their time."""
    values = dict(
        name="bench",
        estimators=["grad-sgsq"],
        train_images=1000,
        test_images=500,
        epochs=3,
        batch_size=50,
        learning_rate=0.1,
        augment="none",
        noise_samples=4,
        percents=[50],
        seeds=[0],
        device=device,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROAR_OUTPUTS"] = folder
        study = Study(**values | changes)
        datasets.load(study)
        started = time.perf_counter()
        outcomes = Run(study).run()
        wall = time.perf_counter() - started
        assert not any(o.error for o in outcomes), [o.error for o in outcomes]
        rows = results.rows(study)
    spent = rows.groupby(rows.measure.map(PARTS)).seconds.sum().to_dict()
    cells = sum(o.seconds for o in outcomes)
    retrainings = int((rows.measure == "retrain").sum())
    return {"wall": wall, **spent, "overhead": cells - sum(spent.values()), "cells": cells, "retrainings": retrainings}


def empty(count: int) -> float:
    """Seconds for so many cells (and a few more) whose notebooks are replaced by writing their rows."""
    values = dict(
        name="empty", estimators=["grad", "random"], percents=[50], seeds=list(range(count // 3)), device="cpu"
    )
    study, real = Study(**values), kernel.execute
    grid, by_target = Grid(study), {}

    def execute(source, target, parameters, **more):
        for key in by_target[target].rows:
            write_atomically(results.row_file(study, key), "{}")

    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROAR_OUTPUTS"] = folder
        for cell in grid.cells:
            by_target[grid.notebook(cell)] = cell
            for file in grid.files_of(cell):  # which others wait for
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        kernel.execute = execute
        try:
            started = time.perf_counter()
            outcomes = Run(study).run()
            seconds = time.perf_counter() - started
        finally:
            kernel.execute = real
    assert not any(o.error for o in outcomes), outcomes[0].error
    return seconds / len(outcomes)


def smoke(workers: int) -> float:
    """Wall seconds of the smoke study with so many workers, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROAR_OUTPUTS"] = folder
        study = params.load("params/smoke.yaml").model_copy(update={"workers": workers, "device": "cpu"})
        datasets.load(study)
        cores, cluster.cores = cluster.cores, lambda: workers  # one thread a cell, however many cells at a time
        try:
            started = time.perf_counter()
            outcomes = Run(study).run()
        finally:
            cluster.cores = cores
    assert not any(o.error for o in outcomes)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cells", type=int, default=1000)
    options = parser.parse_args()
    measured(options.device)  # the first one imports and warms up
    print(f"{hardware(options.device)}; seconds of all cells together, by part")
    print(
        f"{'':<22}{'wall':>7}{'cells':>8}{'training':>10}{'attribution':>13}{'scoring':>9}{'overhead':>10}{'each':>7}"
    )
    figures = {"benchmark": "grid", "device": options.device}
    for key, steps in GROWTH.items():
        sizes, walls = [], []
        for value in steps:
            found = measured(options.device, **{key: value})
            size = value if isinstance(value, int) else len(value)
            sizes.append(size)
            walls.append(found["cells"])
            each = found["training"] / (found["retrainings"] + 1)
            print(
                f"{key + ' ' + str(size):<22}{found['wall']:>7.1f}{found['cells']:>8.1f}{found['training']:>10.1f}"
                f"{found['attribution']:>13.1f}{found['scoring']:>9.1f}{found['overhead']:>10.1f}{each:>7.2f}",
                flush=True,
            )
        slope, start = np.polyfit(sizes, walls, 1)
        off = max(abs(start + slope * n - t) / t for n, t in zip(sizes, walls, strict=True))
        print(f"  {start:.2f} s + {slope:.4g} s for each of {key}, off by {off:.0%} at most")
        figures[f"seconds_per_{key}"], figures[f"off_{key}"] = round(slope, 5), round(off, 3)
    each = empty(options.cells)
    print(f"{options.cells} empty cells: {1000 * each:.1f} ms each, {1 / each:.0f} a second")
    one, two = smoke(1), smoke(2)
    print(f"smoke study: {one:.1f} s with one worker, {two:.1f} s with two; {one / two:.2f} times as fast")
    figures |= {"ms_per_empty_cell": round(1000 * each, 2), "ratio": round(one / two, 2)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
