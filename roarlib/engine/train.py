"""Training and evaluation on degraded images, on the device.

One function trains the base model (nothing removed) and every retraining, so that they differ in the removal alone.
A base model may also be brought, trained elsewhere; retrainings still start from scratch.
"""

import math
import pickle
import warnings

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from roarlib.data.datasets import SPLITS, Data
from roarlib.engine import draws, models
from roarlib.engine.augment import augment
from roarlib.engine.degrade import Degraded, degraded
from roarlib.study import brought
from roarlib.study.machine import device_of, precision_of
from roarlib.study.params import InputError, Study
from roarlib.study.results import base_file


def train(
    study: Study,
    data: Data,
    seed: int,
    ranking: np.ndarray | None = None,
    percent: int = 0,
    mode: str = "remove",
    progress=None,
) -> nn.Module:
    """Train a fresh model on the degraded train split; the last epoch's weights are the result.

    ranking: of the train split, uint8, or None. seed: of the initial weights, the order of the images and the
    augmentation, so that estimators trained with one seed are paired. progress: called with each epoch's mean loss.
    Recipe: SGD with Nesterov momentum or AdamW, label smoothing, a learning rate per step that is triangular or falls
    at drop_epochs, no selection of any kind. If the GPU's memory is too small, InputError names the key to lower.
    """
    device = device_of(study)
    images = degraded(study, data, "train", ranking, percent, mode)
    with draws.seeded(seed):  # initial weights, and what the model itself draws: dropout, stochastic depth
        model = models.build(study.model, len(data.classes), data.shape)
        try:
            return _fit(study, model.to(device, memory_format=models.layout(model)), images, seed, progress).eval()
        except torch.OutOfMemoryError:
            count = study.micro_batch or study.batch_size
            raise InputError(
                f"training of {study.model}: GPU memory too small for {count} images a pass: lower micro_batch (not "
                "batch_size), or workers where cells share the GPU"
            ) from None


def _fit(study: Study, model: nn.Module, images: Degraded, seed: int, progress) -> nn.Module:
    """The training loop of `train`. InputError if the loss is no longer finite: that must not become a row."""
    device = images.device
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(images) // study.batch_size)  # an incomplete batch is dropped: the order changes every epoch
    optimiser, schedule = _optimiser(study, model, batches * study.epochs)
    half = precision_of(study.precision, device) == "bfloat16"
    for epoch in range(1, study.epochs + 1):
        total = torch.zeros((), device=device)
        order = torch.randperm(len(images), generator=generator)[: batches * study.batch_size]
        for x, y in images.batches(order.split(study.batch_size)):
            x = augment(x, study.augment, generator, images.fill).contiguous(memory_format=models.layout(model))
            optimiser.zero_grad()
            for part, labels in zip(*(t.split(study.micro_batch or len(y)) for t in (x, y)), strict=True):
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = model(part)
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=study.label_smoothing)
                loss = loss * (len(labels) / len(y))
                loss.backward()
                total += loss.detach()
            optimiser.step()
            schedule.step()
        if not math.isfinite(loss_of_epoch := float(total) / batches):
            raise InputError(f"training of {study.model} diverged in epoch {epoch}: lower learning_rate")
        if progress:
            progress(loss_of_epoch)
    return model


def _optimiser(study: Study, model: nn.Module, steps: int):
    decayed = [p for p in model.parameters() if p.ndim > 1]  # not norms and biases, as in the paper
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": study.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if study.optimiser == "adamw":
        optimiser = torch.optim.AdamW(groups, study.learning_rate, (study.momentum, 0.999), fused=True)
    else:
        optimiser = torch.optim.SGD(
            groups, study.learning_rate, study.momentum, nesterov=study.momentum > 0, fused=True
        )
    peak = study.warmup * steps

    def rate(step: int) -> float:
        if step < peak:
            return (step + 1) / (peak + 1)
        if study.drop_epochs:
            return 0.1 ** sum(step >= epoch * steps // study.epochs for epoch in study.drop_epochs)
        return (steps - step) / max(1.0, steps - peak)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


@torch.no_grad()
def predict(study: Study, model: nn.Module, images: Degraded, flip: bool = False) -> np.ndarray:
    """The class with the largest logit for every image: int64 (N,). flip: add the logits of its mirror image.

    InputError if a logit is not finite: the largest is then anybody's guess.
    """
    half, found = precision_of(study.precision, images.device) == "bfloat16", []
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    batch = max(8, 1_000_000 // (images.data.shape[1] * images.data.shape[2]))
    for x, _ in images.batches(torch.arange(len(images)).split(batch)):
        x = x.contiguous(memory_format=models.layout(model))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = model(x) + model(x.flip(3)) if flip else model(x)
        finite &= logits.isfinite().all()
        found.append(logits.argmax(1))
    if not bool(finite):
        raise InputError(f"{study.model} gives NaN or infinite logits for some {images.part} images")
    return torch.cat(found).cpu().numpy()


def tested(study: Study, model: nn.Module, data: Data, ranking=None, percent: int = 0, mode: str = "remove") -> dict:
    """What a row says about a test: `accuracy`, the share of degraded test images that are classified correctly (0..1).

    And `balanced`, the mean of the classes' accuracies. ranking: of the test split.
    """
    images, labels = degraded(study, data, "test", ranking, percent, mode), data.test.labels
    right = predict(study, model, images, study.flip_average) == labels
    classes = [float(right[labels == label].mean()) for label in np.unique(labels)]
    return {"accuracy": float(right.mean()), "balanced": float(np.mean(classes))}


def base_model(study: Study, data: Data, progress=None) -> nn.Module:
    """The network to explain, on the device, in evaluation mode: trained, or the one that `base_weights` brings.

    InputError of one line if the weights are missing or do not fit.
    """
    if not study.base_weights:
        return train(study, data, study.base_seed, progress=progress)
    file = brought.find(study, study.base_weights, "base_weights")
    model, weights = models.build(study.model, len(data.classes), data.shape), _read(file)
    known = model.state_dict()  # DataParallel puts module. before every name
    weights = {k if k in known else k.removeprefix("module."): value for k, value in weights.items()}
    if said := _misfits(known, weights):
        raise InputError(f"{file} does not fit {study.model} with {len(data.classes)} classes: {said}")
    model.load_state_dict(weights)
    return model.to(device_of(study), memory_format=models.layout(model)).eval()


def _read(file) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or what torch.save made of one; a pickle of anything else is never loaded."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle's version, right before it is refused
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if file.open("rb").read(2) not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise InputError(f"{file} is no checkpoint: neither safetensors nor a file of torch.save") from None
        raise InputError(f"{file} holds Python objects, which could run any code: save model.state_dict()") from None
    except Exception as error:  # damaged files raise all sorts of errors
        raise InputError(f"{file} cannot be read as weights: {' '.join(str(error).split())[:90]}") from None
    for key in ("state_dict", "model_state_dict", "model"):  # checkpoints of training loops
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) and not v.is_sparse for k, v in found.items()
    ):
        raise InputError(f"{file} holds no state dict (name -> tensor): save model.state_dict()")
    return found


def _misfits(wanted: dict, given: dict) -> str:
    """How the given weights do not fit a model, in a phrase; empty if they do."""
    said = []
    for what, names in (("lacks", wanted.keys() - given.keys()), ("has no place for", given.keys() - wanted.keys())):
        more = f" and {len(names) - 1} more" * (len(names) > 1)
        said += [f"{'it' if what == 'lacks' else 'the model'} {what} {min(names)}{more}"] if names else []
    for name in (name for name in wanted if name in given):
        if wanted[name].shape != given[name].shape:
            said.append(f"{name} is {tuple(given[name].shape)} and not {tuple(wanted[name].shape)}")
        elif wanted[name].is_floating_point() and not given[name].is_floating_point():
            said.append(f"{name} holds whole numbers, as of a quantised network")
        elif not given[name].isfinite().all():
            said.append(f"{name} has NaN or infinite values")
    return "; ".join(said[:3])


def save_base(study: Study, data: Data, model: nn.Module) -> dict[str, np.ndarray]:
    """Save the base model (safetensors) and its predictions on both splits; returns the latter, split -> int64 (N,)."""
    file = base_file(study, "model.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {name: predict(study, model, degraded(study, data, name)) for name in SPLITS}
    for name, classes in found.items():
        np.save(base_file(study, f"predictions-{name}.npy"), classes)
    weights = {k: v.to("cpu", memory_format=torch.contiguous_format, copy=True) for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, file)
    return found


def load_base(study: Study, data: Data) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The base model on the device, in evaluation mode, and its predictions. LookupError if it is not trained."""
    if not (file := base_file(study, "model.safetensors")).is_file():
        raise LookupError(f"no base model of {study.name} yet; `roar run` with its YAML trains it")
    model = models.build(study.model, len(data.classes), data.shape)
    model.load_state_dict(safetensors.torch.load_file(file))
    model = model.to(device_of(study), memory_format=models.layout(model)).eval()
    return model, {s: np.load(base_file(study, f"predictions-{s}.npy"), allow_pickle=False) for s in SPLITS}
