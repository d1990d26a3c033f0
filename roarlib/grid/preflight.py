"""Before a study runs: is everything there, does everything fit together, and how long will it take?"""

import dataclasses
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from timeit import timeit

import torch

from roarlib.data import datasets
from roarlib.engine import maps, models, rank, train
from roarlib.engine.estimators import grad
from roarlib.engine.store import Progress
from roarlib.grid import cluster
from roarlib.grid.cells import Cell, Grid
from roarlib.grid.rehearsal import rehearse, sweeps
from roarlib.study import rankings, results
from roarlib.study.machine import device_of, threads
from roarlib.study.names import DEPTHS, MAPS, group_of, split_name, variant_of
from roarlib.study.params import InputError, Study

STEPS = 100  # of training, below which the user is told
TRIED = 200  # pictures of each split that are decoded to try a study before it is prepared


def check(
    study: Study, progress: Progress = None, say: Callable[[str], None] = lambda line: None, whole: bool = True
) -> tuple[datasets.Data, dict[str, float]]:
    """Load the data and rehearse the run on a few images; InputError names what does not fit.

    Returns the data, prepared first if need be (`progress` counts images), and what `rehearse` measured. say: called
    with notes. whole: False if pictures are not to be prepared yet: a few are decoded for this alone, and finished maps
    are not checked.
    """
    device_of(study)
    _check_folder(study)
    results.check_sources(study)
    found, names = _whole(study, progress, say) if whole else _few(study), study.estimators
    if not whole:
        names = [name for name in names if not MAPS.fullmatch(split_name(name)[0])] or ["random"]
    spent = rehearse(study.model_copy(update={"estimators": names}), found, say)
    if (steps := study.epochs * max(1, datasets.sizes(study)[0]["train"] // study.batch_size)) < STEPS:
        said = f"{steps} step{'s' * (steps > 1)} of training in all"
        say(f"note: {said} may teach a network nothing: lower batch_size, or raise epochs")
    if "random" not in study.estimators:
        say("note: `random` is not among the estimators; without it no verdict is possible")
    return found, spent


def _whole(study: Study, progress: Progress, say: Callable[[str], None]) -> datasets.Data:
    """All data, prepared if need be, and what `check` finds out about them and about finished maps."""
    found = datasets.current(study, progress)
    if set(results.known(study)["data"].dropna()) - {found.digest, ""}:
        raise InputError(
            f"{study.folder} holds results of other images or labels than {study.dataset} has now: give the study "
            "another name, or delete that folder"
        )
    for line in datasets.notes(study):
        if not re.fullmatch(r"\w+: \d+ images", line):  # more than a count
            say(f"note: {line.strip()}")
    maps.refuse_variants(study)
    for base in sorted({split_name(name)[0] for name in study.estimators}):
        if MAPS.fullmatch(base) and (note := maps.check(study, base, found)):
            say(note)
    return found


def _few(study: Study) -> datasets.Data:
    """Some pictures of each split, prepared in a temporary folder, which their memory maps outlive."""
    counts, _, classes = datasets.sizes(study)
    tried = {"train": max(TRIED, classes), "test": TRIED}  # taken evenly, so that every class is there to train on
    with TemporaryDirectory() as folder:
        few = study.model_copy(update={f"{split}_images": min(count, tried[split]) for split, count in counts.items()})
        few._home = Path(folder)
        return datasets.load(few)


def _check_folder(study: Study) -> None:
    """InputError unless the outputs folder can be written and has room for the images and rankings still to come."""
    folder = study.folder
    there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    try:
        with TemporaryFile(dir=there, buffering=0) as probe:
            probe.write(b"x" * 4096)
    except OSError as error:
        raise InputError(f"cannot write under {folder}: {error.strerror}") from None
    images, ranked = disk_bytes(study)
    free = shutil.disk_usage(there).free
    if images + ranked > free:
        raise InputError(
            f"{folder}: prepared images need {images / 1e9:.1f} GB and rankings {ranked / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free; fewer estimators at a time, unit pixel or rankings: recompute need less"
        )


def disk_bytes(study: Study) -> tuple[int, int]:
    """Bytes still to be written: of prepared images, and of rankings (one byte a unit, image, estimator and unit).

    With `rankings: recompute`, only as many groups as there are workers have theirs at a time: the largest are counted.
    """
    counts, (channels, height, width), _ = datasets.sizes(study)
    area, groups = height * width, {}
    for unit in study.units:
        for name, base, split in product(study.estimators, map(study.based, study.base_seeds), counts):
            if not rankings.path(base, name, unit, split).is_file():
                key = base.base_seed, group_of(name)
                groups[key] = groups.get(key, 0) + counts[split] * area * (1 if unit == "pixel" else channels)
    images = 0 if (datasets.prepared(study) / "meta.json").is_file() else sum(counts.values()) * channels * area
    at_once = cluster.machine(study)[0] if study.rankings == "recompute" else len(groups)
    return images, sum(sorted(groups.values())[-at_once:])


def seconds_left(grid: Grid, found: datasets.Data, todo: list[Cell], explaining: dict[str, float]) -> float:
    """Estimated seconds until the cells `todo` are done: from measured rows where there are any, else a short trial.

    found: the study's data, or a few of its images. explaining: seconds per image by group, of `rehearse`.
    """
    study, trial, spent, counts = grid.study, None, [], datasets.sizes(grid.study)[0]
    (workers, _), done = cluster.machine(study), results.rows(study)
    for cell in todo:
        if cell.rows[0].estimator == "clean" and cell.needs:
            continue  # the base model's training leaves its row
        alike = done[(done.measure == cell.measure) & done.seconds.notna()]
        if cell.measure == "ranking":  # a base's sweep costs what its passes cost: only the same group is alike
            alike = alike[alike.cell == cell.name]
        trial = trial or (None if len(alike) else _trial(study, found))
        each = float(alike.seconds.mean()) if len(alike) else _cost(study, counts, cell, explaining, *trial)
        spent.append(len(grid.missing(cell)) * each + 1.5)  # seconds of kernel start, imports and loading
    return max(sum(spent) / workers, max(spent, default=0.0))


def _cost(
    study: Study, counts: dict[str, int], cell: Cell, explaining: dict[str, float], step: float, one_pass: float
) -> float:
    """Seconds of one row, from those of a training step and of one image's gradient pass; explaining: as above."""
    images = counts["train"] + counts["test"]
    inference = one_pass / 3 * counts["test"]
    training = study.epochs * max(1, counts["train"] // study.batch_size) * step
    if cell.measure == "sanity":
        images = study.sanity_images * len(DEPTHS)
    elif cell.measure != "ranking":
        return inference if cell.measure == "deletion" else training + inference
    names = cell.parameters["estimators"]
    group, (base, _) = group_of(names[0]), split_name(names[0])
    passes = 0 if group == "controls" else sweeps(study, names) * (study.ig_steps if base == "ig" else 1)
    seconds = explaining.get(group, passes * one_pass)
    if variant_of(names[0]) == "recursive":  # explained, trained, explained .., each unit
        sweep = images * (seconds + 1e-4)
        return sweep + len(study.recursive_steps) * (sweep + training)
    return images * (seconds / len(cell.rows) + 1e-4)  # rows share the passes, not the sorting


def _trial(study: Study, found: datasets.Data) -> tuple[float, float]:
    """Seconds of one training step, and of one gradient pass of one image, measured here."""
    with threads(cluster.machine(study)[1]):
        few = datasets.Split(found.train.images[: 8 * study.batch_size], found.train.labels[: 8 * study.batch_size])
        little = dataclasses.replace(found, train=few, test=few)
        short = study.model_copy(update={"epochs": 1, "batch_size": min(study.batch_size, len(few))})
        model = train.train(short, little, 0)  # a warm-up, too
        steps = max(1, len(few) // short.batch_size)
        step = timeit(lambda: train.train(short, little, 0), number=1) / steps * study.batch_size / short.batch_size
        device = device_of(study)
        count = rank.batch_size(device, found.shape)
        x = torch.zeros(count, *found.shape, device=device).contiguous(memory_format=models.layout(model))
        y = torch.zeros(count, dtype=torch.int64, device=device)
        grad(model, x, y)  # a warm-up
        return step, timeit(lambda: grad(model, x, y), number=3) / (3 * count)
