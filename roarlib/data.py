"""Data sets as arrays: images uint8 (N, C, H, W), labels int64 (N,), the training set's mean and std per channel."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from roarlib import textures
from roarlib.params import InputError, Study, root

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W), labels int64 (N,); masks bool (N, 1, H, W) of the informative pixels, where known."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self):
        return len(self.images)

    def first(self, count: int) -> "Split":
        """The first `count` images; 0 means all. Raises InputError where there are not so many."""
        if count > len(self):
            raise InputError(f"{count} images asked for, but the data set has only {len(self)}")
        cut = slice(count or None)
        return Split(self.images[cut], self.labels[cut], None if self.masks is None else self.masks[cut])


@dataclass(frozen=True)
class Data:
    """A train and a test split and their class names; mean and std per channel, in 0..1 units, of the train split."""

    train: Split
    test: Split
    classes: list[str]
    mean: np.ndarray  # float32 (C,)
    std: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.images.shape[1:]

    def split(self, name: str) -> Split:
        return {"train": self.train, "test": self.test}[name]


def load(study: Study) -> Data:
    """The study's data, checked; InputError if it is missing, damaged or inconsistent."""
    if study.dataset not in DATASETS:
        near = difflib.get_close_matches(study.dataset, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown dataset '{study.dataset}'{hint} Known: {', '.join(DATASETS)}")
    train, test, classes = DATASETS[study.dataset](study)
    try:
        train, test = train.first(study.train_images), test.first(study.test_images)
    except InputError as error:
        raise InputError(f"{study.dataset}: {error}") from None
    for name, split in (("train", train), ("test", test)):
        _check(f"{study.dataset} {name}", split, len(classes))
    if len(np.unique(train.labels)) < len(classes):
        missing = sorted(set(range(len(classes))) - set(train.labels.tolist()))
        raise InputError(f"{study.dataset} train: no image of class {classes[missing[0]]}; raise train_images")
    return Data(train, test, list(classes), *_moments(train.images))


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 (N, C, H, W) to float32 with mean 0 and standard deviation 1 per channel over the training set."""
    scale, shift = 1 / (255 * std), -mean / std  # (C,)
    return images.float().mul_(scale[:, None, None]).add_(shift[:, None, None])


def data_dir(study: Study) -> Path:
    """Where data sets lie: the study's data_dir, else $ROAR_DATA, else data/ in the project."""
    return Path(study.data_dir or os.environ.get("ROAR_DATA") or root() / "data").expanduser()


def _check(name: str, split: Split, classes: int) -> None:
    if split.images.dtype != np.uint8 or split.images.ndim != 4:
        raise InputError(f"{name}: images must be uint8 (N, C, H, W), not {split.images.dtype} {split.images.shape}")
    if len(split.images) != len(split.labels):
        raise InputError(f"{name}: {len(split.images)} images but {len(split.labels)} labels")
    if not len(split):
        raise InputError(f"{name}: no images")
    if split.labels.min() < 0 or split.labels.max() >= classes:
        raise InputError(f"{name}: labels {split.labels.min()}..{split.labels.max()}, but {classes} classes")


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel in 0..1 units, from a histogram: exact, and one pass over any size."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    share = counts / counts.sum(1, keepdims=True)  # (C, 256)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)


def _textures(study: Study):
    train = Split(*textures.make(study.train_images or 2000, seed=0, size=32))
    test = Split(*textures.make(study.test_images or 1000, seed=1, size=32))
    return train, test, textures.CLASSES


def _torchvision(cls_name: str, put: str) -> Callable:
    def load_splits(study: Study):
        import torchvision.datasets  # slow to import, and not needed for textures

        cls, folder = getattr(torchvision.datasets, cls_name), data_dir(study)
        splits = []
        for train in (True, False):
            try:
                found = _found_or_fetched(cls, folder, train)
            except (RuntimeError, OSError, EOFError, ValueError) as error:
                raise InputError(
                    f"{study.dataset}: missing or damaged under {folder} and not downloadable "
                    f"({' '.join(str(error).split())[:90]}); put {put} there, or name its folder by "
                    "data_dir or the environment variable ROAR_DATA"
                ) from None
            images = np.asarray(found.data)  # (N, H, W, C) or (N, H, W)
            images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
            splits.append(Split(np.ascontiguousarray(images), np.asarray(found.targets, dtype=np.int64)))
        return *splits, found.classes

    return load_splits


def _found_or_fetched(cls, folder: Path, train: bool):
    try:
        return cls(folder, train=train, download=False)
    except (RuntimeError, OSError, EOFError, ValueError):
        return cls(folder, train=train, download=True)


# name -> function of the study that returns (train Split, test Split, class names)
DATASETS: dict[str, Callable] = {
    "textures": _textures,
    "cifar10": _torchvision("CIFAR10", "cifar-10-batches-py/"),
    "fashion-mnist": _torchvision("FashionMNIST", "FashionMNIST/raw/"),
}
