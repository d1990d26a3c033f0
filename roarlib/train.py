"""Training and evaluation on degraded images, on the device: gather, normalise, remove, augment, step.

One function trains the base model (nothing removed) and every retraining, so that they differ in the removal alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from roarlib import models
from roarlib.data import SPLITS, Data, Split, normalise
from roarlib.params import InputError, Study
from roarlib.remove import removed


def device_of(study: Study) -> torch.device:
    """The study's device; `auto` is the first GPU if there is one."""
    name = study.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not usable here: {' '.join(str(error).split())[:90]}") from None
    return device


def precision_of(study: Study, device: torch.device) -> str:
    """float32 or bfloat16; `auto` is bfloat16 where the hardware multiplies it natively."""
    if study.precision != "auto":
        return study.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return "bfloat16" if native else "float32"


@dataclass
class Degraded:
    """A split on the device with its removal: indexing gives normalised, degraded batches and their labels.

    ranking: uint8 (N, C, H, W) or (N, 1, H, W), or None for untouched images. Removed inputs become 0, which after
    normalisation is the training set's mean of their channel.
    """

    split: Split
    data: Data
    device: torch.device
    ranking: np.ndarray | None = None
    percent: int = 0
    mode: str = "remove"

    def __post_init__(self):
        if self.ranking is not None and len(self.ranking) != len(self.split):
            raise ValueError(f"ranking of {len(self.ranking)} images for a split of {len(self.split)}")
        self.images = _put(self.split.images, self.device)
        self.labels = _put(self.split.labels, self.device)
        self.ranks = None if self.ranking is None else _put(self.ranking, self.device)
        self.mean, self.std = _put(self.data.mean, self.device), _put(self.data.std, self.device)

    def __len__(self):
        return len(self.split)

    def batch(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float32 (B, C, H, W) and labels int64 (B,) of an index tensor or slice."""
        images = normalise(self.images[index], self.mean, self.std)
        if self.ranks is not None:
            images.masked_fill_(removed(self.ranks[index], self.percent, self.mode), 0)
        return images, self.labels[index]


def _put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    array = array if array.flags.writeable else np.array(array)  # torch warns of read-only maps
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def augment(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Random crops of the images padded by 4 zeros (the fill value), and flips: (N, C, H, W) to the same shape.

    kind: `none`, `crop` or `crop-flip`. Drawn on the CPU from `generator`, so that all devices see the same.
    """
    if kind == "none":
        return images
    (count, _, height, width), pad = images.shape, 4
    draws = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = draws[0] + torch.arange(height)  # (N, H)
    columns = draws[1] + torch.arange(width)
    if kind == "crop-flip":
        columns = torch.where(flip, columns.flip(1), columns)
    padded = F.pad(images, (pad,) * 4).permute(0, 2, 3, 1)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(count, device=images.device)
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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

    ranking: of the train split, uint8, or None. seed: of the first weights, the order of the images and the
    augmentation, so that estimators trained with one seed are paired. progress: called with each epoch's mean loss.
    Recipe: SGD with Nesterov momentum, label smoothing, a triangular learning rate per step, no selection of any kind.
    """
    device = device_of(study)
    images = Degraded(data.train, data, device, ranking, percent, mode)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # first weights, and what the model itself draws: dropout, stochastic depth
        model = models.build(study.model, len(data.classes), data.shape)
        return _fit(study, model.to(device, memory_format=torch.channels_last), images, seed, progress).eval()


def _fit(study: Study, model: nn.Module, images: Degraded, seed: int, progress) -> nn.Module:
    """The training loop of `train`. InputError if the loss stops being a number: no row may come of it."""
    device = images.device
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(images) // study.batch_size)  # the odd rest of an epoch is dropped: the order is new each time
    optimiser, schedule = _optimiser(study, model, batches * study.epochs)
    half = precision_of(study, device) == "bfloat16"
    for epoch in range(1, study.epochs + 1):
        total = torch.zeros((), device=device)
        for index in _order(len(images), batches, study.batch_size, generator):
            x, y = images.batch(index.to(device))
            x = augment(x, study.augment, generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=study.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        if not math.isfinite(loss_of_epoch := float(total) / batches):
            raise InputError(f"training of {study.model} diverged in epoch {epoch}: lower learning_rate")
        if progress:
            progress(loss_of_epoch)
    return model


def _order(count: int, batches: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A new order of all images, cut into whole batches."""
    order = torch.randperm(count, generator=generator)
    return (order[i * size : (i + 1) * size] for i in range(batches))


def _optimiser(study: Study, model: nn.Module, steps: int):
    decayed = [p for p in model.parameters() if p.ndim > 1]  # not batch norms and biases, as the paper
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": study.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, study.learning_rate, study.momentum, nesterov=study.momentum > 0)
    peak = study.warmup * steps

    def rate(step: int) -> float:
        return (step + 1) / (peak + 1) if step < peak else (steps - step) / max(1.0, steps - peak)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


@torch.no_grad()
def predict(study: Study, model: nn.Module, images: Degraded, batch: int = 1000) -> np.ndarray:
    """The class with the largest logit for every image: int64 (N,)."""
    half = precision_of(study, images.device) == "bfloat16"
    found = []
    for start in range(0, len(images), batch):
        x, _ = images.batch(slice(start, start + batch))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            found.append(model(x.contiguous(memory_format=torch.channels_last)).argmax(1))
    return torch.cat(found).cpu().numpy()


def evaluate(
    study: Study,
    model: nn.Module,
    data: Data,
    ranking: np.ndarray | None = None,
    percent: int = 0,
    mode: str = "remove",
) -> float:
    """Share of the degraded test images that the model classifies correctly, 0 to 1. ranking: of the test split."""
    images = Degraded(data.test, data, device_of(study), ranking, percent, mode)
    return float((predict(study, model, images) == data.test.labels).mean())


def save_base(study: Study, data: Data, model: nn.Module) -> dict[str, np.ndarray]:
    """Keep the base model (safetensors) and its predictions on both splits; returns split -> int64 (N,)."""
    folder = study.folder / "01-train" / "base"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: predict(study, model, Degraded(data.split(name), data, device_of(study))) for name in SPLITS}
    for name, classes in found.items():
        np.save(folder / f"predictions-{name}.npy", classes)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return found


def load_base(study: Study, data: Data) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The base model on the device, in evaluation mode, and its predictions. LookupError if it is not trained."""
    folder = study.folder / "01-train" / "base"
    if not (folder / "model.safetensors").is_file():
        raise LookupError(f"no base model yet; `roar run params/{study.name}.yaml` trains it")
    model = models.build(study.model, len(data.classes), data.shape)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    model = model.to(device_of(study), memory_format=torch.channels_last).eval()
    return model, {name: np.load(folder / f"predictions-{name}.npy", allow_pickle=False) for name in SPLITS}
