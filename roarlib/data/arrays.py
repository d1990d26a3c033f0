"""Arrays that a user brings: an .npz file in MedMNIST's layout, or a function that returns the same."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from roarlib.data.prepare import Split
from roarlib.study import brought, own
from roarlib.study.params import InputError, Study

NEEDED = ("train_images", "train_labels", "test_images", "test_labels")


def brought_as(dataset: str) -> bool:
    """Whether a data set consists of a user's arrays."""
    return dataset.startswith("npz:") or own.is_own(dataset)


def load(study: Study) -> tuple[Split, Split, list[str]]:
    """(train, test, class names) of `npz:FILE` or `module:function`, which takes nothing and returns a dict.

    Arrays: train_images, train_labels, test_images, test_labels and, optionally, `classes` (names). Images: uint8 (N,
    H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W); labels: integers (N,) or (N, 1). InputError says what does not fit.
    """
    if own.is_own(study.dataset):
        files, found = [], _made(study.dataset)
    else:
        files = [brought.find(study, study.dataset.removeprefix("npz:"), study.dataset)]
        found = _opened(files[0])
    if lack := [name for name in NEEDED if name not in found]:
        raise InputError(f"{study.dataset} has no {', '.join(lack)}; there must be {', '.join(NEEDED)}")
    splits = []
    for part in ("train", "test"):
        images = _images(f"{study.dataset}: {part}_images", found[f"{part}_images"])
        labels = found[f"{part}_labels"]
        if np.shape(labels)[:1] != (len(images),):
            raise InputError(f"{study.dataset} {part}: {len(images)} images but {np.size(labels)} labels")
        splits.append(Split(images, _labels(f"{study.dataset}: {part}_labels", labels), None, files))
    count = 1 + max(int(split.labels.max(initial=0)) for split in splits)
    if odd := set(range(count)).symmetric_difference(splits[0].labels.tolist()):
        raise InputError(
            f"{study.dataset}: train_labels must be 0 to K - 1 with every class present; not so for {min(odd)}"
        )
    names = np.atleast_1d(found["classes"]).astype(str).tolist() if "classes" in found else list(map(str, range(count)))
    if len(names) != count:
        raise InputError(f"{study.dataset}: classes has {len(names)} names, and there are {count} classes")
    return *splits, names


def _made(dataset: str) -> Mapping:
    with own.told(f"{dataset} fails"):
        found = own.load(dataset)()
    if not isinstance(found, Mapping):
        raise InputError(f"{dataset} returns a {type(found).__name__}; it must be a dict of {', '.join(NEEDED)}")
    return found


def _opened(file: Path) -> Mapping:
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in (*NEEDED, "classes") if name in opened}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} cannot be read as .npz without pickle: {' '.join(str(error).split())[:90]}") from None


def _images(name: str, images) -> np.ndarray:
    """Images as uint8 (N, C, H, W)."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        hint = "; scale values in 0..1 by 255 and round" if images.dtype.kind == "f" else ""
        raise InputError(f"{name} are {images.dtype}, not uint8 (0 to 255){hint}")
    if images.ndim == 3:
        return images[:, None]
    last, first = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (3, 1))
    if last == first:
        raise InputError(
            f"{name} have shape {images.shape}; it must be (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if last else images


def _labels(name: str, labels) -> np.ndarray:
    """Labels as int64 (N,)."""
    labels = np.asarray(labels)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise InputError(
            f"{name} are {labels.dtype} of shape {labels.shape}; they must be whole numbers (N,) from 0 on"
        )
    return labels.astype(np.int64)
