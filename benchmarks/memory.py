"""Photographs many times larger than memory may hold: peak memory of each stage, and the same bytes after a kill.

python benchmarks/memory.py [--images 600] [--size 224] [--memory-gb 0.05] [--no-kill] [--folder F]
Generates JPEGs, then prepares them, trains one epoch, attributes (the gradient's six, whole pixels) and retrains one
epoch, each in a process of its own: once undisturbed, once killed by SIGKILL half-way and started again. Images and
ranking stream, as they exceed memory_gb. Prints seconds and peak resident memory (pages of mapped files included), and
whether all bytes agree.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

STAGES = ("prepare", "train", "attribute", "retrain")
FAMILY = ["grad", "grad-squared", "grad-sg", "grad-sg-squared", "grad-sgsq", "grad-var"]


def paint(folder: Path, size: int, train: int, number: int) -> None:
    """One JPEG of random blobs, a channel of which tells its class."""
    label = number % 10
    file = folder / ("train" if number < train else "test") / f"c{label}" / f"{number}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    blobs = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    blobs[:, :, label % 3] //= 2
    Image.fromarray(blobs).resize((size * 9 // 7, size * 8 // 7), Image.Resampling.BILINEAR).save(file, quality=85)


def stage(name: str, options) -> None:
    """Do one stage in this process, telling its progress to the file `progress`."""
    import torch

    from roarlib.data import datasets
    from roarlib.engine import rank, store, train
    from roarlib.engine.degrade import Degraded
    from roarlib.study import rankings
    from roarlib.study.machine import cores
    from roarlib.study.params import Study

    torch.set_num_threads(cores())
    study = Study(
        name="memory",
        dataset="folder:photos",
        data_dir=options.folder,
        image_size=options.size,
        model="resnet-tiny",
        epochs=1,
        batch_size=50,
        augment="area-flip",
        estimators=FAMILY,
        noise_samples=2,
        attribution_precision="auto",
        units=["pixel"],
        memory_gb=options.memory_gb,
        device=options.device,
    )

    def tell(done, total):
        Path(options.progress).write_text(str(done / total))

    if name == "prepare":
        datasets.load(study, tell)
        return
    data = datasets.load(study)
    steps, step, rows = len(data.train) // study.batch_size, [0], Degraded._degrade

    def counting(*args):  # progress within an epoch
        step[0] += 1
        tell(step[0], steps)
        return rows(*args)

    Degraded._degrade = counting
    if name == "train":
        model = train.train(study, data, 0)
        train.save_base(study, data, model)
    elif name == "attribute":
        store.make(rank.Explainer(study, data, *train.load_base(study, data)), FAMILY, tell)
    else:
        ranking = {split: rankings.load(study, "grad-sgsq", "pixel", split) for split in datasets.SPLITS}
        model = train.train(study, data, 1, ranking["train"], 50)
        accuracy = train.tested(study, model, data, ranking["test"], 50)["accuracy"]
        weights = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest()
        (study.folder / "retrained.json").write_text(json.dumps([accuracy, weights]))


def run(name: str, options, outputs: Path, kill_at: float | None = None) -> tuple[float, float, int]:
    """(seconds, peak resident memory in GB, exit status) of a stage in a process of its own, killed at a share done."""
    progress = outputs / "progress"
    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.write_text("0")
    call = [sys.executable, __file__, "--stage", name, "--folder", options.folder, "--size", str(options.size)]
    call += ["--memory-gb", str(options.memory_gb), "--device", options.device, "--progress", str(progress)]
    started = time.perf_counter()
    child = subprocess.Popen(call, env=os.environ | {"ROAR_OUTPUTS": str(outputs)})
    while kill_at is not None and child.poll() is None:
        if float(progress.read_text() or 0) >= kill_at:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status  # it is waited for
    return time.perf_counter() - started, usage.ru_maxrss / 1e6 * 1.024, status


def digests(outputs: Path) -> dict[str, str]:
    """SHA-256 of everything that a run leaves, by path."""
    files = [f for f in outputs.rglob("*") if f.is_file() and f.name not in ("progress", ".lock", "study.yaml")]
    return {str(f.relative_to(outputs)): hashlib.file_digest(f.open("rb"), "sha256").hexdigest() for f in sorted(files)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--memory-gb", type=float, default=0.05)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kill", action=argparse.BooleanOptionalAction, default=True, help="the second chain")
    parser.add_argument("--folder", help="where pictures and outputs go; default: a temporary folder")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--progress", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage(options.stage, options)
        return
    from roarlib.study.machine import hardware

    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or temporary
        with ProcessPoolExecutor() as pool:
            call = partial(paint, Path(options.folder) / "photos", options.size, options.images * 19 // 20)
            list(pool.map(call, range(options.images), chunksize=100))
        print(
            f"{hardware()}; {options.images} JPEGs of {options.size} px, "
            f"{options.images * 3 * options.size**2 / 1e9:.2f} GB decoded, memory_gb {options.memory_gb}"
        )
        whole, killed = Path(options.folder) / "whole", Path(options.folder) / "killed"
        print(f"{'stage':<11}{'seconds':>9}{'images/s':>10}{'peak GB':>9}{'killed after':>14}{'then seconds':>14}")
        peaks = {}
        for name in STAGES:
            seconds, peak, status = run(name, options, whole)
            died, died_peak, how = run(name, options, killed, 0.5) if options.kill else (0, 0, signal.SIGKILL)
            again, again_peak, ended = run(name, options, killed) if options.kill else (0, 0, 0)
            if status or ended or how != signal.SIGKILL:
                sys.exit(f"{name} ended with {status}, {how}, {ended} instead of 0, killed, 0")
            peaks[name] = round(max(peak, died_peak, again_peak), 2)
            rate = options.images / seconds
            print(f"{name:<11}{seconds:>9.1f}{rate:>10.0f}{peaks[name]:>9.2f}{died:>14.1f}{again:>14.1f}", flush=True)
        same = digests(whole) == digests(killed) if options.kill else None
    figures = {"benchmark": "memory", "images": options.images, "size": options.size, "peak_gb": max(peaks.values())}
    print(json.dumps(figures | {"peaks_gb": peaks, "same_bytes": same}))


if __name__ == "__main__":
    main()
