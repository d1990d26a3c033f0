"""All 18 estimators: ours from shared passes beside Captum's own calls, and beside the floor of bare passes.

python benchmarks/attribution.py [--images 128] [--model resnet-tiny] [--size 32] [--rounds 3] [--device cpu]
Same images, model, J = 15 and k = 25, in one process, in turn; the table gives medians over the rounds. Our engine has
the C library keep its memory for the whole process, which Captum gains from as well: so Captum is also timed, in the
same turns, in a process of its own that has loaded nothing of the kind.
"""

import argparse
import copy
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import captum.attr as ca
import numpy as np
import psutil
import torch

from roarlib.data import datasets
from roarlib.engine import attribute, estimators, models, rank, store, train
from roarlib.engine.attribute import Batch
from roarlib.engine.degrade import Degraded
from roarlib.engine.rank import Explainer
from roarlib.study.machine import cores, hardware, keep_memory
from roarlib.study.names import BASES, CONTROLS, PAPER, group_of
from roarlib.study.params import Study
from roarlib.study.rankings import removed

J, K, SIGMA = 15, 25, 0.15
NAMES = [name for name in PAPER if name not in CONTROLS]


def ours(study, model, x, targets, batch, estimators=NAMES):
    """All 18, `batch` images at a time, by what the streaming engine does with a model."""
    model = models.folded(model, x[:2]).to(memory_format=torch.channels_last)
    ids = torch.arange(len(x), device=x.device)
    batches = map(Batch, x.split(batch), targets.split(batch), ids.split(batch))
    found = [attribute.explain(study, model, inputs, estimators, -1.5, batch) for inputs in batches]
    return {name: torch.cat([part[name] for part in found]) for name in estimators}


def captums(model, x, targets, images, inner):
    """All 18 by Captum's calls; squares of plain and SG estimates are free. images: at a time; inner: IG's batch."""
    methods = {
        "grad": (ca.Saliency(model), dict(abs=False)),
        "gb": (ca.GuidedBackprop(model), {}),
        "ig": (ca.IntegratedGradients(model), dict(n_steps=K, internal_batch_size=inner)),
    }
    made = {}
    for i in range(0, len(x), images):
        part, t = x[i : i + images], targets[i : i + images]
        stdevs = (SIGMA * (part.amax((1, 2, 3)) - part.amin((1, 2, 3))).mean()).item()  # it takes one for the batch
        for base, (method, options) in methods.items():
            if base == "ig":
                options = options | {"baselines": torch.full_like(part[:1], -1.5)}
            plain = method.attribute(part, target=t, **options)
            noisy = {
                kind: ca.NoiseTunnel(method).attribute(
                    part,
                    nt_type=kind,
                    nt_samples=J,
                    stdevs=stdevs,
                    target=t,
                    nt_samples_batch_size=1 if base == "ig" else None,
                    **options,
                )
                for kind in ("smoothgrad", "smoothgrad_sq", "vargrad")
            }
            smooth = noisy["smoothgrad"]
            made[base] = [plain, plain**2, smooth, smooth**2, noisy["smoothgrad_sq"], noisy["vargrad"]]
    return made


@functools.cache
def setting(name, size, count, device):
    """(model, images, classes) of a benchmark."""
    torch.manual_seed(0)
    model = models.build(name, 10, (3, size, size)).to(device, memory_format=torch.channels_last).eval()
    x = torch.randn(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    return model, x, model(x).argmax(1).detach()


def best_captum(what):
    """Captum's fastest (images at a time, IG's batch), tried on a few images."""
    model, x, targets = setting(*what)
    few, inner_sizes = (128, (256, 2048)) if x.is_cuda else (32, (64, 256))
    trials = {
        (images, inner): timed(lambda i=images, n=inner: captums(model, x[:few], targets[:few], i, n), x.device)[0]
        for images in (few // 4, few)
        for inner in inner_sizes
    }
    return min(trials, key=trials.get)


def timed_captum(what, images, inner):
    model, x, targets = setting(*what)
    return timed(lambda: captums(model, x, targets, images, inner), x.device)


def in_this_process():
    warnings.simplefilter("ignore")
    torch.set_num_threads(cores())


def timed(call, device):
    """(seconds, growth of resident or device memory in MB at its peak) of a call."""
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak[0] = torch.cuda.max_memory_allocated()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak[0] / 1e6


def floor_rate(model, x, targets, batch, seconds=1.0):
    """Bare forward and backward passes a second of the model as it is, at one batch size."""
    part = x.repeat(-(-batch // len(x)), 1, 1, 1)[:batch].contiguous(memory_format=torch.channels_last)
    t = targets.repeat(-(-batch // len(targets)))[:batch]
    estimators.grad(model, part, t)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        estimators.grad(model, part, t)
        count += batch
    if x.is_cuda:
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def overlaps(device, count=64, percents=(10, 30, 50, 70, 90)):
    """Share of the removed pixels that float32 and bfloat16 have in common with float64: precision -> (18, percents).

    Of a trained model (textures, 3 epochs) with the same noise; printed for every estimator and percent.
    """
    study = Study(
        name="bench",
        estimators=NAMES,
        train_images=2000,
        test_images=1000,
        epochs=3,
        batch_size=50,
        learning_rate=0.1,
        augment="none",
        precision="float32",
        device=str(device),
    )
    data = datasets.load(study)
    model = train.train(study, data, 0)
    x = Degraded("test", data, device).images(slice(0, count))
    targets, ids = model(x).argmax(1).detach(), torch.arange(count, device=device)

    def removed_sets(precision, model, x):
        wanted = study.model_copy(update={"attribution_precision": precision})
        scores = attribute.explain(wanted, model, Batch(x, targets, ids), NAMES, -1.5, count)
        ranked = [rank.rank(rank.to_unit(scores[name].float(), "pixel"), ids, 0) for name in NAMES]
        return torch.stack([torch.stack([removed(r, p) for p in percents]) for r in ranked])

    exact = removed_sets("float32", copy.deepcopy(model).double(), x.double())  # no autocast: float64 throughout
    made = {}
    for precision in ("float32", "bfloat16"):
        both = removed_sets(precision, models.folded(model, x[:2]), x) & exact
        made[precision] = (both.flatten(2).sum(2) / exact.flatten(2).sum(2)).cpu().numpy()
    print("share of removed pixels in common with float64, at " + " ".join(f"{p}%" for p in percents))
    for k, name in enumerate(NAMES):
        print(f"{name:<16}" + "   ".join(f"{p} " + " ".join(f"{v:.3f}" for v in made[p][k]) for p in made))
    return made


def _make_all(study, data, model, guesses, groups):
    explainer = Explainer(study, data, model, guesses)
    for names in groups:
        store.make(explainer, names)


def line(options, counts, target=60_000):
    """Seconds and memory of the streaming engine, all 18 to disk, for several numbers of images, and a straight line.

    Returns the extrapolated hours for `target` images.
    """
    seconds = []
    torch.manual_seed(0)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ROAR_OUTPUTS"] = folder
            study = Study(
                name="line",
                estimators=NAMES,
                noise_samples=J,
                ig_steps=K,
                noise_level=SIGMA,
                train_images=count - 10,
                test_images=10,
                device=options.device,
                attribution_precision=options.precision,
            )
            data = datasets.load(study)
            model = models.build(options.model, 10, data.shape).eval()
            guesses = {name: data.split(name).labels for name in datasets.SPLITS}
            groups = [[n for n in NAMES if group_of(n) == base] for base in BASES]
            call = functools.partial(_make_all, study, data, model, guesses, groups)
            took, peak = timed(call, torch.device(options.device))
        seconds.append(took)
        print(f"{count:>7} images: {took:8.1f} s, {count / took:7.2f} images/s, peak +{peak:.0f} MB")
    slope, start = np.polyfit(counts, seconds, 1)
    worst = max(abs(start + slope * n - t) / t for n, t in zip(counts, seconds, strict=True))
    hours = (start + slope * target) / 3600
    print(
        f"line: {start:.1f} s + {slope:.4f} s an image (off by {worst:.0%} at most); {target:,} images: {hours:.1f} h"
    )
    return hours


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--model", default="resnet-tiny")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the line")
    parser.add_argument("--check", type=int, default=64, help="images compared with float64; 0: speed alone")
    parser.add_argument("--line", type=int, nargs="*", default=[100, 200, 400], help="images of the streaming engine")
    options = parser.parse_args()
    in_this_process()
    keep_memory()
    study = Study(name="bench", estimators=NAMES, noise_samples=J, ig_steps=K, noise_level=SIGMA)
    half = study.model_copy(update={"attribution_precision": "bfloat16"})
    device, what = torch.device(options.device), (options.model, options.size, options.images, options.device)
    model, x, targets = setting(*what)
    sizes = (16, 32, 64, 128, 256) if device.type == "cpu" else (256, 1024, 4096)
    best = max(sizes, key=lambda b: floor_rate(model, x, targets, b, 0.5))
    runs = {name: [] for name in ("ours", "ours, bfloat16", "captum", "captum, apart")}
    rates, spawn = [], multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=in_this_process) as apart:
        sizes, sizes_apart = best_captum(what), apart.submit(best_captum, what).result()
        for _ in range(options.rounds):
            runs["ours"].append(timed(lambda: ours(study, model, x, targets, best), device))
            runs["ours, bfloat16"].append(timed(lambda: ours(half, model, x, targets, best), device))
            rates.append(floor_rate(model, x, targets, best, 1.5))  # in the same minute as what it is compared with
            runs["captum"].append(timed_captum(what, *sizes))
            runs["captum, apart"].append(apart.submit(timed_captum, what, *sizes_apart).result())
    passes = {name: (2 + K) * (1 + (3 * J if "captum" in name else J)) for name in runs}
    seconds = {name: statistics.median(s for s, _ in run) for name, run in runs.items()}
    print(f"{hardware()}; {options.model}, {options.size} px, {options.images} images, J {J}, k {K}, all 18")
    print(f"{'':<16}{'seconds':>9}{'images/s':>10}{'passes/image':>14}{'peak MB':>9}")
    for name in runs:
        peak = max(m for _, m in runs[name])
        print(f"{name:<16}{seconds[name]:>9.2f}{options.images / seconds[name]:>10.2f}{passes[name]:>14}{peak:>9.0f}")
    floors = [passes["ours"] * options.images / rate for rate in rates]
    floor = statistics.median(floors)
    print(f"{'floor':<16}{floor:>9.2f}{options.images / floor:>10.2f}{passes['ours']:>14}   (bare passes)")
    shares = overlaps(device, options.check) if options.check else {}
    hours = line(options, options.line) if options.line and options.size == 32 else None
    ratios = {
        (name, other): [c[0] / o[0] for o, c in zip(runs[name], runs[other], strict=True)]
        for name in ("ours", "ours, bfloat16")
        for other in ("captum", "captum, apart")
    }
    ratio = {pair: round(statistics.median(values), 2) for pair, values in ratios.items()}
    figures = {
        "benchmark": "attribution",
        "device": str(device),
        "model": options.model,
        "size": options.size,
        "ratio": ratio["ours", "captum"],
        "ratios": [round(r, 2) for r in ratios["ours", "captum"]],
        "ratio_bfloat16": ratio["ours, bfloat16", "captum"],
        "ratio_apart": ratio["ours", "captum, apart"],
        "ratios_apart": [round(r, 2) for r in ratios["ours", "captum, apart"]],
        "ratio_apart_bfloat16": ratio["ours, bfloat16", "captum, apart"],
        "peak_mb": {name: round(max(m for _, m in run)) for name, run in runs.items()},
        **{f"overlap_{precision}": round(float(share.mean()), 4) for precision, share in shares.items()},
        "hours_for_60000": hours and round(hours, 2),
        "over_floor": round(statistics.median(o[0] / f for o, f in zip(runs["ours"], floors, strict=True)), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
