"""Recursive ROAR: importance recomputed on a retrained model before each further removal.

Of two inputs that say the same, a model may use only one, and a ranking made once leaves the other in place. Here the
model that explains the next removal was trained on images without the inputs removed so far (Madsen et al., "Evaluating
the Faithfulness of Importance Measures in NLP by Recursively Masking Allegedly Important Tokens and Retraining", 2022).
The result is one nested ranking, retrained and judged like any other. Unlike in Madsen et al., the models that rank
are trained only with the study's base seed, like the base model; the seeds vary the models that judge.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from roarlib.data.datasets import SPLITS
from roarlib.engine import rank, store, train
from roarlib.engine.degrade import degraded
from roarlib.engine.rank import Explainer
from roarlib.engine.store import Progress
from roarlib.study import rankings
from roarlib.study.files import new_array, part_of
from roarlib.study.machine import keep_memory
from roarlib.study.names import parent_of
from roarlib.study.params import InputError

FIRST = 1e38  # above any score; times 1 to 2, which keeps the order of what is gone, it is still a float32


def make(explainer: Explainer, estimators: list[str], progress: Progress = None) -> dict:
    """Rank every image of both splits by one recursive estimator, in all units of the study; write the files.

    explainer: of the base model, which explains the first removal; later ones are explained by models retrained at each
    of the study's recursive_steps, and the classes that these predict unless the study explains labels. Arguments and
    result are those of `store.make`. An interrupted unit is started again. Source: Madsen et al. (2022).
    """
    (estimator,) = estimators
    keep_memory()
    study, data = explainer.study, explainer.data
    started, done, (channels, height, width) = time.perf_counter(), 0, data.shape
    total = len(study.units) * (1 + len(study.recursive_steps)) * (len(data.train) + len(data.test))
    for unit in study.units:
        files = {split: rankings.path(study, estimator, unit, split) for split in SPLITS}
        source = store.rests_on(study, estimator)
        current = [store.is_current(study, estimator, split, file, source) for split, file in files.items()]
        if all(file.is_file() for file in files.values()) and all(current):
            continue
        shape = (1 if unit == "pixel" else channels, height, width)
        found = {split: new_array(part_of(files[split]), (len(data.split(split)), *shape)) for split in SPLITS}
        now, constant = explainer, dict.fromkeys(SPLITS, 0)
        for percent in [0, *study.recursive_steps]:
            if percent:
                now = _retrained(explainer, found, percent)
            for split in SPLITS:
                for count, same in _step(now, (estimator, unit, split), found[split], percent):
                    done += count
                    constant[split] += same
                    rank.refuse_constant(estimator, constant[split], len(found[split]))
                    if progress:
                        progress(done, total)
        for split, file in files.items():
            store.note(study, estimator, split, {file.name: constant[split]}, source)
            found[split].flush()
            Path(found[split].filename).replace(file)
    seconds = time.perf_counter() - started
    constant = store.shares_of_constants(explainer, estimators)
    return {"seconds": seconds, "images_per_second": done / seconds, "constant": constant}


def _retrained(explainer: Explainer, found: dict[str, np.ndarray], percent: int) -> Explainer:
    """The same data explained by a model retrained without the top `percent`, and the classes that it predicts."""
    study, data = explainer.study, explainer.data
    model = train.train(study, data, study.base_seed, found["train"], percent)
    asked = SPLITS if study.target == "predicted" else ()
    images = {split: degraded(study, data, split, found[split], percent) for split in asked}
    return replace(explainer, model=model, predictions={s: train.predict(study, model, images[s]) for s in asked})


def _step(
    explainer: Explainer, what: tuple[str, str, str], ranking: np.ndarray, percent: int
) -> Iterator[tuple[int, int]]:
    """Ranks what is left at `percent` anew, in place; what is gone keeps its rank.

    Yields, batch by batch, the number of images and, before anything is removed, how many of them had nothing to rank.

    what: estimator, unit, split.
    """
    (estimator, unit, split), name = what, parent_of(what[0])
    for index in rank.in_turn(len(ranking)).split(rank.images_at_once(explainer.batch)):
        before = torch.from_numpy(np.array(ranking[index.numpy()])).to(explainer.device)
        found = explainer.scores(split, index, [name], ranking if percent else None, percent)
        scores = rank.to_unit(found[name], unit)
        scores, first = (scores, 1e300) if scores.dtype == torch.float64 else (scores.float(), FIRST)
        if not bool((scores.abs() < first).all()):
            raise InputError(f"{estimator}: scores after {percent} percent are not finite")
        scores = torch.where(before < percent, first * (2 - before.to(scores.dtype) / 100), scores)
        ranking[index.numpy()] = explainer.ranked(scores, "value", explainer.ids(split, index), estimator)
        yield len(index), 0 if percent else rank.constants(found[name], unit)
