"""Training and evaluation on degraded images, on the device: gather, normalise, remove, augment, step.

Images and ranking stay on the device where they fit, else batches stream from their memory-mapped files. One function
trains the base model (nothing removed) and every retraining, so that they differ in the removal alone.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from roarlib import impute, models, results
from roarlib.augment import augment
from roarlib.data import SPLITS, Data, Split, image_ids, normalise
from roarlib.params import InputError, Study
from roarlib.remove import imputes, removed
from roarlib.stored import release


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


def precision_of(choice: str, device: torch.device) -> str:
    """float32 or bfloat16, of a study's choice; `auto` is bfloat16 where the hardware multiplies it natively."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return "bfloat16" if native else "float32"


def room(study: Study, device: torch.device) -> int:
    """Bytes that images and ranking may take on the device: the study's memory_gb, or a cell's part of what is free.

    A third of what is free, shared by the cells that run at a time; of a GPU, by those that its `workers` put on it.
    """
    if study.memory_gb:
        return int(study.memory_gb * 1e9)
    if device.type == "cuda":
        sharing = -(-(study.workers or 1) // max(1, torch.cuda.device_count()))
        return torch.cuda.mem_get_info(device)[0] // (3 * sharing)
    return min([psutil.virtual_memory().available, *_allowed()]) // (3 * (study.workers or results.cores()))


def _allowed() -> list[int]:
    """Bytes that a control group, a batch system's job for example, leaves this process; empty without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [max(0, int(limit) - int(used))] if limit.isdigit() else []


def placed(study: Study, split: Split, ranking: np.ndarray | None = None) -> str:
    """In words, where the images of a split and their ranking will be during training."""
    device = device_of(study)
    size, limit = split.images.nbytes + (0 if ranking is None else ranking.nbytes), room(study, device)
    where = f"are kept on {device}" if size <= limit else "stream from the disk, read ahead by a thread"
    return f"images and ranking ({size / 1e9:.2f} GB; room for {limit / 1e9:.2f} GB) {where}"


@dataclass
class Degraded:
    """A split of the data (`train` or `test`) with its removal: gives normalised, degraded batches and their labels.

    ranking: uint8 (N, C, H, W) or (N, 1, H, W), or None for untouched images. Removed inputs become 0, which after
    normalisation is the training set's mean of their channel; in the modes that impute, 8-bit values from their
    neighbours with noise (standard deviation, 0..1) of a seed; in mode `mask` the mask is all there is. room: bytes it
    may keep on the device, None for any; a larger split streams from its file, the next batches being read while the
    last is used.
    """

    part: str
    data: Data
    device: torch.device
    ranking: np.ndarray | None = None
    percent: int = 0
    mode: str = "remove"
    room: int | None = None
    noise: float = 0.01
    seed: int = 0

    def __post_init__(self):
        self.split = self.data.split(self.part)
        if self.ranking is not None and len(self.ranking) != len(self.split):
            raise ValueError(f"ranking of {len(self.ranking)} images for a split of {len(self.split)}")
        self.mean, self.std = _put(self.data.mean, self.device), _put(self.data.std, self.device)
        self.labels = _put(self.split.labels, self.device)
        self.stored = [self.split.images] + ([] if self.ranking is None else [self.ranking])
        self.resident = self.room is None or sum(array.nbytes for array in self.stored) <= self.room
        if self.resident:
            self.stored = [_put(array, self.device).permute(0, 2, 3, 1).contiguous() for array in self.stored]
            if self.ranking is not None and imputes(self.mode):  # once, not once an epoch
                self.stored = [self._all_imputed()]

    def __len__(self):
        return len(self.split)

    def batch(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float32 (B, C, H, W), channels last, and labels int64 (B,) of an index tensor or slice."""
        return self._degrade(index, self._read(index))

    def batches(self, indices: Iterable[torch.Tensor | slice]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`batch` of each index in turn; while one is used a thread reads the next two, if they come from disk."""
        if self.resident:
            yield from map(self.batch, indices)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = deque()
            for index in indices:
                ahead.append((index, reader.submit(self._read, index)))
                if len(ahead) > 2:
                    index, found = ahead.popleft()
                    yield self._degrade(index, found.result())
            for index, found in ahead:
                yield self._degrade(index, found.result())

    def _read(self, index) -> list[torch.Tensor]:
        """The stored bytes of these images and their ranks, (B, H, W, C): from the device, or from the disk, pinned."""
        if self.resident:
            if isinstance(index, slice):
                return [array[index] for array in self.stored]
            return [array.index_select(0, index.to(self.device)) for array in self.stored]
        rows = index if isinstance(index, slice) else index.numpy()
        found = [torch.from_numpy(np.array(array[rows])).permute(0, 2, 3, 1).contiguous() for array in self.stored]
        release(*self.stored)
        return [array.pin_memory() for array in found] if self.device.type == "cuda" else found

    def _degrade(self, index, found: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, *ranks = (array.to(self.device, non_blocking=True).permute(0, 3, 1, 2) for array in found)
        gone = removed(ranks[0], self.percent, self.mode) if ranks else None
        if ranks and self.mode == "mask":
            images = (2.0 * gone - 1).expand(images.shape)
        elif ranks and imputes(self.mode):
            images = normalise(self._imputed(images, gone, index), self.mean, self.std)
        else:
            images = normalise(images, self.mean, self.std)  # channels last in memory, as what was read
            if ranks:
                images.mul_(~gone)  # a third of the time of masked_fill_
        return images, self.labels[index if isinstance(index, slice) else index.to(self.device)]

    def _imputed(self, images: torch.Tensor, gone: torch.Tensor, index) -> torch.Tensor:
        """Images (B, C, H, W) with what is gone imputed, uint8 again as stored images are."""
        ids = image_ids(self.part, index, self.device)
        scaled = normalise(images, self.mean, self.std).contiguous()
        filled = impute.noisy_linear(scaled, gone, ids, self.seed, self.noise / self.std)
        values = (filled * self.std[:, None, None] + self.mean[:, None, None]) * 255
        return values.round_().clamp_(0, 255).to(torch.uint8)

    def _all_imputed(self) -> torch.Tensor:
        """Every image of the split imputed: uint8 (N, H, W, C)."""
        images, ranks = (array.permute(0, 3, 1, 2) for array in self.stored)
        out = torch.empty_like(self.stored[0])
        for first in range(0, len(images), 256):
            index = slice(first, min(first + 256, len(images)))
            gone = removed(ranks[index], self.percent, self.mode)
            out[index] = self._imputed(images[index], gone, index).permute(0, 2, 3, 1)
        return out


def degraded(
    study: Study, data: Data, part: str, ranking: np.ndarray | None = None, percent: int = 0, mode: str = "remove"
) -> Degraded:
    """A split as the study degrades it, on the study's device, in memory if there is room."""
    device = device_of(study)
    where = room(study, device)
    return Degraded(part, data, device, ranking, percent, mode, where, study.imputation_noise, study.base_seed)


def _put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    array = array if array.flags.writeable else np.array(array)  # torch warns of read-only arrays
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


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
    Recipe: SGD with Nesterov momentum, label smoothing, a learning rate per step that is triangular or falls at
    drop_epochs, no selection of any kind.
    """
    device = device_of(study)
    images = degraded(study, data, "train", ranking, percent, mode)
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
    half = precision_of(study.precision, device) == "bfloat16"
    for epoch in range(1, study.epochs + 1):
        total = torch.zeros((), device=device)
        for x, y in images.batches(_order(len(images), batches, study.batch_size, generator)):
            x = augment(x, study.augment, generator).contiguous(memory_format=torch.channels_last)
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


def _order(count: int, batches: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A new order of all images, cut into whole batches."""
    order = torch.randperm(count, generator=generator)
    return (order[i * size : (i + 1) * size] for i in range(batches))


def _optimiser(study: Study, model: nn.Module, steps: int):
    decayed = [p for p in model.parameters() if p.ndim > 1]  # not batch norms and biases, as the paper
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": study.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, study.learning_rate, study.momentum, nesterov=study.momentum > 0, fused=True)
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
    """The class with the largest logit for every image: int64 (N,). flip: add the logits of its mirror image."""
    half, found = precision_of(study.precision, images.device) == "bfloat16", []
    batch = max(8, 1_000_000 // (images.data.shape[1] * images.data.shape[2]))
    for x, _ in images.batches(slice(i, i + batch) for i in range(0, len(images), batch)):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            found.append((model(x) + model(x.flip(3)) if flip else model(x)).argmax(1))
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
    images = degraded(study, data, "test", ranking, percent, mode)
    return float((predict(study, model, images, study.flip_average) == data.test.labels).mean())


def save_base(study: Study, data: Data, model: nn.Module) -> dict[str, np.ndarray]:
    """Keep the base model (safetensors) and its predictions on both splits; returns split -> int64 (N,)."""
    folder = study.folder / "01-train" / "base"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: predict(study, model, degraded(study, data, name)) for name in SPLITS}
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
