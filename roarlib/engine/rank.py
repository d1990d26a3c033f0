"""From scores to rankings: every image explained, ranked and written to memory-mapped uint8 files, resumable.

`study.rankings` says what a ranking is and where it lies.
"""

import inspect
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from roarlib.data.datasets import SPLITS, Data, Split
from roarlib.engine import attribute, cams, draws, from_captum, layers, models
from roarlib.engine.degrade import Degraded, image_ids
from roarlib.engine.estimators import built_in
from roarlib.study import own, rankings
from roarlib.study.files import new_array, part_of, release, write_atomically
from roarlib.study.machine import device_of, keep_memory
from roarlib.study.names import READY, group_of, split_name, variant_of
from roarlib.study.params import InputError, Study

Progress = Callable[[int, int], None] | None  # called with (images done, of all)


def to_unit(scores: torch.Tensor, unit: str) -> torch.Tensor:
    """Scores per ranked unit: (N, C, H, W) stays for `value`; `pixel` sums the channels to (N, 1, H, W).

    A uint8 tensor is a ranking already (see estimators.random); for `pixel` its first channel stands for the pixel.
    """
    if unit == "value":
        return scores
    return scores[:, :1] if scores.dtype == torch.uint8 else scores.sum(1, keepdim=True)


def rank(scores: torch.Tensor, ids: torch.Tensor, seed: int) -> torch.Tensor:
    """Rank the units of every image, largest score first, ties in an order drawn from seed and image.

    scores: float (N, C, H, W), finite. ids: int64 (N,), from `degrade.image_ids`. Returns uint8 of the same shape,
    0..99. Raises ValueError for NaN or infinite scores. One sort of 64-bit keys: the score's bits in ascending integer
    order above, 32 random bits below.
    """
    flat = scores.detach().reshape(len(scores), -1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    if not torch.isfinite(flat).all():
        bad = int(ids[~torch.isfinite(flat).all(1)][0]) % (1 << 40)  # above are the split's bits
        raise ValueError(f"scores of image {bad} are NaN or infinite; an importance must be a finite number")
    units = flat.shape[1]
    ties = draws.bits(seed, draws.TIES, ids, 0, units) & 0xFFFFFFFF
    if flat.dtype == torch.float64:  # no key holds its 64 bits and the ties': sort by these, then stably by the scores
        shuffled = ties.argsort(1)
        rank_to_unit = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    else:
        order = (-flat + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0: they tie
        order = torch.where(order < 0, order ^ 0x7FFFFFFF, order)  # negative floats ascend backwards as integers
        rank_to_unit = ((order << 32) | ties).argsort(1)
    rank_of_value = torch.arange(units, device=flat.device)
    value = ((100 * (rank_of_value + 1) + units - 1) // units - 1).to(torch.uint8)  # (K,)
    ranking = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    ranking.scatter_(1, rank_to_unit, value.expand(len(flat), units))
    return ranking.reshape(scores.shape)


@dataclass
class Explainer:
    """A study's data explained by one model; what every ranking is made with.

    Our own estimators explain a faster copy of it, checked to be the same function: `models.folded`.

    model: the network to explain, which is moved to the study's device. predictions: split -> int64 (N,), the classes
    that are explained, but where the study asks for the label. batch: inputs a model pass takes; 0: what suits the
    device. untrained: as in a rehearsal.
    """

    study: Study
    data: Data
    model: torch.nn.Module
    predictions: dict[str, np.ndarray]
    batch: int = 0
    untrained: bool = False

    def __post_init__(self):
        self.device = device_of(self.study)
        self.batch = self.batch or batch_size(self.device, self.data.shape)
        self.layout = models.layout(self.model)
        self.model = self.model.to(self.device, memory_format=self.layout)
        self.folded = models.folded(self.model, self._images("train", slice(0, 2))).to(memory_format=self.layout)

    def ids(self, split: str, index: slice) -> torch.Tensor:
        return image_ids(split, index, self.device)

    def targets(self, split: str, index: slice) -> torch.Tensor:
        """The classes that are explained of these images, int64 (B,)."""
        explained = self.predictions[split] if self.study.target == "predicted" else self.data.split(split).labels
        return torch.from_numpy(np.array(explained[index])).to(self.device)

    def baseline(self, word: str) -> torch.Tensor:
        """What a word for a baseline stands for, normalised, broadcastable to images; InputError for any other word.

        mean: the training set's. black. grey: halfway to white. train:20: so many training images, spread evenly.
        """
        kind, _, count = word.partition(":")
        mean, std = self.data.scale
        values = {"mean": self.data.fill, "black": -mean / std, "grey": (np.float32(0.5) - mean) / std}
        if word in values:
            return torch.from_numpy(values[word]).to(self.device)[:, None, None]
        if kind != "train" or not count.isdecimal() or int(count) == 0:
            raise InputError(f"baselines: '{word}' is not mean, black, grey or train:20 (so many training images)")
        chosen = np.unique(np.linspace(0, len(self.data.train) - 1, int(count)).astype(int))
        return torch.cat([self._images("train", slice(k, k + 1)) for k in chosen.tolist()])

    def _images(self, split: str, index: slice, gone=None, percent: int = 0) -> torch.Tensor:
        images = Degraded(split, self.data, self.device, gone, percent, room=0).images(index)
        return images.contiguous(memory_format=self.layout)

    def scores(self, split: str, index: slice, estimators: list[str], gone=None, percent: int = 0) -> dict:
        """Scores (B, C, H, W) by name of the images `index` of a split, with the study's settings.

        gone, percent: a ranking and how much of it is removed from the images first; None: they are untouched.
        """
        images, targets = self._images(split, index, gone, percent), self.targets(split, index)
        masks = self.data.split(split).masks
        masks = None if masks is None else torch.from_numpy(masks[index]).to(self.device)
        inputs = attribute.Batch(images, targets, self.ids(split, index), masks)
        made = {}
        for model, ours in ((self.folded, True), (self.model, False)):  # code that is not ours gets the very model
            names = [n for n in estimators if built_in(split_name(n)[0]) == ours]
            if names:
                made |= attribute.explain(self.study, model, inputs, names, self.baseline, self.batch)
        return made

    def ranked(self, scores: torch.Tensor, unit: str, ids: torch.Tensor, estimator: str) -> np.ndarray:
        """Scores of a batch as a ranking of this unit; InputError names the estimator if they are not finite."""
        units = to_unit(scores, unit)
        try:
            found = units if units.dtype == torch.uint8 else rank(units, ids, self.study.base_seed)
        except ValueError as error:
            raise InputError(f"{estimator}: {error}") from None
        return attribute.mixed(estimator, found, ids, self.study.base_seed).cpu().numpy()

    def gap(self, base: str) -> float | None:
        """How far a base that promises completeness misses it on a few test images: `from_captum.gap`."""
        count = min(8, images_at_once(self.batch), len(self.data.test))
        index, options = slice(0, count), self.study.estimator_options.get(base, {})
        targets = self.targets("test", index)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with models.evaluating(self.model), draws.seeded(self.study.base_seed), exact:
            images = self._images("test", index).contiguous()
            return from_captum.gap(base, options, self.model, images, targets, self.baseline)

    def layer(self, base: str) -> str | None:
        """The layer that a base reads by itself; None where it reads none, or its options name one."""
        function = from_captum.method(base).__init__ if base.startswith("captum:") else cams.READY.get(base)
        given = self.study.estimator_options.get(base, {})
        if function is None or "layer" in given or "layer" not in inspect.signature(function).parameters:
            return None
        with models.evaluating(self.model):
            return layers.find(self.model, self._images("train", slice(0, 1)))[0]

    def unguided(self) -> dict[str, int]:
        """Activations of the model that Guided Backprop leaves as they are: name -> how many."""
        with layers.Guided() as mode, models.evaluating(self.model), torch.no_grad():
            self.model(self._images("train", slice(0, 1)))
        return dict(mode.others)

    def rankings(self, split: str, index: slice, estimators: list[str], unit: str) -> dict[str, np.ndarray]:
        """Rankings of a few images, computed now and kept nowhere: name -> uint8 (B, C or 1, H, W).

        For trying an estimator before any retraining; InputError if one gives what cannot be ranked.
        """
        found, ids = self.scores(split, index, estimators), self.ids(split, index)
        for name in estimators:
            refuse_constant(name, constants(found[name], unit), len(found[name]))
        return {name: self.ranked(found[name], unit, ids, name) for name in estimators}


def batch_size(device: torch.device, shape: tuple[int, int, int]) -> int:
    """How many inputs a model pass takes: what keeps a CPU's cores busy (256 at 32 x 32), or fills a GPU."""
    area = shape[1] * shape[2]
    return max(8, 256 * 1024 // area) if device.type == "cpu" else max(64, 4_000_000 // area)


def images_at_once(batch: int) -> int:
    """How many images share passes of that many inputs: few, so that checkpoints come often; copies fill the rest."""
    return max(1, batch // 4)


def make(explainer: Explainer, estimators: list[str], progress: Progress = None) -> dict:
    """Rank every image of both splits by these estimators (one group), in all units of the study; write the files.

    Returns of this call {"seconds", "images_per_second"}, and {"constant"}: (estimator, unit) -> share of the images
    whose units all scored the same, so that chance ranked them. Above half it is an InputError. Memory does not grow
    with the number of images. An interrupted run resumes at the last checkpoint, with the same bytes in the end.
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
        computed += len(data.split(split)) - next(steps)  # first it says how much an earlier run left
        for done in steps:
            if progress:
                progress(before + done, total)
    seconds = time.perf_counter() - started
    constant = shares_of_constants(explainer, estimators)
    return {"seconds": seconds, "images_per_second": computed / seconds, "constant": constant}


def shares_of_constants(explainer: Explainer, estimators: list[str]) -> dict[tuple[str, str], float]:
    """(estimator, unit) -> the share of all images in which there was nothing to rank, by what is `noted`."""
    study, total = explainer.study, len(explainer.data.train) + len(explainer.data.test)
    counted = noted(study, estimators[0], "train") | noted(study, estimators[0], "test")
    files = {(e, u): [rankings.path(study, e, u, s).name for s in SPLITS] for e in estimators for u in study.units}
    return {key: sum(counted.get(name, [0])[0] for name in names) / total for key, names in files.items()}


def _split(explainer: Explainer, name: str, estimators: list[str]) -> Iterator[int]:
    """Fills the files of one split batch by batch and yields the number of images done."""
    study, split = explainer.study, explainer.data.split(name)
    files = {(e, u): rankings.path(study, e, u, name) for e in estimators for u in study.units}
    source, before = own.source(study, estimators[0]), noted(study, estimators[0], name)
    done = [f for f in files.values() if f.is_file() and before.get(f.name, [0, source])[1] == source]
    files = {key: file for key, file in files.items() if file not in done}  # what is done stays
    for file in files.values():
        file.unlink(missing_ok=True)  # of another version of the function
    estimators = [e for e in estimators if any(key[0] == e for key in files)]
    if not files:
        yield len(split)
        return
    folder = next(iter(files.values())).parent
    checkpoint = folder / f"{name}{study.of_base}.progress.json"  # one per group, split and base model
    parts, state = _open_parts(files, split, checkpoint, source)
    first, constant, explainer.batch = state["done"], state["constant"], state["batch"] or explainer.batch
    yield first
    saved = time.monotonic()
    while first < len(split):
        index = slice(first, min(first + images_at_once(explainer.batch), len(split)))
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
            part[index] = explainer.ranked(scores[estimator], unit, ids, estimator)
            constant[files[estimator, unit].name] += constants(scores[estimator], unit)
            if not explainer.untrained or split_name(estimator)[0] not in READY:  # whose maps may be 0 so early
                refuse_constant(estimator, constant[files[estimator, unit].name], len(split))
        first = index.stop
        yield first
        if time.monotonic() - saved > 20:
            _checkpoint(checkpoint, parts, state | {"done": first, "batch": explainer.batch, "constant": constant})
            saved = time.monotonic()
    note(study, estimators[0], name, constant, source)
    for key, part in parts.items():
        part.flush()
        part_of(files[key]).replace(files[key])
    checkpoint.unlink(missing_ok=True)


def _notes_file(study: Study, estimator: str, split: str) -> Path:
    return rankings.path(study, estimator, "", "").with_name(f"{split}{study.of_base}.constant.json")


def note(study: Study, estimator: str, split: str, counts: dict[str, int], source: str | None) -> None:
    """Keep what `noted` gives, before the rankings that it speaks of get their names.

    source: when ranking began; InputError if it is another by now.
    """
    if own.source(study, estimator) != source:
        raise InputError(f"{estimator}: its file has changed while it was ranked; run it again")
    found = noted(study, estimator, split) | {file: [count, source] for file, count in counts.items()}
    write_atomically(_notes_file(study, estimator, split), json.dumps(found, indent=1))


def noted(study: Study, estimator: str, split: str) -> dict[str, list]:
    """Of each ranking file of a group and split: in how many images there was nothing to rank, and `own.source`."""
    file = _notes_file(study, estimator, split)
    return json.loads(file.read_text()) if file.is_file() else {}


def constants(scores: torch.Tensor, unit: str) -> int:
    """How many images of a batch have the same score for all their units: their ranking is drawn by chance."""
    flat = to_unit(scores, unit).flatten(1)
    return 0 if scores.dtype == torch.uint8 else int((flat == flat[:, :1]).all(1).sum())


def refuse_constant(estimator: str, count: int, of: int) -> None:
    """InputError if an estimator had nothing to rank in more than half of the images."""
    if count > of / 2:
        raise InputError(
            f"{estimator} gives every input of an image the same score in {count} of {of}: nothing to rank"
        )


def _open_parts(files: dict, split: Split, checkpoint: Path, source: str | None) -> tuple[dict, dict]:
    """Memory-mapped part files, and where to resume: images done, batch size and constants then, 0 at first."""
    names = sorted(file.name for file in files.values())
    if checkpoint.is_file() and all(part_of(file).is_file() for file in files.values()):
        state = json.loads(checkpoint.read_text())
        if state["files"] == names and state.get("source") == source:
            return {key: np.lib.format.open_memmap(part_of(file), mode="r+") for key, file in files.items()}, state
    checkpoint.unlink(missing_ok=True)  # it speaks of parts that end here
    channels, height, width = split.shape
    shapes = {"pixel": (len(split), 1, height, width), "value": (len(split), channels, height, width)}
    parts = {key: new_array(part_of(file), shapes[key[1]]) for key, file in files.items()}
    return parts, {"done": 0, "batch": 0, "constant": dict.fromkeys(names, 0), "files": names, "source": source}


def _checkpoint(file: Path, parts: dict, state: dict) -> None:
    for part in parts.values():
        part.flush()
        release(part)
    write_atomically(file, json.dumps(state))
