"""Recursive ROAR: importance recomputed on a retrained model before each further removal.

Of two inputs that say the same a model may use one, and a ranking made once leaves the other in its place. Here the
model that explains the next removal was trained on images without the inputs removed so far (Madsen et al., "Evaluating
the Faithfulness of Importance Measures in NLP by Recursively Masking Allegedly Important Tokens and Retraining", 2022).
The result is one nested ranking, retrained and judged like any other. Unlike there, the models that rank are trained
with the study's base seed alone, as the base model is; the seeds vary the judging models.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from roarlib import models, rankings, train
from roarlib.data import SPLITS, Data, image_ids
from roarlib.degrade import degraded
from roarlib.device import device_of, keep_memory
from roarlib.names import parent_of
from roarlib.params import InputError, Study
from roarlib.remove import to_unit
from roarlib.stored import new_file

FIRST = 1e38  # above any score that is ranked; times 1 to 2, in the order of what is gone, still a float32


def make(
    study: Study,
    data: Data,
    model: torch.nn.Module,
    predictions: dict[str, np.ndarray],
    estimators: list[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Rank every image of both splits by one recursive estimator, in all units of the study; write the files.

    model, predictions: the base model and its classes, which explain the first removal; later ones are explained by
    models retrained at each of the study's recursive_steps, with the classes that these predict. Arguments and result
    are those of `rankings.make`. An interrupted unit starts again. Source: Madsen et al. (2022).
    """
    (estimator,) = estimators
    keep_memory()
    device, started, done = device_of(study), time.perf_counter(), 0
    total = len(study.units) * (1 + len(study.recursive_steps)) * (len(data.train) + len(data.test))
    for unit in study.units:
        files = {split: rankings.path(study, estimator, unit, split) for split in SPLITS}
        if all(file.is_file() for file in files.values()):
            continue
        now, classes, found = model, predictions, dict.fromkeys(SPLITS)
        for percent in [0, *study.recursive_steps]:
            if percent:
                now = train.train(study, data, study.base_seed, found["train"], percent)
                images = {split: degraded(study, data, split, found[split], percent) for split in SPLITS}
                classes = {split: train.predict(study, now, images[split]) for split in SPLITS}
            folded = models.folded(now).to(device, memory_format=torch.channels_last)
            for split in SPLITS:
                found[split] = found[split] if percent else _file(files[split], data, unit, split)
                for index in _step(study, data, folded, classes, estimator, unit, split, found[split], percent):
                    done += index.stop - index.start
                    if progress:
                        progress(done, total)
        for split, file in files.items():
            found[split].flush()
            Path(found[split].filename).replace(file)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "images_per_second": done / seconds}


def _file(file: Path, data: Data, unit: str, split: str) -> np.memmap:
    channels, height, width = data.shape
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(data.split(split)), 1 if unit == "pixel" else channels, height, width)
    return new_file(file.with_name(f".{file.name}.part"), shape)


def _step(study, data, model, classes, estimator, unit, split, ranking, percent):
    """Generator: ranks what is left at `percent` anew, in place; what is gone keeps its place. Yields each batch."""
    device, name = device_of(study), parent_of(estimator)
    batch = rankings.batch_size(device, data.shape)
    for first in range(0, len(ranking), count := rankings.images_at_once(batch)):
        index = slice(first, min(first + count, len(ranking)))
        before = torch.from_numpy(np.array(ranking[index])).to(device)
        gone = ranking if percent else None
        found = rankings.explain_stored(
            study, data, model, split, classes[split], [name], index, device, batch, gone, percent
        )
        scores = to_unit(found[name], unit).float()
        if not bool((scores.abs() < FIRST).all()):
            raise InputError(f"{estimator}: scores after {percent} percent are not finite")
        scores = torch.where(before < percent, FIRST * (2 - before.float() / 100), scores)
        ids = image_ids(split, index, device)
        ranking[index] = rankings.ranked(scores, "value", ids, study, estimator).cpu().numpy()
        yield index
