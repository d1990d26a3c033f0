"""From scores to rankings: the scores of a few images, and how their units are ranked."""

import inspect
from dataclasses import dataclass

import numpy as np
import torch

from roarlib.data.datasets import Data
from roarlib.engine import attribute, cams, draws, from_captum, layers, models
from roarlib.engine.degrade import Degraded, image_ids, rows
from roarlib.engine.estimators import built_in
from roarlib.study.machine import device_of
from roarlib.study.names import split_name
from roarlib.study.params import InputError, Study
from roarlib.study.rankings import evenly


def to_unit(scores: torch.Tensor, unit: str) -> torch.Tensor:
    """Scores per ranked unit: (N, C, H, W) stays for `value`; `pixel` sums the channels to (N, 1, H, W).

    A uint8 tensor is already a ranking (see estimators.random); for `pixel` its first channel stands for the pixel.
    """
    if unit == "value":
        return scores
    return scores[:, :1] if scores.dtype == torch.uint8 else scores.sum(1, keepdim=True)


def rank(scores: torch.Tensor, ids: torch.Tensor, seed: int) -> torch.Tensor:
    """Rank the units of every image, largest score first, ties in an order drawn from seed and image.

    scores: float (N, C, H, W), finite. ids: int64 (N,), from `degrade.image_ids`. Returns uint8 of the same shape,
    0..99. Raises ValueError for NaN or infinite scores. Sorts 64-bit keys once (float64: twice): the score's bits as
    an integer in the upper half, 32 random bits in the lower.
    """
    flat = scores.detach().reshape(len(scores), -1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    if not torch.isfinite(flat).all():
        bad = int(ids[~torch.isfinite(flat).all(1)].min()) % (1 << 40)  # the upper bits tell the split
        raise ValueError(f"scores of image {bad} are NaN or infinite; an importance must be a finite number")
    units = flat.shape[1]
    ties = draws.bits(seed, draws.TIES, ids, 0, units) & 0xFFFFFFFF
    if flat.dtype == torch.float64:  # too long for such keys: sort by ties, then stably by scores
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


Index = slice | torch.Tensor  # of images of a split


@dataclass
class Explainer:
    """Explains a study's data by one model; every ranking is made with it.

    Our own estimators explain a faster copy of the model, checked to be the same function: `models.folded`.

    model: the network to explain, which is moved to the study's device. predictions: split -> int64 (N,), the classes
    that are explained, unless the study asks for the label. batch: inputs per model pass; 0: what suits the device.
    untrained: whether the model is, as in a rehearsal.
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

    def ids(self, split: str, index: Index) -> torch.Tensor:
        return image_ids(split, index, self.device)

    def targets(self, split: str, index: Index) -> torch.Tensor:
        """The classes that are explained for these images, int64 (B,)."""
        explained = self.predictions[split] if self.study.target == "predicted" else self.data.split(split).labels
        return torch.from_numpy(np.array(explained[rows(index)])).to(self.device)

    def baseline(self, word: str) -> torch.Tensor:
        """The baseline that a word names, normalised, broadcastable to images; InputError for any other word.

        mean: the training set's. black. grey: halfway to white. train:N: N training images, evenly spaced.
        """
        kind, _, count = word.partition(":")
        mean, std = self.data.scale
        values = {"mean": self.data.fill, "black": -mean / std, "grey": (np.float32(0.5) - mean) / std}
        if word in values:
            return torch.from_numpy(values[word]).to(self.device)[:, None, None]
        if kind != "train" or not count.isdecimal() or int(count) == 0:
            raise InputError(f"baselines: '{word}' is not mean, black, grey or train:20 (so many training images)")
        chosen = evenly(len(self.data.train), int(count))
        return torch.cat([self._images("train", slice(k, k + 1)) for k in chosen.tolist()])

    def _images(self, split: str, index: Index, gone=None, percent: int = 0) -> torch.Tensor:
        images = Degraded(split, self.data, self.device, gone, percent, room=0).images(index)
        return images.contiguous(memory_format=self.layout)

    def scores(self, split: str, index: Index, estimators: list[str], gone=None, percent: int = 0) -> dict:
        """Scores of the images `index` of a split, with the study's settings: name -> (B, C, H, W).

        gone, percent: a ranking, and how much of it is removed from the images first; None: nothing.
        """
        images, targets = self._images(split, index, gone, percent), self.targets(split, index)
        masks = self.data.split(split).masks
        masks = None if masks is None else torch.from_numpy(masks[rows(index)]).to(self.device)
        inputs = attribute.Batch(images, targets, self.ids(split, index), masks)
        made = {}
        for model, ours in ((self.folded, True), (self.model, False)):  # code that is not ours gets the model itself
            names = [n for n in estimators if built_in(split_name(n)[0]) == ours]
            if names:
                made |= attribute.explain(self.study, model, inputs, names, self.baseline, self.batch)
        return made

    def ranked(self, scores: torch.Tensor, unit: str, ids: torch.Tensor, estimator: str) -> np.ndarray:
        """The ranking of a batch in this unit by its scores; InputError names the estimator if they are not finite."""
        units = to_unit(scores, unit)
        try:
            found = units if units.dtype == torch.uint8 else rank(units, ids, self.study.base_seed)
        except ValueError as error:
            raise InputError(f"{estimator}: {error}") from None
        return attribute.mixed(estimator, found, ids, self.study.base_seed).cpu().numpy()

    def gap(self, base: str) -> float | None:
        """By how much a base that promises completeness misses it on a few test images: `from_captum.gap`."""
        count = min(8, images_at_once(self.batch), len(self.data.test))
        index, options = slice(0, count), self.study.estimator_options.get(base, {})
        targets = self.targets("test", index)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with models.evaluating(self.model), draws.seeded(self.study.base_seed), exact:
            images = self._images("test", index).contiguous()
            return from_captum.gap(base, options, self.model, images, targets, self.baseline)

    def layer(self, base: str) -> str | None:
        """The layer that a base chooses by itself; None if it reads none, or its options name one."""
        function = from_captum.method(base).__init__ if base.startswith("captum:") else cams.READY.get(base)
        given = self.study.estimator_options.get(base, {})
        if function is None or "layer" in given or "layer" not in inspect.signature(function).parameters:
            return None
        with models.evaluating(self.model):
            return layers.find(self.model, self._images("train", slice(0, 1)))[0]

    def unguided(self) -> dict[str, int]:
        """Activations of the model that Guided Backprop leaves unguided: name -> number of calls."""
        with layers.Guided() as mode, models.evaluating(self.model), torch.no_grad():
            self.model(self._images("train", slice(0, 1)))
        return dict(mode.others)

    def rankings(self, split: str, index: slice, estimators: list[str], unit: str) -> dict[str, np.ndarray]:
        """Rankings of a few images, computed now and not stored: name -> uint8 (B, C or 1, H, W).

        For trying an estimator before any retraining; InputError if its scores cannot be ranked.
        """
        found, ids = self.scores(split, index, estimators), self.ids(split, index)
        for name in estimators:
            refuse_constant(name, constants(found[name], unit), len(found[name]))
        return {name: self.ranked(found[name], unit, ids, name) for name in estimators}


def batch_size(device: torch.device, shape: tuple[int, int, int]) -> int:
    """Inputs per model pass: as many as keep a CPU's cores busy (256 at 32 x 32), or fill a GPU."""
    area = shape[1] * shape[2]
    return max(8, 256 * 1024 // area) if device.type == "cpu" else max(64, 4_000_000 // area)


def images_at_once(batch: int) -> int:
    """How many images share passes of `batch` inputs: few, so that checkpoints are frequent; noisy copies fill them."""
    return max(1, batch // 4)


def in_turn(count: int) -> torch.Tensor:
    """The order in which the images of a split are explained, int64 (count,): shuffled, the same for all studies.

    Folders are sorted by class. What a function that is not ours draws once for a batch, or by an image's place in it,
    would else tell the class, and retrained networks would read it off the holes.
    """
    return torch.from_numpy(np.random.default_rng(0).permutation(count))


def constants(scores: torch.Tensor, unit: str) -> int:
    """How many images of a batch have the same score for all their units, so that chance ranks them."""
    flat = to_unit(scores, unit).flatten(1)
    return 0 if scores.dtype == torch.uint8 else int((flat == flat[:, :1]).all(1).sum())


def refuse_constant(estimator: str, count: int, of: int) -> None:
    """InputError if an estimator had nothing to rank in more than half of the images."""
    if count > of / 2:
        raise InputError(
            f"{estimator} gives every input of an image the same score in {count} of {of}: nothing to rank"
        )
