"""Feature-importance estimators: three bases, the noise ensemble around them, controls, and anybody's own.

An estimator is a function `(model, images, targets) -> scores`: images normalised float (N, C, H, W), targets int64
(N,) the explained class, scores of the images' shape, larger = more important. It may ask for more by naming a keyword
(`ids`, `masks`, `seed`, `steps`, `reference`, `batch`); see `explain`. The six members of a base (plain, squared, SG,
SG squared, SG-SQ, VAR) come from one sweep over the noisy inputs: they share every model pass.
"""

import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms.functional import gaussian_blur

from roarlib.engine import draws, models
from roarlib.study import names, own
from roarlib.study.machine import precision_of
from roarlib.study.names import split_name, variant_of
from roarlib.study.params import InputError, Study


class Batch(NamedTuple):
    """Images to be explained, and what belongs to each of them.

    images: normalised float (N, C, H, W). targets: int64 (N,), the explained classes. ids: int64 (N,), image numbers
    that seed noise (`degrade.image_ids`). masks: bool (N, 1, H, W) of the informative pixels, where known.
    """

    images: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor
    masks: torch.Tensor | None = None

    def repeated(self, images: torch.Tensor) -> "Batch":
        """The same for so many copies of all images, stacked: (k N, C, H, W)."""
        k = len(images) // len(self.images)
        masks = None if self.masks is None else self.masks.repeat(k, 1, 1, 1)
        return Batch(images, self.targets.repeat(k), self.ids.repeat(k), masks)


def grad(model, images, targets):
    """GRAD: derivative of the target's logit with respect to every input (Simonyan et al., 2014). Signed."""
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
    return torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x)[0]  # of x alone: no weight gradients


class _Guided(TorchFunctionMode):
    """While active, every ReLU call passes only positive gradients on; module and functional, in place or not.

    Calls are intercepted, so the model itself is never touched and a shared or functional ReLU is guided as well.
    """

    RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}

    def __init__(self):
        super().__init__()
        self.guided = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in self.RELUS and out.requires_grad:
            out.register_hook(lambda g: g.clamp(min=0))
            self.guided += 1
        return out


def gb(model, images, targets):
    """GB: Guided Backprop, the gradient with negative parts cut at every ReLU (Springenberg et al., 2015).

    Raises InputError where it could guide nothing and would silently be GRAD: no ReLU, or a scripted model.
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise InputError("gb cannot guide the ReLUs inside a TorchScript model; give the eager model")
    with _Guided() as mode:
        scores = grad(model, images, targets)
    if not mode.guided:
        raise InputError(f"gb found no ReLU to guide in {type(model).__name__}: it is defined for ReLU networks only")
    return scores


def ig(model, images, targets, *, steps, reference, batch):
    """IG: Integrated Gradients along the straight line from `reference` (Sundararajan et al., ICML 2017).

    steps: k points of Gauss-Legendre quadrature. reference: broadcastable to images. batch: how many inputs the model
    takes at once; steps are stacked up to it. Sums to f(x) - f(reference) up to the quadrature's error. A traced
    model's first convolution is affine: it is passed once, and the steps lie on the straight line behind it.
    """
    nodes, weights = (v[:, None, None, None, None] / 2 for v in np.polynomial.legendre.leggauss(steps))
    alphas, weights = (torch.as_tensor(v, dtype=images.dtype, device=images.device) for v in (nodes + 0.5, weights))
    stem, rest = models.stem_and_rest(model)
    x, dtype = images.detach().requires_grad_(), stem(images[:1]).dtype  # reduced under autocast
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        end, start = stem(x), stem(torch.zeros_like(images[:1]) + reference).detach()
    line, total, at_once = end.detach() - start, torch.zeros_like(end), max(1, batch // len(images))
    for alpha, weight in zip(alphas.split(at_once), weights.split(at_once), strict=True):
        points = torch.addcmul(start, alpha, line)  # (k, N, C, H, W)
        # a copy, since a ReLU may overwrite its input
        slopes = grad(lambda p: rest(p.to(dtype, copy=True)), points.flatten(0, 1), targets.repeat(len(alpha)))
        total += (weight * slopes.reshape(points.shape)).sum(0)
    return torch.autograd.grad(end, x, total)[0] * (images - reference)


def random(model, images, targets, *, ids, seed):
    """Random: each input goes at t percent with probability t/100, drawn once per image, nested in t.

    Returns a ranking (uint8) rather than scores: the counts are binomial, as in the paper.
    """
    uniform = draws.uniform(seed, draws.RANDOM, ids, images[0].numel())
    return (uniform * 100).to(torch.uint8).reshape(images.shape)


def sobel(model, images, targets):
    """Sobel: gradient magnitude per channel, from the separable filter [1 2 1] x [-1 0 1] along both axes."""
    smooth, slope = images.new_tensor([1, 2, 1]), images.new_tensor([-1, 0, 1])
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]  # (2, 1, 3, 3)
    count, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate").reshape(-1, 1, height + 2, width + 2)
    with torch.autocast(images.device.type, enabled=False):
        slopes = F.conv2d(padded, kernels)
    return slopes.square().sum(1).sqrt().reshape(count, channels, height, width)


def oracle(model, images, targets, *, masks):
    """Oracle: the truly informative pixels first, on data that knows them."""
    return masks.to(images.dtype).expand_as(images)


def anti_oracle(model, images, targets, *, masks):
    """Anti-oracle: the truly uninformative pixels first."""
    return 1 - oracle(model, images, targets, masks=masks)


# base name -> function; any other base is the user's `module:function`, or `captum:Class`
BASES: dict[str, Callable] = {
    "grad": grad,
    "gb": gb,
    "ig": ig,
    "random": random,
    "sobel": sobel,
    "oracle": oracle,
    "anti-oracle": anti_oracle,
}


def blurred(scores: torch.Tensor) -> torch.Tensor:
    """Each channel's map smoothed by a Gaussian with a standard deviation of a sixteenth of the image's longer side."""
    sigma = max(scores.shape[-2:]) / 16
    reach = min(math.ceil(3 * sigma), min(scores.shape[-2:]) - 1)  # reflection needs less than the side
    return gaussian_blur(scores, 2 * reach + 1, sigma)


def max_filtered(scores: torch.Tensor) -> torch.Tensor:
    """Each channel's map under a maximum filter that reaches a sixteenth of the longer side in every direction."""
    reach = max(1, round(max(scores.shape[-2:]) / 16))
    return F.max_pool2d(scores, 2 * reach + 1, stride=1, padding=reach)


# what a name's last part does to any estimator's scores before they are ranked. Smoothing adds no information, so a
# gain from it shows a weakness of ROAR (Song et al., "On Pitfalls of RemOve-And-Retrain", 2023); abs and reversed show
# what the sign of scores is worth. The variant `recursive` needs more than scores: see the module of that name.
VARIANTS: dict[str, Callable] = {
    "blur": blurred,
    "max": max_filtered,
    "abs": torch.abs,
    "reversed": torch.neg,
}


def varied(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Scores (N, C, H, W) as the variant in an estimator's name has them; a ranking's (uint8) as float, negated."""
    variant = variant_of(name)
    if variant not in VARIANTS:
        return scores
    with torch.autocast(scores.device.type, enabled=False):
        return VARIANTS[variant](-scores.float() if scores.dtype == torch.uint8 else scores)


def register(name: str, function: Callable) -> None:
    """Make a function an estimator of this process under a plain name, with its noise ensembles (`name-sgsq` ..).

    For notebooks: a grid runs in processes of its own and needs the function in a file, as `module:function`. Raises
    InputError for a name that is taken or not lower case.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in BASES and name not in names.REGISTERED:
        raise InputError(f"'{name}' cannot name an estimator: take a new word of small letters, digits and _")
    BASES[name] = function
    names.REGISTERED.add(name)


def base_function(name: str, options: dict | None = None) -> Callable:
    """The function behind a base's name, its options filled in; InputError if it cannot be imported."""
    if name in BASES:
        return BASES[name]
    if name.startswith("captum:"):
        return functools.partial(_captum, own.load(name.replace("captum:", "captum.attr:")), options or {})
    return functools.partial(own.load(name), **options or {})


def _captum(method, options, model, images, targets):
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}  # YAML has no tuples
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
        return method(model).attribute(images, target=targets, **lists)


def explain(
    study: Study, model: nn.Module, inputs: Batch, names: Iterable[str], reference: torch.Tensor | float, batch: int
) -> dict[str, torch.Tensor]:
    """Scores of one batch of images by every named estimator, sharing the passes of each base.

    reference: IG's, normalised, broadcastable to the images. batch: inputs a model pass takes. Returns name -> (N, C,
    H, W), float, or uint8 where an estimator gives a ranking. The model is in evaluation mode during the call and left
    as it was.
    """
    wanted: dict[str, dict[str, str]] = {}  # base -> name -> ensemble
    for name in names:
        base, ensemble = split_name(name)
        wanted.setdefault(base, {})[name] = ensemble
    extras = dict(seed=study.base_seed, steps=study.ig_steps, reference=reference, batch=batch)
    scores, device = {}, inputs.images.device.type
    half = precision_of(study.attribution_precision, inputs.images.device) == "bfloat16"
    with (
        models.evaluating(model),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=half),
        torch.autocast(device, torch.bfloat16, enabled=half),
    ):
        for base, ensembles in wanted.items():
            function = _with_extras(base, base_function(base, study.estimator_options.get(base)), model, extras)
            made = sweep(function, inputs, set(ensembles.values()), study, batch)
            scores |= {name: varied(name, made[ensemble]) for name, ensemble in ensembles.items()}
    return scores


def sweep(base: Callable, inputs: Batch, ensembles: set[str], study: Study, batch: int) -> dict[str, torch.Tensor]:
    """The wanted members of one base's family from one plain estimate and one pass over J noisy inputs.

    base: Batch -> scores. Noise: normal, sigma = noise_level x (max - min) of each image (Smilkov et al., 2017). The
    noisy estimates e_j give a running mean m and sum of squared deviations s (Welford, 1962; Chan et al., 1983), so
    that SG = m, VAR = s / J (Adebayo et al., 2018) and SG-SQ = mean of e_j^2 = VAR + SG^2, none of which cancels. J =
    study.noise_samples.
    """
    images = inputs.images
    plain = base(inputs) if ensembles & {"", "squared"} else None
    made = {"": plain, "squared": None if plain is None or plain.dtype == torch.uint8 else plain.square()}
    if ensembles <= {"", "squared"}:
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
    """The function of a Batch alone, with those extras that its signature names, and with its result checked."""
    try:
        accepted = inspect.signature(function).parameters
    except ValueError:  # keywords that it does not take
        takes = ", ".join(inspect.signature(function.func).parameters)
        given = ", ".join(function.keywords)
        raise InputError(f"{name} takes {takes}; its estimator_options give {given}") from None
    fixed = {k: v for k, v in extras.items() if k in accepted}

    def call(inputs: Batch) -> torch.Tensor:
        more = {k: getattr(inputs, k) for k in ("ids", "masks") if k in accepted}
        if more.get("masks", ...) is None:
            raise InputError(f"{name} needs the masks of the informative pixels, which this data set does not have")
        scores = function(model, inputs.images, inputs.targets, **fixed | more)
        if not isinstance(scores, torch.Tensor):
            raise InputError(f"{name} gives a {type(scores).__name__}, not a tensor of scores")
        if scores.shape != inputs.images.shape:
            raise InputError(
                f"{name} gives scores of shape {tuple(scores.shape)} for images of shape "
                f"{tuple(inputs.images.shape)}; they must be equal"
            )
        return scores.detach()

    return call
