"""Ranks every image of a study, into memory-mapped uint8 files; an interrupted run resumes.

`study.rankings` says what a ranking is and where it is stored.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from roarlib.data.datasets import SPLITS, Split
from roarlib.engine.rank import Explainer, constants, images_at_once, in_turn, refuse_constant
from roarlib.study import own, rankings, results
from roarlib.study.files import new_array, part_of, release, write_atomically
from roarlib.study.machine import keep_memory
from roarlib.study.names import READY, group_of, reads_network, split_name, variant_of
from roarlib.study.params import InputError, Study

Progress = Callable[[int, int], None] | None  # called with (images done, of all)


def make(explainer: Explainer, estimators: list[str], progress: Progress = None) -> dict:
    """Rank every image of both splits by these estimators (one group), in all units of the study; write the files.

    Returns this call's "seconds" and "images_per_second", and "constant": (estimator, unit) -> share of the images
    whose units all scored the same, so that chance ranked them; a share above half is an InputError. Memory does not
    grow with the number of images. An interrupted run resumes at the last checkpoint and ends with the same bytes.
    `recursive.make` ranks recursive estimators.
    """
    if len({group_of(name) for name in estimators}) != 1:
        raise ValueError(f"{estimators} are not of one group, which is what shares passes and files")
    if variant_of(estimators[0]) == "recursive":
        raise ValueError(f"{estimators[0]} is ranked by recursive.make: it needs models of its own")
    keep_memory()
    data, computed, started = explainer.data, 0, time.perf_counter()
    total = len(data.train) + len(data.test)
    for before, split in ((0, "train"), (len(data.train), "test")):
        steps = _split(explainer, split, estimators)
        computed += len(data.split(split)) - next(steps)  # the first value: how many an earlier run has done
        for done in steps:
            if progress:
                progress(before + done, total)
    seconds = time.perf_counter() - started
    constant = shares_of_constants(explainer, estimators)
    return {"seconds": seconds, "images_per_second": computed / seconds, "constant": constant}


def shares_of_constants(explainer: Explainer, estimators: list[str]) -> dict[tuple[str, str], float]:
    """(estimator, unit) -> the share of all images in which there was nothing to rank, as `noted`."""
    study, total = explainer.study, len(explainer.data.train) + len(explainer.data.test)
    counted = noted(study, estimators[0], "train") | noted(study, estimators[0], "test")
    files = {(e, u): [rankings.path(study, e, u, s).name for s in SPLITS] for e in estimators for u in study.units}
    return {key: sum(counted.get(name, [0])[0] for name in names) / total for key, names in files.items()}


def _split(explainer: Explainer, name: str, estimators: list[str]) -> Iterator[int]:
    """Fills the files of one split batch by batch and yields the number of images done."""
    study, split = explainer.study, explainer.data.split(name)
    files = {(e, u): rankings.path(study, e, u, name) for e in estimators for u in study.units}
    source = rests_on(study, estimators[0])
    done = [f for f in files.values() if f.is_file() and is_current(study, estimators[0], name, f, source)]
    files = {key: file for key, file in files.items() if file not in done}  # what is done is kept
    for file in files.values():
        file.unlink(missing_ok=True)  # of another version of the function, or another network
    estimators = [e for e in estimators if any(key[0] == e for key in files)]
    if not files:
        yield len(split)
        return
    folder = next(iter(files.values())).parent
    checkpoint = folder / f"{name}{study.of_base}.progress.json"  # one per group, split and base model
    parts, state = _open_parts(files, split, checkpoint, source)
    first, constant, explainer.batch = state["in_turn"], state["constant"], state["batch"] or explainer.batch
    yield first
    saved, order = time.monotonic(), in_turn(len(split))
    while first < len(split):
        index = order[first : first + images_at_once(explainer.batch)]
        try:
            scores = explainer.scores(name, index, estimators)
        except torch.OutOfMemoryError:
            if explainer.batch == 1:
                raise InputError(f"{estimators[0]}: GPU memory too small: lower workers or image_size") from None
            explainer.batch //= 2
            torch.cuda.empty_cache()
            continue
        ids = explainer.ids(name, index)
        for (estimator, unit), part in parts.items():
            part[index.numpy()] = explainer.ranked(scores[estimator], unit, ids, estimator)
            constant[files[estimator, unit].name] += constants(scores[estimator], unit)
            if not explainer.untrained or split_name(estimator)[0] not in READY:  # whose maps may still be 0
                refuse_constant(estimator, constant[files[estimator, unit].name], len(split))
        first += len(index)
        yield first
        if time.monotonic() - saved > 20:
            _checkpoint(checkpoint, parts, state | {"in_turn": first, "batch": explainer.batch, "constant": constant})
            saved = time.monotonic()
    note(study, estimators[0], name, constant, source)
    for key, part in parts.items():
        part.flush()
        part_of(files[key]).replace(files[key])
    checkpoint.unlink(missing_ok=True)


def _notes_file(study: Study, estimator: str, split: str) -> Path:
    return rankings.path(study, estimator, "", "").with_name(f"{split}{study.of_base}.constant.json")


def rests_on(study: Study, estimator: str) -> list[str | None]:
    """What an estimator's rankings rest on: `own.source`, and `results.network` or, for one that reads none, None."""
    return [own.source(study, estimator), results.network(study) if reads_network(estimator) else None]


def is_current(study: Study, estimator: str, split: str, file: Path, source: list) -> bool:
    """Whether a ranking file was made from `source` (of `rests_on`), as far as an earlier version has noted that."""
    made = noted(study, estimator, split).get(file.name, [0])[1:]
    return made == source[: len(made)]


def note(study: Study, estimator: str, split: str, counts: dict[str, int], source: list) -> None:
    """Store what `noted` returns, before the rankings that it is about get their final names.

    counts: ranking file -> images in which there was nothing to rank. source: `rests_on` when ranking began;
    InputError if it has changed since.
    """
    if rests_on(study, estimator) != source:
        raise InputError(f"{estimator}: its file or the network has changed while it was ranked; run it again")
    found = noted(study, estimator, split) | {file: [count, *source] for file, count in counts.items()}
    write_atomically(_notes_file(study, estimator, split), json.dumps(found, indent=1))


def noted(study: Study, estimator: str, split: str) -> dict[str, list]:
    """For each ranking file of a group and split: in how many images there was nothing to rank, and `rests_on`."""
    file = _notes_file(study, estimator, split)
    return json.loads(file.read_text()) if file.is_file() else {}


def _open_parts(files: dict, split: Split, checkpoint: Path, source: list) -> tuple[dict, dict]:
    """Memory-mapped part files, and where to resume: images done of `in_turn`, batch size, constants; 0 at first."""
    names = sorted(file.name for file in files.values())
    if checkpoint.is_file() and all(part_of(file).is_file() for file in files.values()):
        state = json.loads(checkpoint.read_text())
        if state["files"] == names and state.get("source") == source and "in_turn" in state:  # else of an old version
            return {key: np.lib.format.open_memmap(part_of(file), mode="r+") for key, file in files.items()}, state
    checkpoint.unlink(missing_ok=True)  # it belongs to parts that are replaced here
    channels, height, width = split.shape
    shapes = {"pixel": (len(split), 1, height, width), "value": (len(split), channels, height, width)}
    parts = {key: new_array(part_of(file), shapes[key[1]]) for key, file in files.items()}
    return parts, {"in_turn": 0, "batch": 0, "constant": dict.fromkeys(names, 0), "files": names, "source": source}


def _checkpoint(file: Path, parts: dict, state: dict) -> None:
    for part in parts.values():
        part.flush()
        release(part)
    write_atomically(file, json.dumps(state))
