"""Data prepared once: images decoded, cut and written to memory-mapped uint8 arrays that every stage reads.

A folder of arrays holds `<split>-images.npy` uint8 (N, C, H, W), `-labels.npy` int64 (N,), `-masks.npy` bool where
known, and meta.json, written last, so that its presence means done. Interrupted work goes on where it stopped.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from roarlib.study.files import alone, new_array, release, write_atomically
from roarlib.study.params import InputError

CHUNK = 256  # images decoded and written at once
BROKEN = 0.01  # a larger share of unreadable pictures is an error


def write(folder: Path, splits: dict, classes: list[str], progress: Callable | None) -> None:
    """Write all splits and meta.json; resumes. progress: called with (images done, of all).

    splits: name -> what has `labels`, `shape` and `read` (`datasets.Split`, `photos.Photos`). Pictures that cannot be
    read are left out, and named in meta.json; InputError where more than 1 percent are.
    """
    total = sum(len(split) for split in splits.values())
    with alone(folder):
        if (folder / "meta.json").is_file():
            return  # another process was first
        meta, before = {"classes": list(classes)}, 0
        for name, split in splits.items():
            tell = progress and (lambda done, before=before: progress(before + done, total))
            meta[name] = _write_split(folder, name, split, tell)
            before += len(split)
        counts = np.array(meta["train"].pop("levels"))
        meta["test"].pop("levels")
        meta["mean"], meta["std"] = (moment.tolist() for moment in moments(counts))
        write_atomically(folder / "meta.json", json.dumps(meta, indent=1))
        for rest in folder.glob("*.progress.json"):
            rest.unlink()


def _write_split(folder: Path, name: str, split, tell: Callable | None) -> dict:
    """One split chunk by chunk; returns its entry of meta.json, with `levels`, the histogram of values by channel."""
    file, notes = folder / f"{name}-images.npy", folder / f"{name}.progress.json"
    state = {"of": digest(split), "seen": 0, "kept": 0, "crc32": 0, "bad": {}}
    state["levels"] = [[0] * 256 for _ in range(split.shape[0])]
    earlier = json.loads(notes.read_text()) if notes.is_file() and file.is_file() else {}
    if earlier.get("of") == state["of"]:
        state, array = earlier, np.lib.format.open_memmap(file, "r+")
    else:  # nothing there, or other pictures by now
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
        notes.unlink()  # mended pictures are to be looked at again
        one = next(iter(state["bad"].values()))
        raise InputError(f"{name}: {len(state['bad'])} of {len(split)} pictures cannot be read, {one} for one")
    return _finish_split(folder, name, split, state) | {"levels": levels.tolist()}


def _finish_split(folder: Path, name: str, split, state: dict) -> dict:
    """Write labels and masks of the images that were kept; the split's entry of meta.json."""
    kept = [i for i in range(len(split)) if str(i) not in state["bad"]]
    assert len(kept) == state["kept"], (name, len(kept), state["kept"])
    np.save(folder / f"{name}-labels.npy", split.labels[kept])
    if getattr(split, "masks", None) is not None:
        np.save(folder / f"{name}-masks.npy", split.masks)
    return {
        "count": state["kept"],
        "of": state["of"],
        "crc32": state["crc32"],
        "unreadable": list(state["bad"].values()),
        "missing": getattr(split, "missing", []),
    }


def digest(split) -> str:
    """A digest of what is written, so that work is only ever continued for the same pictures in the same order."""
    size = [len(split), list(split.shape), getattr(split, "resize", 0)]
    found = hashlib.sha256(json.dumps(size).encode() + split.labels.tobytes())
    for path in getattr(split, "paths", ()):
        found.update(f"{path} {path.stat().st_size}\n".encode())
    return found.hexdigest()


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Images (memory-mapped; writing changes a private copy), labels and masks or None of a prepared split."""
    count, masks = meta(folder)[name]["count"], folder / f"{name}-masks.npy"
    return (
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
    found = []
    for name in ("train", "test"):
        images, crc = read(folder, name)[0], 0
        for start in range(0, len(images), CHUNK):
            crc = zlib.crc32(np.ascontiguousarray(images[start : start + CHUNK]), crc)
            release(images)
        if crc != meta(folder)[name]["crc32"]:
            found.append(name)
    return found


def moments(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in 0..1 units, float32 (C,), of a histogram int (C, 256): exact at any size."""
    values, share = np.arange(256) / 255, levels / levels.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)
