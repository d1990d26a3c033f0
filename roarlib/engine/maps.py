"""Finished maps: `maps:folder` looks up its scores in NumPy files made anywhere, one map per image.

The folder holds train.npy and test.npy, float (N, C, H, W), (N, 1, H, W) or (N, H, W), in the study's order (`roar
images` writes it); or in any order, with an images.csv that names each map's image by split and file or sha256.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from roarlib.data import datasets, listing, photos
from roarlib.data.datasets import SPLITS, Data
from roarlib.study import brought
from roarlib.study.names import MAPS, split_name
from roarlib.study.params import InputError, Study


def estimator(study: Study, base: str) -> Callable:
    """The function (model, images, targets, ids) -> scores that looks up the maps of these images."""

    def look(model, images, targets, *, ids):
        maps, order = _opened(study, base, SPLITS[int(ids[0]) >> 40])
        index = (ids & ((1 << 40) - 1)).cpu().numpy()
        found = maps[index if order is None else order[index]]
        return torch.from_numpy(found.astype(np.float32 if found.dtype.itemsize < 8 else np.float64))

    return look


def check(study: Study, base: str, data: Data) -> str | None:
    """InputError of one line if maps do not fit the data; returns a note if their order must be taken on trust."""
    for split in SPLITS:
        maps, order = _opened(study, base, split)
        count, (channels, height, width) = len(data.split(split)), data.shape
        if order is None and len(maps) != count:
            raise InputError(f"{base}: {split}.npy has {len(maps)} maps, and the study {count} {split} images")
        if maps.shape[1:] not in ((height, width), (1, height, width), (channels, height, width)):
            raise InputError(
                f"{base}: {split}.npy has maps of {maps.shape[1:]} for images of {data.shape}; "
                "it must be (N, H, W), (N, 1, H, W) or (N, C, H, W)"
            )
        for first in range(0, count, 512):
            index = np.arange(first, min(first + 512, count)) if order is None else order[first : first + 512]
            if not (finite := np.isfinite(maps[index]).reshape(len(index), -1).all(1)).all():
                raise InputError(f"{base}: {split}.npy, map {index[finite.argmin()]} has NaN or infinite values")
    if order is None:
        return f"note: {base} has no {brought.MAP_LIST}: its maps are taken to be in the order of `roar images`"


def refuse_variants(study: Study) -> None:
    """InputError if a folder has the name of a variant of other maps, so that it would be overlooked."""
    for name in study.estimators:
        base = split_name(name)[0]
        if MAPS.fullmatch(base) and name != base and brought.where(study, name.removeprefix("maps:")).is_dir():
            folder = name.removeprefix("maps:")
            raise InputError(
                f"{name} means a variant of {base}, and the folder {folder} would be overlooked: rename it"
            )


def _opened(study: Study, base: str, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The maps of a split, memory-mapped, and which of them belongs to image 0, 1, ..; None: they are in order."""
    folder = brought.find(study, base.removeprefix("maps:"), base)
    if not (file := folder / f"{split}.npy").is_file():
        raise InputError(f"{base}: there is no {file}")
    listed = folder / brought.MAP_LIST
    times = file.stat().st_mtime_ns, listed.stat().st_mtime_ns if listed.is_file() else 0
    plain = study.model_copy(update={"name": "maps"})  # a rehearsal's name is not a valid one
    return _read(plain.model_dump_json(), study.home, file, listed, split, times)


@lru_cache(maxsize=8)
def _read(said: str, home: Path, file: Path, listed: Path, split: str, times: tuple):
    try:
        maps = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} is not a plain array (no pickles): {' '.join(str(error).split())[:90]}") from None
    if not isinstance(maps, np.ndarray) or not maps.ndim:
        raise InputError(f"{file} is no array of maps; np.save makes one")
    if maps.dtype.kind != "f":
        raise InputError(f"{file} holds {maps.dtype}; scores must be floats")
    study = Study.model_validate_json(said)
    study._home = home
    return maps, _order(study, listed, split, maps) if times[1] else None


def _order(study: Study, listed: Path, split: str, maps: np.ndarray) -> np.ndarray:
    """The map of each image of a split, by the names or hashes that its list gives."""
    try:
        table = pd.read_csv(listed, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        raise InputError(f"{listed} cannot be read as CSV in UTF-8: {' '.join(str(error).split())[:90]}") from None
    keys = ("file", "sha256") if datasets.pictures(study) else ("sha256",)  # images of arrays have no file
    key = next((key for key in keys if key in table and (table[key] != "").all()), None)
    if key is None or "split" not in table:
        wanted = " or ".join(keys)
        raise InputError(f"{listed} must have the columns split, and {wanted}, with a value in every row")
    table = table[table["split"].replace(dict.fromkeys(photos.TEST_FOLDERS, "test")) == split]
    if len(table) != len(maps):
        raise InputError(f"{listed} names {len(table)} {split} images, and {split}.npy has {len(maps)} maps")
    wanted = listing.images(study, hashes=key == "sha256").query("split == @split")[key]
    place = {name: number for number, name in reversed(list(enumerate(table[key])))}
    for number in np.flatnonzero(table[key].duplicated()):
        if not np.array_equal(maps[number], maps[place[table[key].iloc[number]]]):
            raise InputError(f"{listed} names a {split} image twice, with two maps: {table[key].iloc[number]}")
    if lack := [name for name in wanted if name not in place]:
        hint = "; names count from the data set's folder, as `roar images` writes them" if key == "file" else ""
        raise InputError(
            f"{listed} lacks {len(lack)} {split} images of the study, for example {lack[0] or 'all'}{hint}"
        )
    return np.array([place[name] for name in wanted])
