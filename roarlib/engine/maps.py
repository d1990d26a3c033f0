"""Finished maps: `maps:folder` looks its scores up in NumPy files that were made anywhere, one map an image.

The folder holds train.npy and test.npy, float (N, C, H, W), (N, 1, H, W) or (N, H, W), in the study's order (`roar
images` writes it); or in any order, with an images.csv that names each map's image by split and file or sha256.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from roarlib.data import listing
from roarlib.data.datasets import SPLITS, Data
from roarlib.study import brought
from roarlib.study.params import InputError, Study


def estimator(study: Study, base: str) -> Callable:
    """The function (model, images, targets, ids) -> scores that looks the maps of these images up."""

    def look(model, images, targets, *, ids):
        maps, order = _opened(study, base, SPLITS[int(ids[0]) >> 40])
        index = (ids & ((1 << 40) - 1)).cpu().numpy()
        found = maps[index if order is None else order[index]]
        return torch.from_numpy(found.astype(found.dtype.newbyteorder("=")))

    return look


def check(study: Study, base: str, data: Data) -> str | None:
    """InputError in one line where maps do not fit the data; a note where only their order can be trusted."""
    for split in SPLITS:
        maps, order = _opened(study, base, split)
        count, (channels, height, width) = len(data.split(split)), data.shape
        if order is None and len(maps) != count:
            raise InputError(f"{base}: {split}.npy has {len(maps)} maps, and the study {count} {split} images")
        if maps.shape[1:] not in ((height, width), (1, height, width), (channels, height, width)):
            raise InputError(f"{base}: {split}.npy has maps of {maps.shape[1:]} for images of {data.shape}")
        for first in range(0, count, 512):
            index = np.arange(first, min(first + 512, count)) if order is None else order[first : first + 512]
            if not (finite := np.isfinite(maps[index]).reshape(len(index), -1).all(1)).all():
                raise InputError(f"{base}: {split}.npy, map {index[finite.argmin()]} has NaN or infinite values")
    if order is None:
        return f"note: {base} has no {brought.MAP_LIST}: its maps are taken to be in the order of `roar images`"


def _opened(study: Study, base: str, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The maps of a split, memory-mapped, and which of them belongs to image 0, 1, ..; None: they are in order."""
    folder = brought.find(study, base.removeprefix("maps:"), base)
    if not (file := folder / f"{split}.npy").is_file():
        raise InputError(f"{base}: there is no {file}")
    listed = folder / brought.MAP_LIST
    times = file.stat().st_mtime_ns, listed.stat().st_mtime_ns if listed.is_file() else 0
    plain = study.model_copy(update={"name": "maps"})  # the rehearsal's name is none
    return _read(plain.model_dump_json(), study.home, file, listed, split, times)


@lru_cache(maxsize=8)
def _read(said: str, home: Path, file: Path, listed: Path, split: str, times: tuple):
    try:
        maps = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} is no array without pickle: {' '.join(str(error).split())[:90]}") from None
    if maps.dtype.kind != "f":
        raise InputError(f"{file} holds {maps.dtype}; scores must be floats")
    study = Study.model_validate_json(said)
    study._home = home
    return maps, _order(study, listed, split, len(maps)) if times[1] else None


def _order(study: Study, listed: Path, split: str, count: int) -> np.ndarray:
    """The map of each image of a split, by the names or hashes that its list gives."""
    table = pd.read_csv(listed, dtype=str, keep_default_na=False)
    key = next((key for key in ("file", "sha256") if key in table and (table[key] != "").all()), None)
    if key is None or "split" not in table:
        raise InputError(f"{listed} must have the columns split, and file or sha256, with a value in every row")
    table = table[table["split"] == split]
    if len(table) != count:
        raise InputError(f"{listed} names {len(table)} {split} images, and {split}.npy has {count} maps")
    wanted = listing.images(study, hashes=key == "sha256").query("split == @split")[key]
    place = {name: number for number, name in reversed(list(enumerate(table[key])))}
    if lack := [name for name in wanted if name not in place]:
        hint = "; names count from the data set's folder, as `roar images` writes them" if key == "file" else ""
        raise InputError(f"{listed} lacks {len(lack)} {split} images of the study, {lack[0] or 'all'} for one{hint}")
    return np.array([place[name] for name in wanted])
