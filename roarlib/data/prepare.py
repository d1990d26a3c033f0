"""Data prepared once: images decoded, cut and written to memory-mapped uint8 arrays that every stage reads.

A folder of arrays holds `<split>-images.npy` uint8 (N, C, H, W), `-labels.npy` int64 (N,), `-masks.npy` bool where
known, and meta.json, written last, so that its presence means done. Interrupted work goes on where it stopped.
"""

import fcntl
import hashlib
import json
import mmap
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from roarlib import photos, results
from roarlib.params import InputError, write_atomically

CHUNK = 256  # images decoded and written at once
BROKEN = 0.01  # a larger share of unreadable pictures is an error


def write(folder: Path, splits: dict, classes: list[str], resize: int, size: int, progress: Callable | None) -> None:
    """Write all splits (in-memory `Split`s or `Photos`) and meta.json; resumes. progress: called with (done, of all).

    Pictures that cannot be read are left out, and named in meta.json; InputError where more than 1 percent are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(split) for split in splits.values())
    with _alone(folder):
        if (folder / "meta.json").is_file():
            return  # another process was first
        meta, before = {"classes": list(classes)}, 0
        for name, split in splits.items():
            tell = progress and (lambda done, before=before: progress(before + done, total))
            meta[name] = _write_split(folder, name, split, resize, size, tell)
            before += len(split)
        counts = np.array(meta["train"].pop("levels"))
        meta["test"].pop("levels")
        meta["mean"], meta["std"] = (moment.tolist() for moment in moments(counts))
        write_atomically(folder / "meta.json", json.dumps(meta, indent=1))
        for rest in folder.glob("*.progress.json"):
            rest.unlink()


def _write_split(folder, name, split, resize, size, tell) -> dict:
    """One split chunk by chunk; returns its entry of meta.json, with `levels`, the histogram of values by channel."""
    decoded = isinstance(split, photos.Photos)
    shape = (3, size, size) if decoded else split.images.shape[1:]
    file, notes = folder / f"{name}-images.npy", folder / f"{name}.progress.json"
    state = {"of": what(split, shape, resize), "seen": 0, "kept": 0, "crc32": 0, "bad": {}}
    state["levels"] = [[0] * 256 for _ in range(shape[0])]
    earlier = json.loads(notes.read_text()) if notes.is_file() and file.is_file() else {}
    if earlier.get("of") == state["of"]:
        state, array = earlier, np.lib.format.open_memmap(file, "r+")
    else:  # nothing there, or the pictures are others by now
        array = new_file(file, (len(split), *shape))
    levels, saved = np.array(state["levels"]), time.monotonic()
    with ThreadPoolExecutor(results.cores()) as pool:  # decoding leaves Python's lock alone
        for start in range(state["seen"], len(split), CHUNK):
            part = slice(start, min(start + CHUNK, len(split)))
            images = _decode(pool, split, part, resize, size, state["bad"]) if decoded else split.images[part]
            images = np.ascontiguousarray(images)
            array[state["kept"] : state["kept"] + len(images)] = images
            levels += [np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(shape[0])]
            state |= {
                "seen": part.stop,
                "kept": state["kept"] + len(images),
                "crc32": zlib.crc32(images, state["crc32"]),
            }
            if time.monotonic() - saved > 5 or part.stop == len(split):
                array.flush()
                release(array)
                write_atomically(notes, json.dumps(state | {"levels": levels.tolist()}))
                saved = time.monotonic()
            if tell:
                tell(part.stop)
    bad = state["bad"]
    if len(bad) > BROKEN * len(split):
        notes.unlink()  # mended pictures are to be looked at again
        raise InputError(
            f"{name}: {len(bad)} of {len(split)} pictures cannot be read, {next(iter(bad.values()))} for one"
        )
    kept = [i for i in range(len(split)) if str(i) not in bad]
    assert len(kept) == state["kept"], (name, len(kept), state["kept"])
    np.save(folder / f"{name}-labels.npy", split.labels[kept])
    if not decoded and split.masks is not None:
        np.save(folder / f"{name}-masks.npy", split.masks)
    missing = split.missing if decoded else []
    return {
        "count": state["kept"],
        "of": state["of"],
        "crc32": state["crc32"],
        "unreadable": list(bad.values()),
        "missing": missing,
        "levels": levels.tolist(),
    }


def what(split, shape: tuple[int, ...], resize: int) -> str:
    """A digest of what is written, so that work is only ever gone on with for the same pictures in the same order."""
    digest = hashlib.sha256(json.dumps([len(split), list(shape), resize]).encode() + split.labels.tobytes())
    for path in getattr(split, "paths", ()):
        digest.update(f"{path} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def new_file(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new mapped uint8 file, its room on the disk taken: a full disk is an error now, not a dead process later."""
    array = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            try:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            except OSError as error:
                raise InputError(f"cannot write {file}: {error.strerror}") from None
    return array


def _decode(pool, split, part, resize, size, bad) -> np.ndarray:
    """The readable pictures of a part of a split, uint8 (n, 3, size, size); `bad` takes the others by number."""

    def look(number: int):
        try:
            return photos.view(split.paths[number], resize, size)
        except Exception as error:  # decoders raise all sorts
            if getattr(error, "errno", None):  # not the picture's fault: the disk's, or too many open files
                raise
            return f"{split.paths[number]} ({' '.join(str(error).split())[:60]})"

    found = list(pool.map(look, range(part.start, part.stop)))
    bad |= {str(part.start + k): f for k, f in enumerate(found) if isinstance(f, str)}
    good = [f for f in found if not isinstance(f, str)]
    return np.stack(good) if good else np.empty((0, 3, size, size), np.uint8)


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


def release(*arrays: np.ndarray) -> None:
    """Let go of the pages of memory-mapped arrays, so that memory stays flat however much of a file was read.

    What was written must be flushed before; arrays that are not mapped are left alone.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def moments(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in 0..1 units, float32 (C,), of a histogram int (C, 256): exact at any size."""
    values, share = np.arange(256) / 255, levels / levels.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)


@contextmanager
def _alone(folder: Path):
    """Only one process prepares a folder at a time; others wait."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
