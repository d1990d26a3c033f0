"""Estimators: the paper's three bases, its controls, those that know the answer, `cams`, and users' own by name.

Each is a function `(model, images, targets) -> scores`: images normalised float (N, C, H, W), targets int64 (N,) the
explained class, scores of the images' shape, larger = more important. It may ask for more by naming keywords: `ids` and
`masks`, without a default (see `attribute.Batch`), `seed`, `steps`, `reference`, `batch`, `baseline_of`, with none or
None (see `attribute.explain`).
"""

import functools
import re
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from roarlib.engine import cams, draws, from_captum, layers, models
from roarlib.study import names, own
from roarlib.study.params import InputError


def grad(model, images, targets):
    """GRAD: derivative of the target's logit with respect to every input (Simonyan et al., 2014). Signed."""
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
    return torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x)[0]  # of x alone: no weight gradients


def gb(model, images, targets):
    """GB: Guided Backprop, the gradient with negative parts cut at every ReLU (Springenberg et al., 2015).

    Raises InputError if there is nothing to guide and it would silently be GRAD: no ReLU, or a scripted model.
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise InputError("gb cannot guide the ReLUs inside a TorchScript model; give the eager model")
    with layers.Guided() as mode:
        scores = grad(model, images, targets)
    if not mode.reached:
        kind = type(model).__name__
        raise InputError(
            f"gb found no ReLU to guide in {kind}: it is defined for ReLU networks only, not GELU's or others"
        )
    return scores


def ig(model, images, targets, *, steps, reference, batch):
    """IG: Integrated Gradients along the straight line from `reference` (Sundararajan et al., ICML 2017).

    steps: points of Gauss-Legendre quadrature. reference: broadcastable to images. batch: inputs per model pass; steps
    are stacked up to it. Sums to f(x) - f(reference) up to the quadrature's error. A folded model's first convolution
    is affine: it is evaluated once, and the steps are taken on the straight line behind it.
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
    """Random: each input is removed at t percent with probability t/100, drawn once per image, nested in t.

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
    """Oracle: the truly informative pixels first, on data for which they are known."""
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
    **cams.READY,
}


def register(name: str, function: Callable) -> None:
    """Make a function an estimator of this process under a plain name, with its noise ensembles (`name-sgsq` ..).

    For notebooks: a grid runs in separate processes and needs the function in a file, as `module:function`. Raises
    InputError for a name that is taken or not in lower case.
    """
    taken = {*BASES, "paper", "clean"} - names.REGISTERED
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in taken:
        raise InputError(f"'{name}' cannot name an estimator: take a new word of small letters, digits and _")
    BASES[name] = function
    names.REGISTERED.add(name)


def built_in(name: str) -> bool:
    """Whether a base is one of ours that leave their inputs unchanged and may explain the folded model."""
    return name in BASES and name not in names.REGISTERED and name not in names.READY


def base_function(name: str, options: dict | None = None) -> Callable:
    """The function behind a base's name, its options filled in; InputError if it cannot be imported."""
    if name.startswith("captum:"):
        return functools.partial(from_captum.attribute, from_captum.method(name), options or {})
    function = BASES[name] if name in BASES else own.load(name)
    return functools.partial(function, **options) if options else function
