"""Data prepared once: images decoded, cropped and written to memory-mapped uint8 arrays that every stage reads.

A folder of arrays holds `<split>-images.npy` uint8 (N, C, H, W), `-labels.npy` int64 (N,), `-masks.npy` bool where
known, and meta.json, written last, so that its presence means done. Interrupted work resumes where it stopped.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from roarlib.study.files import alone, new_array, release, write_atomically
from roarlib.study.params import InputError

CHUNK = 256  # images decoded and written at once
BROKEN = 0.01  # a larger share of unreadable pictures is an error


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W), labels int64 (N,); masks bool (N, 1, H, W) of the informative pixels, where known."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    paths: tuple | list = ()  # files that the arrays come from: see `digests`

    def __len__(self):
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.images.shape[1:]

    def read(self, part: slice) -> tuple[np.ndarray, dict[int, str]]:
        """A part of the images, none of them unreadable: the interface of `photos.Photos.read`."""
        return self.images[part], {}

    def first(self, count: int, evenly: bool = False) -> "Split":
        """The first `count` images or, with `evenly`, the first few of each class; 0 means all."""
        cut = of_each_class(self.labels, count) if evenly and count else slice(count or None)
        masks = None if self.masks is None else self.masks[cut]
        return replace(self, images=self.images[cut], labels=self.labels[cut], masks=masks)


def of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` images, as evenly from all classes as possible: the first of each, in their order."""
    turn = np.empty(len(labels), int)  # which image of its class it is
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return np.sort(np.lexsort((labels, turn))[:count])


def write(folder: Path, splits: dict, classes: list[str], progress: Callable | None) -> None:
    """Write all splits and meta.json, resuming interrupted work. progress: called with (images done, of all).

    splits: name -> object with `labels`, `shape` and `read` (`Split`, `photos.Photos`). Pictures that cannot be read
    are left out and named in meta.json; InputError if they are more than 1 percent.
    """
    total = sum(len(split) for split in splits.values())
    with alone(folder):
        if (folder / "meta.json").is_file():
            return  # another process was first
        meta, levels, before = {"classes": list(classes)}, {}, 0
        for name, split in splits.items():
            tell = progress and (lambda done, before=before: progress(before + done, total))
            meta[name], levels[name] = _write_split(folder, name, split, tell)
            before += len(split)
        meta["shared"], meta["torn"] = _repeated(folder, meta)
        meta["mean"], meta["std"] = (moment.tolist() for moment in moments(levels["train"]))
        write_atomically(folder / "meta.json", json.dumps(meta, indent=1))
        for rest in folder.glob("*.progress.json"):
            rest.unlink()


def _write_split(folder: Path, name: str, split, tell: Callable | None) -> tuple[dict, np.ndarray]:
    """One split chunk by chunk; returns its entry of meta.json and the histogram of values, (C, 256)."""
    file, notes = folder / f"{name}-images.npy", folder / f"{name}.progress.json"
    state = digests(split) | {"seen": 0, "kept": 0, "crc32": 0, "bad": {}, "levels": [[0] * 256] * split.shape[0]}
    earlier = json.loads(notes.read_text()) if notes.is_file() and file.is_file() else {}
    if earlier.get("times") == state["times"]:
        state, array = earlier, np.lib.format.open_memmap(file, "r+")
    else:  # nothing there yet, or the pictures have changed
        array = new_array(file, (len(split), *split.shape))
    levels, saved = np.array(state["levels"]), time.monotonic()
    for start in range(state["seen"], len(split), CHUNK):
        part = slice(start, min(start + CHUNK, len(split)))
        images, bad = split.read(part)
        images = np.ascontiguousarray(images)
        array[state["kept"] : state["kept"] + len(images)] = images
        levels += [np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(len(levels))]
        state["bad"] |= {str(number): said for number, said in bad.items()}
        state |= {"seen": part.stop, "kept": state["kept"] + len(images), "crc32": zlib.crc32(images, state["crc32"])}
        if time.monotonic() - saved > 5 or part.stop == len(split):
            array.flush()
            release(array)
            write_atomically(notes, json.dumps(state | {"levels": levels.tolist()}))
            saved = time.monotonic()
        if tell:
            tell(part.stop)
    if len(state["bad"]) > BROKEN * len(split):
        notes.unlink()  # so that mended pictures are read again
        one = next(iter(state["bad"].values()))
        raise InputError(f"{name}: {len(state['bad'])} of {len(split)} pictures cannot be read, for example {one}")
    used = np.flatnonzero(levels.sum(0))
    return _finish_split(folder, name, split, state) | {"levels": [int(used[0]), int(used[-1])]}, levels


def _finish_split(folder: Path, name: str, split, state: dict) -> dict:
    """Write labels and masks of the images that were kept; the split's entry of meta.json."""
    kept = [i for i in range(len(split)) if str(i) not in state["bad"]]
    assert len(kept) == state["kept"], (name, len(kept), state["kept"])
    np.save(folder / f"{name}-labels.npy", split.labels[kept])
    if getattr(split, "masks", None) is not None:
        np.save(folder / f"{name}-masks.npy", split.masks)
    said = {"count": state["kept"], "unreadable": list(state["bad"].values())}
    said |= {key: state[key] for key in ("names", "times", "crc32")}
    return said | {"missing": getattr(split, "missing", []), "others": getattr(split, "others", {})}


def _repeated(folder: Path, meta: dict) -> tuple[int, int]:
    """How many test images are also train images, value by value, and how many train images have two classes."""
    found = {}
    for name in ("train", "test"):
        images, found[name] = np.load(folder / f"{name}-images.npy", mmap_mode="r"), []
        for start in range(0, meta[name]["count"], CHUNK):
            found[name] += [hash(image.tobytes()) for image in images[start : min(start + CHUNK, meta[name]["count"])]]
            release(images)
    classes = pd.Series(np.load(folder / "train-labels.npy")).groupby(found["train"]).nunique()
    return int(np.isin(found["test"], classes.index).sum()), int((classes[found["train"]] > 1).sum())


def digests(split) -> dict[str, str]:
    """Digests of what is to be written, so that work is only ever resumed for the same pictures in the same order.

    names: of shape, labels, file sizes and paths below the files' common folder. times: of modification times, too.
    """
    size = [len(split), list(split.shape), getattr(split, "resize", 0)]
    head = json.dumps(size).encode() + split.labels.tobytes()
    found = {key: hashlib.sha256(head) for key in ("names", "times")}
    paths = [str(path) for path in getattr(split, "paths", ())]
    common = len(os.path.dirname(os.path.commonprefix(paths)))
    for path in paths:
        stat = os.stat(path)
        name = f"{path[common:]} {stat.st_size}"
        for key, line in (("names", name), ("times", f"{name} {stat.st_mtime_ns}")):
            found[key].update(f"{line}\n".encode(errors="surrogateescape"))
    return {key: digest.hexdigest() for key, digest in found.items()}


def read(folder: Path, name: str) -> Split:
    """A prepared split; images and masks are memory-mapped, and writing to them changes a private copy."""
    count, masks = meta(folder)[name]["count"], folder / f"{name}-masks.npy"
    return Split(
        np.load(folder / f"{name}-images.npy", mmap_mode="c", allow_pickle=False)[:count],
        np.load(folder / f"{name}-labels.npy", allow_pickle=False),
        np.load(masks, mmap_mode="c", allow_pickle=False) if masks.is_file() else None,
    )


def meta(folder: Path) -> dict:
    """What meta.json says; LookupError if the folder is not prepared."""
    if not (folder / "meta.json").is_file():
        raise LookupError(f"{folder} is not prepared")
    return json.loads((folder / "meta.json").read_text())


def damaged(folder: Path) -> list[str]:
    """The splits whose images are not what was written: checked by their CRC-32, reading every byte."""
    return differs(folder, {name: read(folder, name) for name in ("train", "test")})


def differs(folder: Path, splits: dict, progress: Callable | None = None) -> list[str]:
    """Those splits whose images, all read again, are not what was written; `progress` counts each split by itself."""
    found = []
    for name, split in splits.items():
        crc = 0
        for stop in range(CHUNK, len(split) + CHUNK, CHUNK):
            images, _ = split.read(slice(stop - CHUNK, min(stop, len(split))))
            crc = zlib.crc32(np.ascontiguousarray(images), crc)
            release(images)
            if progress:
                progress(min(stop, len(split)), len(split))
        if crc != meta(folder)[name]["crc32"]:
            found.append(name)
    return found


def moments(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in 0..1 units, float32 (C,), of a histogram int (C, 256): exact at any size."""
    values, share = np.arange(256) / 255, levels / levels.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)
