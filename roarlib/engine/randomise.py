"""Does a ranking change when the model's weights are random? If not, it says nothing about what the model has learnt.

Layers get fresh weights from the top down, more and more of them until all have, and test images are explained again
(Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018). Nothing is retrained.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from roarlib.engine import draws, models
from roarlib.engine.degrade import degraded
from roarlib.engine.rank import Explainer, images_at_once
from roarlib.study import rankings
from roarlib.study.names import DEPTHS

MEASURED = 256  # training images on which batch norms with fresh weights measure their means and variances


def layers(model: nn.Module, images: torch.Tensor) -> list[str]:
    """Names of the modules that hold weights of their own, or are batch norms; those that images reach last first.

    A module that is not called itself counts as reached with the module around it.
    """
    called: dict[str, int] = {}

    def reached(name: str):
        return lambda *_: called.update({name: called.get(name, len(called))})  # returns None: inputs stay as they are

    with ExitStack() as hooks, models.evaluating(model), torch.no_grad():
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(reached(name)))
        model(images)

    def when(name: str) -> int:
        return called[name] if name in called else when(name.rpartition(".")[0])

    owners = [name for name, module in model.named_modules() if _weighted(module) or isinstance(module, _BatchNorm)]
    return sorted(owners, key=when, reverse=True)


def _weighted(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def randomised(explainer: Explainer, share: int) -> nn.Module:
    """The model, built anew, with its weights in all but the top `share` percent of its layers, of which at least one.

    Those are initialised with the study's base seed + 1. Batch norms among them take new means and variances from
    training images, as the old ones would shrink or blow up what reaches them; the layers below are unchanged.
    """
    study, data = explainer.study, explainer.data
    with draws.seeded(study.base_seed + 1):
        net = models.build(study.model, len(data.classes), data.shape).eval()
    net = net.to(explainer.device, memory_format=explainer.layout)
    train = degraded(study, data, "train")
    chosen = torch.from_numpy(rankings.evenly(len(train), MEASURED)).split(64)
    parts = [train.images(part).contiguous(memory_format=explainer.layout) for part in chosen]
    names = layers(explainer.model, parts[0][:1])
    weighted = [name for name in names if _weighted(explainer.model.get_submodule(name))]
    top = names[: 1 + names.index(weighted[: max(1, share * len(weighted) // 100)][-1])]
    state = explainer.model.state_dict(keep_vars=True)  # weights that several names share are one object then
    drawn = {id(values) for k, values in state.items() if k.rpartition(".")[0] in top}
    net.load_state_dict({k: values for k, values in state.items() if id(values) not in drawn}, strict=False)
    norms = [net.get_submodule(name) for name in top]
    norms = [module for module in norms if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all parts
        norm.train()
    with torch.no_grad():
        for part in parts if norms else []:
            net(part)
    return net.eval()


def compare(
    explainer: Explainer, estimators: list[str], count: int, depths=tuple(DEPTHS)
) -> Iterator[tuple[tuple[str, str, str], dict[str, float | np.ndarray]]]:
    """How similar the rankings of `count` test images, taken evenly, remain at these depths.

    estimators: of one group, already ranked (names.asks_model). Yields (estimator, unit, depth) and {"rho": Spearman's
    correlation, mean over the images, "overlap": `rankings.overlap` at t = 1 .. 100}. The class that is explained stays
    that of the base model; noise, ties and Random are drawn anew (base seed + 1), at depth 0 nothing else. So rankings
    of an estimator cannot be more alike than at depth 0, and Random shows how alike unrelated rankings are.
    """
    study = explainer.study
    other = study.model_copy(update={"base_seed": study.base_seed + 1})
    before = {(e, u): rankings.sample(study, e, u, count) for e in estimators for u in study.units}
    chosen = torch.from_numpy(rankings.evenly(len(explainer.data.test), count))
    for depth in depths:
        model = randomised(explainer, DEPTHS[depth]) if DEPTHS[depth] else explainer.model
        again = _ranked(replace(explainer, study=other, model=model), list(before), chosen)
        for (name, unit), old in before.items():
            found = {"rho": rankings.correlation(old, again[name, unit])}
            yield (name, unit, depth), found | {"overlap": rankings.overlap(old, again[name, unit])}


def _ranked(
    explainer: Explainer, keys: list[tuple[str, str]], chosen: torch.Tensor
) -> dict[tuple[str, str], np.ndarray]:
    """Rankings of these test images, uint8 (B, C or 1, H, W), by estimator and unit; not stored."""
    found: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in keys}
    for index in chosen.split(images_at_once(explainer.batch)):
        scores, ids = explainer.scores("test", index, list(dict(keys))), explainer.ids("test", index)
        for name, unit in keys:
            found[name, unit].append(explainer.ranked(scores[name], unit, ids, name))
    return {key: np.concatenate(parts) for key, parts in found.items()}
