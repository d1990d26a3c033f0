"""The parts of gpu.py that no other benchmark has: python benchmarks/gpu_parts.py PART FOLDER [--rehearse]

Each prints one line of JSON. FOLDER holds gpu.json with the parts before it.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"model": "resnet-tiny", "train_images": 64, "test_images": 32, "epochs": 1, "batch_size": 32}  # to rehearse
SECONDS, ACCURACY, TARGETS = 3.0, 0.93, (30, 15)  # of one retraining; minutes of the whole grid
MEAN, SHIFT = 0.02, 0.01  # the smoke study's accuracies may differ so much from the processor's: on average, and in sum
BEGUN = {}


def run(call):
    """What a command prints, or nothing where there is no such command."""
    try:
        return subprocess.run(call, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def facts(device, small, out):
    """What computes: needs torch alone."""
    figures = {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    figures |= {"cores": os.cpu_count(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    call = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    figures["commit"] = run(call)
    if device == "cpu":
        return figures
    about = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    figures |= {"device": about.name, "gpus": torch.cuda.device_count(), "multiprocessors": about.multi_processor_count}
    figures |= {"memory_gb": round(total / 1e9, 1), "free_gb": round(free / 1e9, 1)}
    figures |= {"capability": f"{about.major}.{about.minor}", "bfloat16": torch.cuda.is_bf16_supported(False)}
    figures["driver"] = run(["nvidia-smi", "-i", "0", "--query-gpu=driver_version", "--format=csv,noheader"])
    return figures


def cifar10(device, small, **changes):
    """(study, data, where they are from) of params/cifar10.yaml; random images of the same size where it is missing."""
    from roarlib.data import datasets
    from roarlib.study import brought, params

    study = params.load(ROOT / "params" / "cifar10.yaml")
    study = study.model_copy(update={"device": device} | (SMALL if small else {}) | changes)
    if (brought.data_dir(study) / "cifar-10-batches-py").is_dir():
        return study, datasets.load(study), "CIFAR-10"
    rng, classes = np.random.default_rng(0), [str(n) for n in range(10)]
    counts = study.train_images or 50_000, study.test_images or 10_000
    made = [datasets.Split(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % 10) for n in counts]
    return (
        study,
        datasets.Data(*made, classes, np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)),
        "random images",
    )


def retraining(device, small, out):
    """Seconds and accuracy of retrainings of the CIFAR-10 study, one at a time; their share of the device's peak."""
    from training import share_of_peak

    from roarlib.engine import train
    from roarlib.study.machine import precision_of

    study, data, kind = cifar10(device, small)
    train.train(study.model_copy(update={"epochs": 1}), data, 0)  # warm up
    seconds, accuracy = [], []
    for seed in range(1 if small else 3):
        started = time.perf_counter()
        model = train.train(study, data, seed)
        seconds.append(time.perf_counter() - started)
        accuracy.append(train.tested(study, model, data)["accuracy"])
    images = study.epochs * (len(data.train) // study.batch_size) * study.batch_size
    share, peak = share_of_peak(study, data, images / np.median(seconds), torch.device(device))
    real = kind == "CIFAR-10"
    return {
        "data": kind,
        "model": study.model,
        "precision": precision_of(study.precision, torch.device(device)),
        "seconds": np.round(seconds, 2).tolist(),
        "accuracy": accuracy if real else None,
        "images_per_second": round(images / np.median(seconds)),
        "peak_tflops": round(peak / 1e12, 1),
        "share_of_peak": round(share, 3),
        "under_3_seconds": float(np.median(seconds)) < SECONDS,
        "over_93_percent": bool(np.mean(accuracy) >= ACCURACY) if real else None,
    } | memory_of(device)


def memory_of(device):
    return {} if device == "cpu" else {"allocated_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}


def begin(barrier, device, small, threads):
    torch.set_num_threads(threads)
    BEGUN["barrier"], BEGUN["setting"] = barrier, cifar10(device, small, epochs=1 if small else 8)


def one_of_several(seed):
    """(when it began, when it ended) of a retraining that begins together with the others."""
    from roarlib.engine import train

    study, data, _ = BEGUN["setting"]
    train.train(study.model_copy(update={"epochs": 1}), data, seed)  # warm up
    BEGUN["barrier"].wait(60)
    started = time.time()
    train.tested(study, train.train(study, data, seed), data)
    return started, time.time()


def at_once(device, small, out):
    """Retrainings a minute with 1, 2 and 4 processes on the device; the fewest within 5 percent of the best."""
    epochs, context, rates = cifar10(device, small)[0].epochs / (1 if small else 8), get_context("spawn"), {}
    for count in (1, 2) if small else (1, 2, 4):
        begun = context.Barrier(count), device, small, max(1, (os.cpu_count() or 1) // count)
        try:
            with ProcessPoolExecutor(count, context, begin, begun) as pool:
                spans = list(pool.map(one_of_several, range(count)))
            rates[count] = round(60 * count / (epochs * (max(s[1] for s in spans) - min(s[0] for s in spans))), 2)
        except Exception as error:  # too little memory for so many, say
            rates[f"{count}, failed"] = str(error)[:200]
    numbers = {count: rate for count, rate in rates.items() if isinstance(count, int)}
    best = min(count for count, rate in numbers.items() if rate >= 0.95 * max(numbers.values()))
    return {"retrainings_per_minute": rates, "recommended_workers": best}


def ranking(device, small, out):
    """Seconds of all 18 estimators for the whole of CIFAR-10 by the study's model, extrapolated from few images."""
    import attribution

    from roarlib.study.machine import precision_of

    half = precision_of("auto", torch.device(device))
    options = argparse.Namespace(device=device, model="resnet-tiny" if small else "resnet9", precision=half)
    if small:
        attribution.J, attribution.K = 3, 4
    hours = attribution.line(options, [60, 80] if small else [512, 1024, 2048])
    return {"model": options.model, "precision": half, "seconds_for_60000": round(3600 * hours)} | memory_of(device)


def smoke(device, small, out):
    """The smoke study as `roar run` runs it, in float32, against the processor's golden rows.

    Its models know next to nothing, so that rounding turns predictions: a processor in float32 is 0.011 away on average
    and 0.002 in sum; unrelated answers would be 0.034 away. What rests on no model must be the same to the bit.
    """
    from roarlib.data import datasets
    from roarlib.grid.runner import Run
    from roarlib.study import params, results

    spec = importlib.util.spec_from_file_location("golden", ROOT / "tests" / "golden" / "make.py")
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    few = {"estimators": ["grad", "random", "oracle"], "modes": ["remove"]}
    changes = {"device": device, "precision": "float32", "workers": min(4, os.cpu_count() or 1)} | (
        few if small else {}
    )
    study = params.load(ROOT / "params" / "smoke.yaml").model_copy(update=changes)
    datasets.load(study)
    started = time.perf_counter()
    outcomes = Run(study).run()
    seconds = time.perf_counter() - started
    if failed := [f"{o.cell.id}: {o.error}" for o in outcomes if o.error]:
        raise RuntimeError(f"{len(failed)} of {len(outcomes)} cells failed, {failed[0]}")
    with (ROOT / "tests" / "golden" / "smoke-rows.csv").open() as file:
        known = dict(line.strip().split(",") for line in list(file)[1:])
    found, fixed = (
        golden.rows(study.folder),
        json.loads((ROOT / "tests" / "golden" / "smoke-rankings.json").read_text()),
    )
    away = np.array([found[row] - float(known[row]) for row in found if known.get(row)])
    names = [n for n in fixed["anywhere"] if (study.folder / "02-attribute" / f"{n}.npy").is_file()]
    spent = sum(o.seconds for o in outcomes) - results.rows(study).seconds.sum()
    return {
        "seconds": round(seconds, 1),
        "workers": study.workers,
        "cells": len(outcomes),
        "overhead_per_cell": round(spent / len(outcomes), 2),
        "rows": len(found),
        "same_rows": set(found) <= set(known) if small else set(found) == set(known),
        "same_rankings_without_model": golden.digests(study.folder, names) == {n: fixed["anywhere"][n] for n in names},
        "largest_difference": round(float(abs(away).max()), 3),
        "mean_difference": round(float(abs(away).mean()), 4),
        "mean_shift": round(float(away.mean()), 4),
        "within_tolerance": bool(abs(away).mean() <= MEAN and abs(away.mean()) <= SHIFT),
    }


@contextmanager
def crowded(device, gigabytes, most):
    """Meanwhile memory is short: on a GPU truly so, on the processor above so many images a pass."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / torch.cuda.mem_get_info()[1])
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    whole = torch.nn.Conv2d.forward

    def forward(self, x):
        if len(x) > most:
            raise torch.OutOfMemoryError("made up")
        return whole(self, x)

    with mock.patch.object(torch.nn.Conv2d, "forward", forward):
        yield


def memory(device, small, out):
    """Too large a batch: attribution must halve it and go on, training must end with a sentence that names the key."""
    from roarlib.data.datasets import SPLITS
    from roarlib.engine import store, train
    from roarlib.engine.rank import Explainer
    from roarlib.study.params import InputError

    few, samples, batch, large = (32, 4, 256, 32) if small else (64, 60, 65536, 16384)
    changes = {
        "estimators": ["grad-sg"],
        "train_images": few,
        "test_images": few,
        "noise_samples": samples,
        "epochs": 1,
    }
    study, data, _ = cifar10(device, small, **changes, batch_size=8)
    explainer = Explainer(study, data, train.train(study, data, 0), {s: data.split(s).labels for s in SPLITS}, batch)
    with crowded(device, 1.5, 16):
        store.make(explainer, ["grad-sg"])
    study, data, _ = cifar10(device, small, batch_size=large)
    said = None
    with crowded(device, 1.5, 16):
        try:
            train.train(study, data, 0)
        except InputError as error:
            said = str(error)
    return {
        "made_up": device == "cpu",
        "attribution_batch": [batch, explainer.batch],
        "attribution_halves": explainer.batch < batch,
        "training_says": said,
    }


def projection(device, small, out):
    """Minutes of the whole of params/cifar10.yaml on this device, from the parts before."""
    from roarlib.grid.cells import Grid
    from roarlib.study import params

    cells = Grid(params.load(ROOT / "params" / "cifar10.yaml")).cells
    retrainings = sum(len(cell.rows) for cell in cells if cell.measure in ("base", "retrain"))
    parts = {name: part.get("figures") for name, part in json.loads((out / "gpu.json").read_text())["parts"].items()}
    if lack := [name for name in ("at_once", "ranking", "smoke") if not parts.get(name)]:
        raise SystemExit(f"needs what {' and '.join(lack)} did not give")
    workers = parts["at_once"]["recommended_workers"]
    rate, overhead = parts["at_once"]["retrainings_per_minute"][str(workers)], parts["smoke"]["overhead_per_cell"]
    minutes = projected(retrainings, len(cells), rate, parts["ranking"]["seconds_for_60000"], overhead / workers)
    return {"retrainings": retrainings, "cells": len(cells), "workers": workers, **minutes}


def projected(retrainings, cells, per_minute, ranking_seconds, overhead):
    """Minutes by part and in all: overhead in seconds a cell, shared by those that run at once."""
    parts = {"retraining": retrainings / per_minute, "ranking": ranking_seconds / 60, "overhead": cells * overhead / 60}
    whole = math.fsum(parts.values())
    made = {f"{name}_minutes": round(value, 1) for name, value in parts.items()} | {"minutes": round(whole, 1)}
    return made | {f"under_{target}_minutes": whole < target for target in TARGETS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = (facts, retraining, at_once, ranking, smoke, memory, projection)
    parser.add_argument("part", choices=[part.__name__ for part in parts])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not options.rehearse else "cpu"
    print(json.dumps(globals()[options.part](device, device == "cpu", options.folder)))


if __name__ == "__main__":
    main()
