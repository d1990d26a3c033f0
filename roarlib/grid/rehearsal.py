"""The whole run, rehearsed on a handful of images: what would fail hours later in some cell fails here, in seconds.

It calls the same functions as the stage notebooks, with the study's model, layout, precision, estimators (whole groups
at once), units and modes. It writes to a folder of its own, which it deletes.
"""

import dataclasses
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from roarlib.data.datasets import SPLITS, Data, Split
from roarlib.engine import draws, models, randomise, recursive, store, train
from roarlib.engine.estimators import built_in
from roarlib.engine.from_captum import HOOKING
from roarlib.engine.rank import Explainer
from roarlib.grid import cluster
from roarlib.grid.cells import Grid
from roarlib.study import rankings
from roarlib.study.machine import threads
from roarlib.study.names import QUIET, asks_model, parent_of, split_name, variant_of
from roarlib.study.own import is_own, told
from roarlib.study.params import InputError, Study

LONG = 3600  # seconds of ranking above which the user is told
FEW = 8  # images of each split, evenly from all of it: folders are sorted by class


def rehearse(study: Study, data: Data, say: Callable[[str], None] = lambda line: None) -> dict[str, float]:
    """InputError of one line for what does not work; `say` gets notes on what works but a user should know.

    Returns the seconds that a cell takes to explain one image, by group, where the base is not `built_in`.
    """
    whole, spent = study, {}
    few = dataclasses.replace(data, train=_few(data.train), test=_few(data.test))
    short = {"epochs": 1, "batch_size": len(few.train), "noise_samples": 2, "ig_steps": 2, "recursive_steps": [50]}
    name = f"{study.name}/.rehearsal-{platform.node()}-{os.getpid()}"
    short |= {"name": name, "base_models": "one", "drop_epochs": [], "rankings": "keep"}
    study = study.model_copy(update=short)
    _fresh_weights(study, data, say)
    shutil.rmtree(study.folder, ignore_errors=True)  # left by one that was killed
    try:
        with told(f"model {study.model} fails in training"):
            train.save_base(study, few, train.base_model(study, few))
            base = train.load_base(study, few)
            train.tested(study, base[0], few)
        explainer = Explainer(study, few, *base, untrained=not study.base_weights)
        before, _ = _state(explainer.model), train.tested(study, explainer.model, few)
        restless = _changed(before, explainer.model)  # by the network itself, which counts its passes, say
        for key, group in Grid(study).groups.items():
            before = _state(explainer.model)
            seconds = _rank(explainer, group) / len(few.train) * sweeps(whole, group) / sweeps(study, group)
            if other := [name for name in _changed(before, explainer.model) if name not in restless]:
                raise InputError(
                    f"{', '.join(group)}: changes the network that is explained ({other[0]}), so that the next batch "
                    "would be explained by another one: let it work on copy.deepcopy(model)"
                )
            if is_own(base := split_name(group[0])[0]):
                _forgets(explainer, base)
            if names := [name for name in group if study.sanity_images and asks_model(name)]:
                with told(f"{', '.join(names)}: explaining {study.model} with random weights fails"):
                    list(randomise.compare(explainer, names, FEW, ["top100"]))
            if layer := explainer.layer(base):
                say(f"note: {base} explains {layer}, the last layer with spatial output")
            if base.removeprefix("captum:") in ("gb", *HOOKING) and (others := explainer.unguided()):
                named = " and ".join(f"{count} {name}" for name, count in others.items())
                what = f"note: {base} changes gradients at ReLUs alone"
                say(f"{what}, and {study.model} also has {named}, through which they stay as they are")
            if not built_in(base):
                spent[key], images = seconds, len(data.train) + len(data.test)
                if (left := seconds * images) > LONG:
                    say(f"note: {', '.join(group)} will take at least {left / 3600:.1f} hours for {images:,} images")
        equal = data.shape[0] > 1 and not np.diff(few.train.images.astype(int), axis=1).any()
        if equal and "value" in study.units:
            say("note: all channels are equal; with unit value, others still show what one has lost: take unit pixel")
        for mode in study.modes:
            name, unit = study.estimators[0], study.units[0]
            found = {split: rankings.load(study, name, unit, split) for split in SPLITS}
            with told(f"model {study.model} fails in retraining, mode {mode}"):
                model = train.train(study, few, study.base_seed, found["train"], 50, mode)
                train.tested(study, model, few, found["test"], 50, mode)
    finally:
        shutil.rmtree(study.folder, ignore_errors=True)
        with suppress(OSError):  # the study's own folder, if there is nothing else in it
            study.folder.parent.rmdir()
    return spent


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def _changed(before: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    """Names of the state that is no longer what it was; what is not a number stays so."""
    now, found = model.state_dict(), []
    for name, old in before.items():
        new = now[name]
        if old.shape != new.shape or not bool(((old == new) | (old != old) & (new != new)).all()):
            found.append(name)
    return found


def _forgets(explainer: Explainer, base: str) -> None:
    """InputError if the user's function explains, with another network, the one that it was given first."""
    study, data = explainer.study, explainer.data
    other = models.build(study.model, len(data.classes), data.shape).to(explainer.device).eval()

    def refuse(*_):
        raise InputError(
            f"{base} was given a second network and called the first, which it keeps from call to call: use the one "
            "that is given, or sanity checks and `-recursive` would explain the wrong one"
        )

    handle = explainer.model.register_forward_pre_hook(refuse)
    try:
        with told(f"estimator {base} fails with a second network", base):
            dataclasses.replace(explainer, model=other).scores("test", slice(0, 2), [base])
    finally:
        handle.remove()


def sweeps(study: Study, group: list[str]) -> int:
    """How often a group explains every image: once as it is, if any of the group needs that, and with noise."""
    ensembles = {split_name(name)[1] for name in group}
    return bool(ensembles & QUIET) + bool(ensembles - QUIET) * study.noise_samples


def _few(split: Split) -> Split:
    chosen = rankings.evenly(len(split), FEW)
    masks = None if split.masks is None else split.masks[chosen]
    return Split(np.array(split.images[chosen]), split.labels[chosen], masks)


def _rank(explainer: Explainer, group: list[str]) -> float:
    """Make a group's rankings as its cell does; on failure one by one, to name the culprit. Seconds of a warm pass."""
    make = recursive.make if variant_of(group[0]) == "recursive" else store.make
    folder, base = rankings.path(explainer.study, group[0], "", "").parent, split_name(group[0])[0]
    last = slice(0, 1)  # as many as the last batch of a split may have
    try:
        make(explainer, group)
        explainer.gap(base)
        explainer.scores("test", last, [base])
    except Exception:
        for name in group:
            with told(f"estimator {name} fails on a few images", name):
                make(explainer, [name])
                explainer.gap(base)
                explainer.scores("test", last, [base])
        shutil.rmtree(folder)
        with told(f"estimators {', '.join(group)} fail together on a few images, though not one by one"):
            make(explainer, group)
    names = [parent_of(n) if variant_of(n) == "recursive" else n for n in group]
    with threads(cluster.machine(explainer.study)[1]):  # as a cell has, so that it takes as long there
        started = time.perf_counter()
        explainer.scores("train", slice(0, len(explainer.data.train)), names)
        return time.perf_counter() - started


def _fresh_weights(study: Study, data: Data, say: Callable[[str], None]) -> None:
    """InputError if a model does not start anew with every seed, or is not what its state_dict and logits say."""
    nets = []
    for seed in (0, 0, 1):
        with draws.seeded(seed):
            nets.append(models.build(study.model, len(data.classes), data.shape))
    found = [net.state_dict() for net in nets]
    drawn = [name for name, values in found[0].items() if values.is_floating_point() and values.unique().numel() > 1]
    same = [name for name in drawn if torch.equal(found[0][name], found[2][name])]
    if drawn and len(same) == len(drawn):
        raise InputError(
            f"model {study.model} starts with the same weights whatever the seed, so nothing would be retrained from "
            "scratch; let its function draw them anew, and bring a trained network to explain as base_weights"
        )
    if same:
        say(f"note: {study.model} starts with the same {', '.join(same[:3])} whatever the seed: not from scratch there")
    if odd := [name for name in drawn if not torch.equal(found[0][name], found[1][name])]:
        say(f"note: {study.model} draws {', '.join(odd[:3])} from a generator of its own: seeds do not fix its numbers")
    with draws.seeded(0), torch.no_grad():
        for values in nets[0].parameters():  # what starts at 0 would hide what is behind it
            if values.is_floating_point() and values.unique().numel() == 1:
                values.add_(0.1 * torch.randn_like(values))
        images = torch.rand(3, *data.shape)
    _as_stored(study, nets[0], nets[2], images, say)
    _sees_all(study, nets[0], images, say)


@torch.no_grad()
def _as_stored(study: Study, net: nn.Module, other: nn.Module, images: torch.Tensor, say: Callable) -> None:
    """InputError if a network differs once its state_dict is loaded (into `other`), or gives probabilities."""
    other.load_state_dict(net.state_dict())
    logits, given = [], images.clone()
    for one, seed, scale in ((net.eval(), 0, 1), (other.eval(), 0, 1), (net, 1, 1), (net, 0, 1), (net, 0, 1000)):
        with draws.seeded(seed):
            before = _state(one)
            logits.append(one(images if scale == 1 else scale * images).float())
            changed = _changed(before, one)
        if not images.equal(given):
            raise InputError(
                f"model {study.model} changes the images that it is given (mul_, add_ ..): copy them first"
            )
    size = logits[0].nan_to_num()
    slack = 1e-3 * float(size.max() - size.min()) + 1e-6 * float(size.abs().max())
    alike = [torch.allclose(logits[0], found, 0, slack, equal_nan=True) for found in logits]
    if alike[3] and not alike[1]:
        raise InputError(
            f"model {study.model} keeps values outside of its state_dict (layers in a plain list, a tensor that is no "
            "buffer, or one that is not persistent), so the network explained would not be the one trained"
        )
    if changed and not all(alike[2:4]):
        raise InputError(
            f"model {study.model} changes its {changed[0]} in evaluation mode too, and its logits with it, so that "
            "every batch would meet another network: change it only `if self.training`"
        )
    if not all(alike[2:4]):
        say(f"note: {study.model} draws at random in evaluation mode (dropout without training=self.training?)")
    if all(alike[2:4]) and not torch.allclose(logits[0][:2], net(images[:2]).float(), 0, slack, equal_nan=True):
        raise InputError(
            f"model {study.model} gives an image other logits beside other images (a batch norm without running "
            "statistics, a mean over the batch, or batch and another dimension mixed up), so there is no accuracy"
        )
    ends = {"softmax": logits[0].log().logsumexp(1), "log_softmax": logits[0].logsumexp(1)}  # NaN below 0
    if ends := [name for name, found in ends.items() if torch.allclose(found, torch.zeros(()), atol=1e-3)]:
        raise InputError(
            f"model {study.model} gives {'log ' * (ends[0] != 'softmax')}probabilities; logits are trained and "
            f"explained: leave out {ends[0]}"
        )
    if all(bool(((found >= 0) & (found <= 1)).all()) for found in (logits[0], logits[4])):
        say(f"note: {study.model} gives values between 0 and 1; if it ends in a sigmoid, leave that out")


def _sees_all(study: Study, net: nn.Module, images: torch.Tensor, say: Callable) -> None:
    """A note if some pixels never reach the logits, as where patches do not divide the image."""
    images = images.clone().requires_grad_()
    with models.evaluating(net), draws.seeded(0):  # dropout that never ends hides pixels by chance
        total = net(images).square().sum()
    slopes = torch.autograd.grad(total, images, allow_unused=True)[0] if total.requires_grad else None
    if slopes is not None and 0.01 < (blind := float((slopes == 0).flatten(0, 1).all(0).float().mean())) < 1:
        say(f"note: {study.model} does not look at {blind:.0%} of the pixels: they can be removed at no cost")
