"""Degraded images on the device: gather, normalise, remove or impute, batch by batch.

Images and ranking stay on the device if they fit; else batches stream from their memory-mapped files, with exactly the
same numbers.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from roarlib.data.datasets import SPLITS, Data, Split
from roarlib.engine import impute
from roarlib.study.files import release
from roarlib.study.machine import device_of, room
from roarlib.study.names import imputes
from roarlib.study.params import Study
from roarlib.study.rankings import removed


def image_ids(part: str, index: slice | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The numbers that seed an image's noise, ties and Random: int64 (B,), different for train and test images."""
    numbers = torch.arange(index.start, index.stop) if isinstance(index, slice) else index
    return numbers.to(device) + (SPLITS.index(part) << 40)


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 (N, C, H, W) to float32, so that mean (C,), in 0..1 units, becomes 0 and std (C,) becomes 1."""
    scale, shift = 1 / (255 * std), -mean / std  # (C,)
    return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


def placed(study: Study, split: Split, ranking: np.ndarray | None = None) -> str:
    """Where the images of a split and their ranking will be kept during training, in words."""
    device = device_of(study)
    size, limit = split.images.nbytes + (0 if ranking is None else ranking.nbytes), room(study, device)
    where = f"are kept on {device}" if size <= limit else "stream from the disk, read ahead by a thread"
    return f"images and ranking ({size / 1e9:.2f} GB; room for {limit / 1e9:.2f} GB) {where}"


@dataclass
class Degraded:
    """A split of the data (`train` or `test`) with inputs removed: gives normalised, degraded batches and their labels.

    ranking: uint8 (N, C, H, W) or (N, 1, H, W), or None for untouched images. Removed inputs become `data.fill`, the
    training set's mean of their channel (0 if that normalises the images), or their own image's mean. In the modes that
    impute they become 8-bit values from their neighbours, with noise (standard deviation, in 0..1 units) drawn by seed;
    in mode `mask` models see the mask alone. room: bytes it may keep on the device, None for any number; a larger split
    streams from its file, the next batches being read while one is used.
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
        self.mean, self.std = (_put(values, self.device) for values in self.data.scale)
        self.fill = _put(self.data.fill, self.device) if self.data.fill.any() else None  # None: 0
        self.stored = [self.split.images] + ([] if self.ranking is None else [self.ranking])
        self.resident = self.room is None or sum(array.nbytes for array in self.stored) <= self.room
        if self.resident:
            self.stored = [_put(array, self.device).permute(0, 2, 3, 1).contiguous() for array in self.stored]
            if self.ranking is not None and imputes(self.mode):  # once, not every epoch
                self.stored = [self._all_imputed()]

    def __len__(self):
        return len(self.split)

    @cached_property
    def labels(self) -> torch.Tensor:
        """int64 (N,), put on the device when they are first asked for: explaining images needs none."""
        return _put(self.split.labels, self.device)

    def images(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Images float32 (B, C, H, W), channels last, of an index tensor or slice."""
        return self._degrade(index, self._read(index))

    def batch(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """`images`, and their labels int64 (B,)."""
        return self.images(index), self.labels[index]

    def batches(self, indices: Iterable[torch.Tensor | slice]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`batch` of each index in turn; while one is used a thread reads the next two, if they come from disk."""
        if self.resident:
            yield from map(self.batch, indices)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting = ((index, reader.submit(self._read, index)) for index in indices)
            ahead = deque(islice(waiting, 2))
            while ahead:
                ahead.extend(islice(waiting, 1))
                index, found = ahead.popleft()
                yield self._degrade(index, found.result()), self.labels[index]

    def _read(self, index) -> list[torch.Tensor]:
        """The stored bytes of these images and their ranks, (B, H, W, C): from the device, or from the disk, pinned."""
        if self.resident:
            if isinstance(index, slice):
                return [array[index] for array in self.stored]
            return [array.index_select(0, index.to(self.device)) for array in self.stored]
        found = [torch.from_numpy(np.array(array[rows(index)])) for array in self.stored]
        found = [array.permute(0, 2, 3, 1).contiguous() for array in found]
        release(*self.stored)
        return found if self.device.type == "cpu" else [array.pin_memory() for array in found]

    def _degrade(self, index, found: list[torch.Tensor]) -> torch.Tensor:
        images, *ranks = (array.to(self.device, non_blocking=True).permute(0, 3, 1, 2) for array in found)
        gone = removed(ranks[0], self.percent, self.mode) if ranks else None
        if ranks and self.mode == "mask":
            images = (2.0 * gone - 1).expand(images.shape)
        elif ranks and imputes(self.mode):
            images = normalise(self._imputed(images, gone, index), self.mean, self.std)
        else:
            images = normalise(images, self.mean, self.std)  # channels last in memory, as what was read
            if ranks and self.data.image_mean:
                images = torch.where(gone, images.mean((2, 3), keepdim=True), images)
            elif ranks and self.fill is not None:
                images = torch.where(gone, self.fill[:, None, None], images)
            elif ranks:
                images.mul_(~gone)  # a third of the time of masked_fill_
        return images

    def _imputed(self, images: torch.Tensor, gone: torch.Tensor, index) -> torch.Tensor:
        """Images (B, C, H, W) with what is gone imputed, uint8 again as stored images are."""
        ids = image_ids(self.part, index, self.device)
        scaled = normalise(images, self.mean, self.std).contiguous()
        fill = 0.0 if self.fill is None else self.fill
        filled = impute.noisy_linear(scaled, gone, fill, self.noise / self.std, self.seed, ids)
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


def rows(index: torch.Tensor | slice) -> slice | np.ndarray:
    """An index for NumPy, which would take a tensor of one image for a number."""
    return index if isinstance(index, slice) else index.numpy()


def degraded(
    study: Study, data: Data, part: str, ranking: np.ndarray | None = None, percent: int = 0, mode: str = "remove"
) -> Degraded:
    """A split as the study degrades it, on the study's device, in memory if there is room."""
    device = device_of(study)
    where = room(study, device)
    return Degraded(part, data, device, ranking, percent, mode, where, study.imputation_noise, study.base_seed)


def as_seen(pixels, ranking, percent: int, mode: str, fill) -> np.ndarray:
    """An image uint8 (C, H, W) as models see it in a mode; a mask alone has white holes, imputed values no noise.

    ranking: uint8 (C or 1, H, W). fill: what removed inputs become, per channel (C,) in 0..255, rounded.
    """
    gone, pixels = removed(np.asarray(ranking), percent, mode), np.asarray(pixels)
    fill = np.asarray(fill, dtype=float)
    if mode == "mask":
        return np.broadcast_to(255 * gone, pixels.shape).astype(np.uint8)
    if imputes(mode):
        values = impute.linear(torch.tensor(pixels / 255)[None], torch.tensor(gone)[None], torch.tensor(fill / 255))
        return np.rint(255 * values[0].numpy()).astype(np.uint8)  # means of pixels: in range
    return np.where(gone, np.rint(fill).astype(np.uint8)[:, None, None], pixels)


def _put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    array = array if array.flags.writeable else np.array(array)  # torch warns about read-only arrays
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
