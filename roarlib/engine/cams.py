"""Well-known estimators beyond the paper's: by a layer's maps, by covering inputs, by relevance, by attention.

They explain the model itself, not its folded copy; `estimator_options` sets their keywords.
"""

import copy
import math

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, LayerGradientXActivation, Occlusion

from roarlib.engine import draws, from_captum, layers, models
from roarlib.engine.transformers import rollout
from roarlib.study.params import InputError


def gradcam(model, images, targets, *, layer=None):
    """Grad-CAM: a layer's maps, each weighted by its mean gradient, summed, clipped at 0 (Selvaraju et al., ICCV 2017).

    layer: dotted name of a submodule; None: the one of `layers.find`. Returns (N, 1, H, W).
    """
    options = {"layer": layer, "relu_attributions": True}
    return from_captum.attribute(LayerGradCam, options, model, images, targets, baseline_of=None)


def hirescam(model, images, targets, *, layer=None):
    """HiResCAM: a layer's maps times their gradients, place by place, summed (Draelos and Carin, 2020). Signed."""
    return from_captum.attribute(LayerGradientXActivation, {"layer": layer}, model, images, targets, baseline_of=None)


def rise(model, images, targets, *, batch, seed, samples=500, grid=7):
    """RISE: the mean of random masks, weighted by the target's probability under each (Petsiuk et al., BMVC 2018).

    samples: number of masks, the same for all images of a study. grid: cells per side, each open with probability 1/2;
    they are interpolated and shifted at random. Returns (N, 1, H, W).
    """
    count, size, total = len(images), images.shape[2:], 0.0
    for first in range(0, samples, at_once := max(1, batch // count)):
        numbers = torch.arange(first, min(first + at_once, samples), device=images.device)
        masks = random_masks(seed, numbers, grid, size).to(images)  # (k, 1, H, W)
        with torch.no_grad():
            logits = model((masks[:, None] * images).flatten(0, 1))
        shares = logits.softmax(1).gather(1, targets.repeat(len(masks))[:, None]).reshape(len(masks), count)
        total = total + torch.einsum("kn,kchw->nchw", shares.to(images.dtype), masks)
    return total / (samples * 0.5)


def random_masks(seed: int, numbers: torch.Tensor, grid: int, size: tuple[int, int]) -> torch.Tensor:
    """RISE's masks of these numbers, int64 (k,): (k, 1, H, W) in 0..1, the same on any device and in any batch."""
    cell = [math.ceil(side / grid) for side in size]
    drawn = draws.uniform(seed, draws.MASKS, numbers, grid * grid + 2)
    cells = (drawn[:, :-2] < 0.5).float().reshape(-1, 1, grid, grid)
    large = F.interpolate(cells, [(grid + 1) * side for side in cell], mode="bilinear")
    tops, lefts = ((drawn[:, k] * side).long().tolist() for k, side in zip((-2, -1), cell, strict=True))
    return torch.stack([m[:, t : t + size[0], s : s + size[1]] for m, t, s in zip(large, tops, lefts, strict=True)])


def occlusion(model, images, targets, *, batch, baseline_of, window=0, stride=0):
    """Occlusion: by how much the logit falls when a square of the mean colour covers a pixel (Zeiler and Fergus, 2014).

    Averaged over the squares. window: px per side; 0: an eighth of the shorter side. stride: px; 0: half a window.
    Returns (N, 1, H, W).
    """
    channels, height, width = images.shape[1:]
    window = window or max(1, min(height, width) // 8)
    step = stride or max(1, window // 2)
    options = {"sliding_window_shapes": (channels, window, window), "strides": (channels, step, step)}
    options["perturbations_per_eval"] = max(1, batch // len(images))
    found = from_captum.attribute(Occlusion, options, model, images, targets, baseline_of=baseline_of)
    return found[:, :1].to(images.dtype)


def lrp(model, images, targets, *, epsilon=1e-6):
    """LRP: relevance 1 of the target, passed back layer by layer (Bach et al., 2015). Sums to 1, less what biases take.

    The rules are zennit's EpsilonPlusFlat (Kohlbrenner et al., 2020): epsilon in dense layers, z+ in convolutions,
    flat in the first; the sum in a residual block, ours or torchvision's, is shared out in proportion to its parts.
    """
    try:
        from zennit import attribution, canonizers, composites, layer, rules, torchvision, types
    except ImportError:
        raise InputError("lrp needs zennit: pip install zennit") from None
    shapes = [torchvision.ResNetCanonizer(), canonizers.AttributeCanonizer(_with_sums)]
    composite = composites.EpsilonPlusFlat(
        epsilon, layer_map=[((models.Blur, models.Scale), rules.Norm())], canonizers=shapes
    )
    ruled = (types.Linear, types.Activation, types.AvgPool, types.BatchNorm, layer.Sum, models.Blur, models.Scale)
    with attribution.Gradient(copy.deepcopy(model), composite) as attributor:  # zennit changes batch norms meanwhile
        layers.refuse_mixing("lrp", attributor.model, images[:1], ruled, tuple(set(ruled) - {types.Activation}))
        found = attributor(images, lambda out: F.one_hot(targets, out.shape[1]).to(out))[1]
    if (total := float(found.flatten(1).sum(1).median())) > 1.5:  # biases may add some to 1 if the logit is small
        raise InputError(
            f"relevance of lrp sums to {total:.1f} and not to 1: it has no rule for how the network adds branches; it "
            "knows our residual blocks and torchvision's ResNets"
        )
    return found


def _with_sums(name: str, module: torch.nn.Module) -> dict | None:
    """For zennit: makes the sum in a block of ours a module, so that it can have a rule."""
    from zennit.layer import Sum

    def residual(x):
        x = module.down(x)
        return module.relu(module.total(torch.stack([module.body(x), module.shortcut(x)], -1)))

    def shortcut(x):
        return module.total(torch.stack([x, module.body(x)], -1))

    forward = {models.Residual: residual, models.Shortcut: shortcut}.get(type(module))
    return forward and {"forward": forward, "total": Sum()}


READY = dict(gradcam=gradcam, hirescam=hirescam, rise=rise, occlusion=occlusion, lrp=lrp, rollout=rollout)
