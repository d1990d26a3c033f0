"""Data sets as arrays: images uint8 (N, C, H, W), labels int64 (N,), the training set's mean and std per channel.

Every data set is prepared once (`prepare`): photographs are decoded and cropped, others copied, into arrays under
outputs/_prepared/, which all cells of all studies memory-map.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from roarlib.data import arrays, photos, prepare, textures
from roarlib.data.prepare import Split
from roarlib.study import brought, own
from roarlib.study.brought import data_dir
from roarlib.study.files import write_atomically
from roarlib.study.params import InputError, Study

SPLITS = ("train", "test")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and std that torchvision's weights were trained with
VERSION = 1  # of the prepared arrays; raise it when a loader gives other bytes for the same parameters


@dataclass(frozen=True)
class Data:
    """A train and a test split and their class names; mean and std per channel, in 0..1 units, of the train split.

    scaled_by: the mean and std that images are normalised by, where they are not the train split's. image_mean: whether
    removed inputs become their own image's mean instead of `fill`.
    """

    train: Split
    test: Split
    classes: list[str]
    mean: np.ndarray  # float32 (C,)
    std: np.ndarray
    scaled_by: tuple[np.ndarray, np.ndarray] | None = None
    digest: str = ""  # of all images and labels
    image_mean: bool = False

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, float32 (C,), that images are normalised by."""
        return self.scaled_by or (self.mean, self.std)

    @property
    def fill(self) -> np.ndarray:
        """What removed inputs become, normalised, float32 (C,): the train split's mean; 0 without `scaled_by`."""
        mean, std = self.scale
        return (self.mean - mean) / std

    def shown_fill(self, pixels: np.ndarray) -> np.ndarray:
        """What inputs removed from an image uint8 (C, H, W) become, in 0..255: float (C,)."""
        return pixels.mean((1, 2)) if self.image_mean else 255 * self.mean

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.shape

    def split(self, name: str) -> Split:
        return {"train": self.train, "test": self.test}[name]


def load(study: Study, progress: Callable[[int, int], None] | None = None) -> Data:
    """The study's data, memory-mapped; prepared first if need be, calling `progress`(images done, of all).

    InputError if they are missing, damaged or inconsistent.
    """
    folder = prepared(study)
    if not (folder / "meta.json").is_file():
        try:
            prepare.write(folder, *_sources(study), progress)
        except OSError as error:
            raise InputError(
                photos.shown(f"cannot read or write {error.filename or folder}: {error.strerror}")
            ) from None
    meta = prepare.meta(folder)
    splits = [prepare.read(folder, name) for name in SPLITS]
    labels = b"".join(split.labels.tobytes() for split in splits)
    digest = hashlib.sha256(labels + json.dumps([meta[name]["crc32"] for name in SPLITS]).encode()).hexdigest()[:16]
    moments = np.float32(meta["mean"]), np.float32(meta["std"])
    return Data(*splits, meta["classes"], *moments, _scale(study, splits[0]), digest, study.fill == "image-mean")


def _scale(study: Study, split: Split) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean and std that `normalise` names; None for the train set's own."""
    if study.normalise == "train":
        return None
    channels = split.shape[0]
    if study.normalise == "imagenet" and channels != 3:
        raise InputError(f"normalise: imagenet is for colour images, and {study.dataset} has {channels} channel")
    values = {"imagenet": IMAGENET, "0.5": ([0.5] * channels,) * 2}[study.normalise]
    return tuple(np.float32(value) for value in values)


def prepared(study: Study) -> Path:
    """The folder of a study's prepared arrays, shared by studies with the same data keys, however they spell paths."""
    kind, _, path = study.dataset.partition(":")
    if study.dataset not in DATASETS and kind not in ("folder", "npz") and not own.is_own(study.dataset):
        near = difflib.get_close_matches(f"{kind}:" if path else kind, [*DATASETS, "folder:", "npz:"], 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        others = "folder:PATH, npz:FILE, or your own module:function"
        raise InputError(f"unknown dataset '{study.dataset}'{hint} Known: {', '.join(DATASETS)}, {others}")
    dataset, where = study.dataset, [] if study.dataset.startswith("textures") else [str(data_dir(study).resolve())]
    if kind in ("folder", "npz"):  # by its resolved path
        dataset, where = f"{kind}:{brought.where(study, path)}", []
    wanted = [VERSION, dataset, study.train_images, study.test_images, study.image_size, study.resize, *where]
    wanted += ["evenly"] * (arrays.brought_as(study.dataset) and bool(study.train_images or study.test_images))
    word = re.sub("[^a-z0-9]+", "-", dataset.lower()).strip("-")[-40:]
    return study.home / "_prepared" / f"{word}-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]}"


def current(study: Study, progress: Callable[[int, int], None] | None = None) -> Data:
    """`load`, with an InputError if the pictures are no longer those that were prepared."""
    load(study, progress)
    if parts := changed(study):
        raise InputError(
            f"the {' and '.join(parts)} pictures are not those that were prepared: delete {prepared(study)}, and give "
            "the study another name if it has results"
        )
    return load(study)  # anew: `changed` may have mended names of classes


def changed(study: Study, thorough: bool = False, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Splits whose pictures are no longer those that were prepared; none if the pictures are gone.

    Other names or sizes tell at once. If only times differ, or with `thorough`, the pictures are decoded again
    (`progress` counts each split by itself); if they are the same after all, their times are noted.
    """
    if study.dataset in ARRAYS:
        return []
    thorough |= own.is_own(study.dataset)  # only reading it again tells what a function returns
    folder = prepared(study)
    meta, found = prepare.meta(folder), []
    try:
        splits, classes = _sources(study)
    except brought.Missing:  # any other error: they are there, but no longer what was prepared
        return []
    for name, split in splits.items():
        now = prepare.digests(split)
        doubtful = thorough or meta[name].get("times") != now["times"]
        if meta[name].get("names") != now["names"] or doubtful and prepare.differs(folder, {name: split}, progress):
            found.append(name)
        else:
            meta[name] |= now
    if len(classes) != len(meta["classes"]):
        return list(SPLITS)
    if not found:
        meta["classes"] = classes  # names that were mended
    if meta != prepare.meta(folder) and os.access(folder, os.W_OK):
        write_atomically(folder / "meta.json", json.dumps(meta, indent=1))
    return found


def sizes(study: Study) -> tuple[dict[str, int], tuple[int, int, int], int]:
    """({split: number of images}, (C, H, W), classes) of the study's data, without decoding any photograph."""
    found = load(study) if (prepared(study) / "meta.json").is_file() else None
    splits, classes = ({s: found.split(s) for s in SPLITS}, found.classes) if found else _sources(study)
    return {name: len(split) for name, split in splits.items()}, splits["train"].shape, len(classes)


def _sources(study: Study) -> tuple[dict, list[str]]:
    """The data to prepare, checked: splits (arrays in memory, or pictures to decode) and class names."""
    if study.dataset in ARRAYS or arrays.brought_as(study.dataset):
        if study.image_size or study.resize:
            raise InputError(f"image_size and resize are for photographs; {study.dataset} has a size of its own")
        *found, classes = ARRAYS.get(study.dataset, arrays.load)(study)
    else:
        size = study.image_size or 224
        name, home = study.dataset, data_dir(study)
        if name.startswith("folder:"):
            hint = "; put pictures there as train/<class>/ and test/<class>/ (or val/)"
            name = f"folder:{brought.find(study, name[7:], name, hint)}"
        *found, classes = photos.find(name, home, study.resize or round(size * 8 / 7), size)
    splits = {}
    for name, split, count in zip(SPLITS, found, (study.train_images, study.test_images), strict=True):
        if count > len(split):
            raise InputError(f"{study.dataset}: {count} images asked for, but the data set has only {len(split)}")
        splits[name] = split.first(count, evenly=study.dataset not in ARRAYS)
        if not len(splits[name]):
            raise InputError(f"{study.dataset} {name}: no images")
    shapes = {name: split.shape for name, split in splits.items()}
    if shapes["train"] != shapes["test"]:
        raise InputError(f"{study.dataset}: train images are {shapes['train']} and test images {shapes['test']}")
    if len(classes) < 2:
        raise InputError(f"{study.dataset} has one class, {classes[0]}: there is nothing to tell apart")
    if missing := set(range(len(classes))).difference(splits["train"].labels.tolist()):
        raise InputError(f"{study.dataset} train: no image of class {classes[min(missing)]}; raise train_images")
    return splits, list(classes)


def pictures(study: Study) -> dict[str, list[Path]]:
    """The picture files of all prepared images, by split; empty for a data set of arrays."""
    if study.dataset in ARRAYS or arrays.brought_as(study.dataset):
        return {}
    splits, meta = _sources(study)[0], prepare.meta(prepared(study))
    bad = {name: meta[name]["unreadable"] for name in SPLITS}  # "name (reason)"

    def read(name: str, path: Path) -> bool:
        return not any(entry.startswith(f"{photos.shown(path)} (") for entry in bad[name])

    return {name: [path for path in splits[name].paths if read(name, path)] for name in SPLITS}


def notes(study: Study) -> list[str]:
    """What a user should know about the prepared data: counts, pictures left out, counts unlike the paper's."""
    folder = prepared(study)
    meta, lines = prepare.meta(folder), []
    for k, name in enumerate(SPLITS):
        left_out = meta[name]["unreadable"] + meta[name]["missing"]
        wanted = photos.COUNTS.get(study.dataset, (0, 0))[k]
        full = wanted and not (study.train_images, study.test_images)[k]
        paper = f" (the paper's count: {wanted})" if full and wanted != meta[name]["count"] else ""
        lines.append(f"{name}: {meta[name]['count']} images{paper}")
        for key, words in (("missing", "listed but not there"), ("unreadable", "unreadable and left out")):
            lines[-1] += f", {len(meta[name][key])} {words}" if meta[name][key] else ""
        if others := meta[name].get("others"):
            kinds = ", ".join(f"{kind} ({count})" for kind, count in others.items())
            lines.append(f"  {(n := sum(others.values()))} file{'s' * (n > 1)} left out: {kinds}")
        low, high = meta[name].get("levels", (0, 255))
        if high - low < 25.5:
            lines.append(f"  only levels {low} to {high} of 0..255 occur; scale up 12-bit values in 16-bit files")
        lines += [f"  left out: {entry}" for entry in left_out[:10]]
        if len(left_out) > 10:
            lines.append(f"  and {len(left_out) - 10} more: {folder / 'meta.json'}")
        if none := set(range(len(meta["classes"]))).difference(np.load(folder / f"{name}-labels.npy").tolist()):
            lines.append(
                f"  no image of {len(none)} of {len(meta['classes'])} classes, for example {meta['classes'][min(none)]}"
            )
    if torn := meta.get("torn"):
        lines.append(f"  {torn} train image{'s are' if torn > 1 else ' is'} in another class as well")
    if shared := meta.get("shared"):
        lines.append(f"  {shared} test image{'s are' if shared > 1 else ' is'} among the train images as well")
    return lines


def _textures(kind: str, study: Study):
    classes = [f"direction {18 * k}°" for k in range(10)] if kind == "outline" else textures.CLASSES
    train = Split(*textures.make(study.train_images or 2000, 0, 32, kind))
    return train, Split(*textures.make(study.test_images or 1000, 1, 32, kind)), classes


def _torchvision(cls_name: str, put: str, study: Study):
    import torchvision.datasets  # slow to import, and not needed for textures

    cls, folder = getattr(torchvision.datasets, cls_name), data_dir(study)
    splits = []
    for train in (True, False):
        try:
            found = cls(folder, train=train, download=True)  # only if it is not there
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


# name -> function of the study that returns (train Split, test Split, class names)
ARRAYS: dict[str, Callable] = {
    **{f"textures-{kind}".rstrip("-"): partial(_textures, kind) for kind in textures.KINDS},
    "cifar10": partial(_torchvision, "CIFAR10", "cifar-10-batches-py/"),
    "fashion-mnist": partial(_torchvision, "FashionMNIST", "FashionMNIST/raw/"),
}
DATASETS = [*ARRAYS, *photos.COUNTS]  # and folder:PATH, npz:FILE, module:function
