"""Scores of images by any estimator, noise ensembles and variants included.

The six members of a base's family (plain, squared, SG, SG squared, SG-SQ, VAR) come from one sweep over the noisy
inputs, so that they share every model pass.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from roarlib.engine import draws, maps, models
from roarlib.engine.estimators import base_function, built_in
from roarlib.study.machine import precision_of
from roarlib.study.names import MAPS, QUIET, mixed_share, split_name, variant_of
from roarlib.study.params import InputError, Study


class Batch(NamedTuple):
    """Images to be explained, with the target, id and mask of each.

    images: normalised float (N, C, H, W). targets: int64 (N,), the explained classes. ids: int64 (N,), image numbers
    that seed noise (`degrade.image_ids`). masks: bool (N, 1, H, W) of the informative pixels, where known.
    """

    images: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor
    masks: torch.Tensor | None = None

    def repeated(self, images: torch.Tensor) -> "Batch":
        """This batch for `images` that stack k versions of its own, (k N, C, H, W): all else is repeated k times."""
        k = len(images) // len(self.images)
        masks = None if self.masks is None else self.masks.repeat(k, 1, 1, 1)
        return Batch(images, self.targets.repeat(k), self.ids.repeat(k), masks)


def blurred(scores: torch.Tensor) -> torch.Tensor:
    """Each channel's map smoothed by a Gaussian with a standard deviation of a sixteenth of the image's longer side."""
    sigma = max(scores.shape[-2:]) / 16
    reach = min(math.ceil(3 * sigma), min(scores.shape[-2:]) - 1)  # reflection needs less than the side
    return gaussian_blur(scores, 2 * reach + 1, sigma)


def max_filtered(scores: torch.Tensor) -> torch.Tensor:
    """Each channel's map under a maximum filter that reaches a sixteenth of the longer side in every direction."""
    reach = max(1, round(max(scores.shape[-2:]) / 16))
    return F.max_pool2d(scores, 2 * reach + 1, stride=1, padding=reach)


# What the last part of a name does to an estimator's scores before they are ranked. Smoothing adds no information, so a
# gain from it shows a weakness of ROAR (Song et al., "On Pitfalls of RemOve-And-Retrain", 2023); abs and reversed show
# what the sign of scores is worth. `recursive` needs more than scores (see its module); `mixed` is below.
VARIANTS: dict[str, Callable] = {"blur": blurred, "max": max_filtered, "abs": torch.abs, "reversed": torch.neg}


def varied(name: str, scores: torch.Tensor, ids: torch.Tensor, seed: int) -> torch.Tensor:
    """Scores (N, C, H, W), changed as the variant in the name says; a ranking (uint8) is first negated, as float.

    Before a maximum filter the ties of its 100 levels are broken at random, by seed and image: the maximum over many
    pixels would be the first level nearly everywhere.
    """
    variant = variant_of(name)
    if variant not in VARIANTS:
        return scores
    with torch.autocast(scores.device.type, enabled=False):
        if scores.dtype == torch.uint8:
            ties = draws.uniform(seed, draws.TIES, ids, scores[0].numel()).reshape(scores.shape)
            scores = -scores.float() - (ties if variant == "max" else 0)
        return VARIANTS[variant](scores)


def mixed(name: str, ranking: torch.Tensor, ids: torch.Tensor, seed: int) -> torch.Tensor:
    """A ranking with the share of its units that the name gives put in random order; unchanged for any other name.

    ranking: uint8 (N, C, H, W). ids: int64 (N,). Of each image's K units, floor(share K / 100) are drawn by seed and
    image, and their ranks are shuffled among them. Units mixed at one share are mixed at every larger one.
    """
    if not (share := mixed_share(name)):
        return ranking
    flat = ranking.flatten(1)
    units = flat.shape[1]
    chosen = draws.bits(seed, draws.MIXED, ids, 0, units).argsort(1)[:, : share * units // 100]
    shuffle = draws.bits(seed, draws.SHUFFLE, ids, 0, chosen.shape[1]).argsort(1)
    return flat.scatter(1, chosen, flat.gather(1, chosen.gather(1, shuffle))).reshape(ranking.shape)


def explain(
    study: Study, model: nn.Module, inputs: Batch, names: Iterable[str], reference: torch.Tensor | Callable, batch: int
) -> dict[str, torch.Tensor]:
    """Scores of one batch of images by every named estimator, sharing the passes of each base.

    reference: maps a word such as `black` to a baseline, normalised, broadcastable to the images
    (`rank.Explainer.baseline`); or one tensor or number for all words but `mean`, then 0. batch: inputs per model pass.
    Returns name -> (N, C, H, W), float, or uint8 if an estimator returns a ranking. The model is in evaluation mode
    during the call and restored afterwards.
    """
    wanted: dict[str, dict[str, str]] = {}  # base -> name -> ensemble
    for name in names:
        base, ensemble = split_name(name)
        wanted.setdefault(base, {})[name] = ensemble
    baseline_of = reference if callable(reference) else lambda word: 0.0 if word == "mean" else reference
    extras = dict(seed=study.base_seed, steps=study.ig_steps, batch=batch, baseline_of=baseline_of)
    extras["reference"] = baseline_of(study.ig_reference) if callable(reference) else reference
    scores, device, options = {}, inputs.images.device.type, study.estimator_options
    half = precision_of(study.attribution_precision, inputs.images.device) == "bfloat16"
    with (
        models.evaluating(model),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=half),
        torch.autocast(device, torch.bfloat16, enabled=half),
    ):
        for base, ensembles in wanted.items():
            function = maps.estimator(study, base) if MAPS.fullmatch(base) else base_function(base, options.get(base))
            function = _with_extras(base, function, model, extras)
            made = sweep(function, inputs, set(ensembles.values()), study, batch)
            scores |= {n: varied(n, made[e], inputs.ids, study.base_seed) for n, e in ensembles.items()}
    return scores


def sweep(base: Callable, inputs: Batch, ensembles: set[str], study: Study, batch: int) -> dict[str, torch.Tensor]:
    """The members of one base's family named in `ensembles`, from one plain estimate and one pass over J noisy inputs.

    base: Batch -> scores. Noise: normal, sigma = noise_level x (max - min) of each image (Smilkov et al., 2017). The
    noisy estimates e_j give a running mean m and sum of squared deviations s (Welford, 1962; Chan et al., 1983), so
    that SG = m, VAR = s / J (Adebayo et al., 2018) and SG-SQ = mean of e_j^2 = VAR + SG^2, all without cancellation.
    J = study.noise_samples.
    """
    images = inputs.images
    plain = base(inputs) if ensembles & QUIET else None
    made = {"": plain, "squared": None if plain is None or plain.dtype == torch.uint8 else plain.square()}
    if ensembles <= QUIET:
        return made
    sigma = study.noise_level * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))  # (N,)
    mean, spread, done = 0.0, 0.0, 0
    for first in range(0, study.noise_samples, at_once := max(1, batch // len(images))):
        samples = range(first, min(first + at_once, study.noise_samples))
        noise = torch.stack([draws.normal(study.base_seed, inputs.ids, j, images.shape[1:]) for j in samples])
        noisy = images + sigma[:, None, None, None] * noise.to(images.dtype)  # (j, N, C, H, W)
        found = base(inputs.repeated(noisy.flatten(0, 1))).reshape(noisy.shape)
        here, repeat = found.mean(0), len(samples)
        delta, done = here - mean, done + repeat
        spread = spread + (found - here).square().sum(0) + delta.square() * (repeat * (done - repeat) / done)
        mean = mean + delta * (repeat / done)
    variance, square = spread / study.noise_samples, mean.square()
    return made | {"sg": mean, "sg-squared": square, "sgsq": variance + square, "var": variance}


def _with_extras(name: str, function: Callable, model: nn.Module, extras: dict) -> Callable[[Batch], torch.Tensor]:
    """The function of a Batch alone; it gets the extras that its signature names and neither it nor its options set.

    A function that is not ours gets its own contiguous copies, and generators seeded by study, batch and call, so that
    whatever it does to its inputs, or draws, changes nothing for other estimators.
    """
    try:
        accepted = inspect.signature(function).parameters
    except ValueError:  # unknown keywords, or a builtin without a signature
        if not isinstance(function, functools.partial):
            raise InputError(f"{name} is a builtin, whose arguments nobody knows: wrap it in a function") from None
        takes = ", ".join(inspect.signature(function.func).parameters)
        given = ", ".join(function.keywords)
        raise InputError(f"{name} takes {takes}; its estimator_options give {given}") from None
    chosen = getattr(function, "keywords", {})
    free = {k for k, v in accepted.items() if v.default is None or v.default is inspect.Parameter.empty}
    asked = free - set(chosen)
    fixed = {k: v for k, v in extras.items() if k in asked}
    asked = {k for k in asked if accepted[k].default is inspect.Parameter.empty}  # masks=None may be of another kind
    calls = itertools.count()

    def call(inputs: Batch) -> torch.Tensor:
        more = {k: getattr(inputs, k) for k in ("ids", "masks") if k in asked}
        if more.get("masks", ...) is None:
            raise InputError(f"{name} needs the masks of the informative pixels, which this data set does not have")
        if built_in(name):
            return function(model, inputs.images, inputs.targets, **fixed | more).detach()
        images = inputs.images.detach().clone(memory_format=torch.contiguous_format)
        drawn = draws.bits(extras["seed"], draws.CALLS, inputs.ids[:1], next(calls), 1)
        with draws.seeded(int(drawn) & (1 << 63) - 1), models.evaluating(model):
            scores = function(model, images, inputs.targets.clone(), **fixed | more)
        return as_scores(name, scores, inputs.images)

    return call


def as_scores(name: str, scores, images: torch.Tensor) -> torch.Tensor:
    """What a function returned, as scores (N, C, H, W) of the images: float, detached, on their device.

    One score per pixel, (N, 1, H, W) or (N, H, W), counts for all channels; NumPy arrays and integers are accepted.
    InputError for anything else.
    """
    if isinstance(scores, np.ndarray) and scores.dtype != object:
        scores = torch.as_tensor(scores.copy())  # also of reversed axes
    if not isinstance(scores, torch.Tensor) or scores.is_complex():
        kind = "complex" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise InputError(f"{name} gives a {kind}, not a tensor of scores")
    # small 16-bit floats would square to 0; a copy, as the function may write its next scores into the same memory
    exact = torch.promote_types(scores.dtype, torch.float32) if scores.is_floating_point() else torch.float64
    scores = scores.detach().to(images.device, exact, copy=True)
    count, channels, height, width = images.shape
    if scores.shape in ((count, height, width), (count, 1, height, width)):
        scores = scores.reshape(count, 1, height, width).expand(count, channels, height, width)
    if scores.shape != images.shape:
        raise InputError(
            f"{name} gives scores of shape {tuple(scores.shape)} for images of shape {tuple(images.shape)}; they "
            f"must be equal, or (N, 1, H, W) or (N, H, W) for one score per pixel"
        )
    return scores
