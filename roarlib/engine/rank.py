"""Rankings on disk: every image of a split explained, ranked and written to memory-mapped uint8 files, resumable."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from roarlib import attribute, models
from roarlib.data import Data, Split, image_ids
from roarlib.degrade import Degraded
from roarlib.device import device_of, keep_memory
from roarlib.names import group_of, variant_of
from roarlib.params import InputError, Study, write_atomically
from roarlib.remove import rank, to_unit
from roarlib.stored import new_file, release
from roarlib.train import load_base


def path(study: Study, estimator: str, unit: str, split: str) -> Path:
    """Where a ranking lies: 02-attribute/<group>/<estimator>-<unit>-<split>.npy under the study's folder."""
    folder = study.folder / "02-attribute" / group_of(estimator)
    return folder / f"{estimator.replace(':', '.')}-{unit}-{split}.npy"


def ready(study: Study, unit: str, split: str) -> list[str]:
    """The study's estimators whose rankings of a split are there."""
    return [name for name in study.estimators if path(study, name, unit, split).is_file()]


def load(study: Study, estimator: str, unit: str, split: str) -> np.ndarray:
    """A ranking, memory-mapped: uint8 (N, C, H, W), or (N, 1, H, W) for unit pixel. LookupError if it is not there."""
    file = path(study, estimator, unit, split)
    if not file.is_file():
        raise LookupError(f"no {unit} ranking by {estimator} yet; `roar run params/{study.name}.yaml` makes it")
    return np.load(file, mmap_mode="c", allow_pickle=False)


def make(
    study: Study,
    data: Data,
    model: torch.nn.Module,
    predictions: dict[str, np.ndarray],
    estimators: list[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Rank every image of both splits by these estimators (one group), in all units of the study; write the files.

    predictions: split -> int64 (N,), the base model's classes, which are what is explained. progress: called with
    (images done, of all). Returns {"seconds", "images_per_second"} of this call. Memory does not grow with the number
    of images. A run that was interrupted goes on at the last checkpoint, with the same bytes in the end. Recursive
    estimators are ranked by the module of that name.
    """
    if len({group_of(name) for name in estimators}) != 1:
        raise ValueError(f"{estimators} are not of one group, which is what shares passes and files")
    if variant_of(estimators[0]) == "recursive":
        raise ValueError(f"{estimators[0]} is ranked by recursive.make: it needs models of its own")
    device = device_of(study)
    keep_memory()
    model = models.folded(model).to(device, memory_format=torch.channels_last)
    total, computed, started = len(data.train) + len(data.test), 0, time.perf_counter()
    for before, split in ((0, "train"), (len(data.train), "test")):
        steps = _split(study, data, model, predictions[split], estimators, split, device)
        computed += len(data.split(split)) - next(steps)  # first it says how much an earlier run left
        for done in steps:
            if progress:
                progress(before + done, total)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "images_per_second": computed / seconds}


def _split(study, data, model, predictions, estimators, part_name, device):
    """Generator: fills the files of one split batch by batch and yields the number of images done."""
    split = data.split(part_name)
    files = {(e, u): path(study, e, u, part_name) for e in estimators for u in study.units}
    files = {key: file for key, file in files.items() if not file.is_file()}  # what is done stays
    estimators = [e for e in estimators if any(key[0] == e for key in files)]
    if not files:
        yield len(split)
        return
    checkpoint = next(iter(files.values())).parent / f"{part_name}.progress.json"  # one a group and split
    parts, first, batch = _open_parts(files, split, checkpoint)
    batch = batch or batch_size(device, data.shape)
    yield first
    saved = time.monotonic()
    while first < len(split):
        index = slice(first, min(first + images_at_once(batch), len(split)))
        try:
            scores = explain_stored(study, data, model, part_name, predictions, estimators, index, device, batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()
            continue
        ids = image_ids(part_name, index, device)
        for (estimator, unit), part in parts.items():
            part[index] = ranked(scores[estimator], unit, ids, study, estimator).cpu().numpy()
        if first == 0:
            _refuse_constant(scores)
        first = index.stop
        yield first
        if time.monotonic() - saved > 20:
            _checkpoint(checkpoint, parts, first, batch)
            saved = time.monotonic()
    for key, part in parts.items():
        part.flush()
        _part_of(files[key]).replace(files[key])
    checkpoint.unlink(missing_ok=True)


def explain_stored(
    study: Study,
    data: Data,
    model,
    part_name: str,
    predictions: np.ndarray,
    estimators: list[str],
    index: slice,
    device: torch.device,
    batch: int,
    ranking: np.ndarray | None = None,
    percent: int = 0,
) -> dict[str, torch.Tensor]:
    """Scores (B, C, H, W) by name of the images `index` of a split, with the study's settings: attribute.explain.

    ranking, percent: what is removed from the images before, where they are not to be explained untouched.
    """
    split = data.split(part_name)
    mean, std = torch.from_numpy(data.mean).to(device), torch.from_numpy(data.std).to(device)
    images = Degraded(part_name, data, device, ranking, percent, room=0).images(index)
    masks = None if split.masks is None else torch.from_numpy(split.masks[index]).to(device)
    reference = (-mean / std)[:, None, None] if study.ig_reference == "black" else torch.zeros(1, device=device)
    return attribute.explain(
        study,
        model,
        images.contiguous(memory_format=torch.channels_last),
        torch.from_numpy(predictions[index]).to(device),
        estimators,
        ids=image_ids(part_name, index, device),
        masks=masks,
        reference=reference,
        batch=batch,
    )


def of_images(
    study: Study, data: Data, estimators: list[str], split: str, index: slice, unit: str, base: tuple | None = None
) -> dict[str, np.ndarray]:
    """Rankings of a few images, computed now with the base model and kept nowhere: name -> uint8 (B, C or 1, H, W).

    For trying an estimator before any retraining. base: what `load_base` gave, where it is at hand. LookupError if the
    base model is not trained yet; InputError if an estimator gives what cannot be ranked.
    """
    device = device_of(study)
    model, predictions = base or load_base(study, data)
    found = explain_stored(study, data, model, split, predictions[split], estimators, index, device, 256)
    _refuse_constant(found)
    ids = image_ids(split, index, device)
    return {name: ranked(found[name], unit, ids, study, name).cpu().numpy() for name in estimators}


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of removed units that two rankings of one image have in common, at t = 1 .. 100: float (100,).

    2 |A and B| / (|A| + |B|) (Dice, Ecology 26, 1945), so that Random, which removes t percent only on average, counts
    as the others do. Where both remove equally many it is the share of either's units that the other removes too, and
    t / 100 is its mean for unrelated rankings. NaN where nothing is removed.
    """
    one, other, both = (np.bincount(x.reshape(-1), minlength=100).cumsum() for x in (a, b, np.maximum(a, b)))
    return np.divide(2 * both, one + other, out=np.full(100, np.nan), where=one + other > 0)


def batch_size(device: torch.device, shape: tuple[int, int, int]) -> int:
    """How many inputs a model pass takes: what keeps a CPU's cores busy (256 at 32 x 32), or fills a GPU."""
    area = shape[1] * shape[2]
    return max(8, 256 * 1024 // area) if device.type == "cpu" else max(64, 4_000_000 // area)


def images_at_once(batch: int) -> int:
    """How many images share passes of that many inputs: few, so that checkpoints come often; copies fill the rest."""
    return max(1, batch // 4)


def _refuse_constant(scores: dict[str, torch.Tensor]) -> None:
    """InputError if an estimator scores all inputs alike in most images of a batch; a few dead images may be."""
    for estimator, values in scores.items():
        flat = values.flatten(1)
        if values.dtype != torch.uint8 and bool((flat == flat[:, :1]).all(1).float().mean() > 0.5):
            raise InputError(f"{estimator} gives every input of an image the same score: there is nothing to rank")


def ranked(scores: torch.Tensor, unit: str, ids: torch.Tensor, study: Study, estimator: str) -> torch.Tensor:
    """Scores of a batch as a ranking of this unit; InputError names the estimator if they are not finite."""
    if scores.dtype == torch.uint8:
        return to_unit(scores, unit)
    try:
        return rank(to_unit(scores, unit), ids, study.base_seed)
    except ValueError as error:
        raise InputError(f"{estimator}: {error}") from None


def _open_parts(files: dict, split: Split, checkpoint: Path) -> tuple[dict, int, int]:
    """Memory-mapped part files, the image to go on at and the batch size then: 0 and 0 for a fresh start."""
    shapes = {
        key: (len(split), 1 if key[1] == "pixel" else split.images.shape[1], *split.images.shape[2:]) for key in files
    }
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(file.name for file in files.values())
    if checkpoint.is_file() and all(_part_of(file).is_file() for file in files.values()):
        state = json.loads(checkpoint.read_text())
        if state["files"] == names:
            return (
                {k: np.lib.format.open_memmap(_part_of(f), mode="r+") for k, f in files.items()},
                state["done"],
                state["batch"],
            )
    checkpoint.unlink(missing_ok=True)  # it speaks of parts that end here
    return {key: new_file(_part_of(file), shapes[key]) for key, file in files.items()}, 0, 0


def _checkpoint(file: Path, parts: dict, done: int, batch: int) -> None:
    for part in parts.values():
        part.flush()
        release(part)
    names = sorted(Path(part.filename).name.removeprefix(".").removesuffix(".part") for part in parts.values())
    write_atomically(file, json.dumps({"done": done, "batch": batch, "files": names}))


def _part_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")
