"""What a user brings as files: finished maps, weights, arrays, pictures. Where they are, and their digests."""

import os
from pathlib import Path

from roarlib.study import files
from roarlib.study.files import root
from roarlib.study.names import MAPS, split_name
from roarlib.study.params import InputError, Study

MAP_FILES = ("train.npy", "test.npy")
MAP_LIST = "images.csv"  # beside them, for maps in an order of their own


def data_dir(study: Study) -> Path:
    """The folder of the data sets: the study's data_dir, else $ROAR_DATA, else data/ in the project."""
    return Path(study.data_dir or os.environ.get("ROAR_DATA") or root() / "data").expanduser()


def where(study: Study, name: str) -> Path:
    """A file or folder that a study names: absolute, beside the study's YAML, or else in the data folder."""
    places = ([Path(study.files_dir)] if study.files_dir else []) + [data_dir(study)]
    found = [(place / Path(name).expanduser()).resolve() for place in places]
    return next((path for path in found if path.exists()), found[-1])


class Missing(InputError):
    """Nothing is where the user's files should be."""


def find(study: Study, name: str, what: str, hint: str = "") -> Path:
    """`where`; if nothing is there, `Missing` with one line that ends in the hint."""
    if not (path := where(study, name)).exists():
        beside = f"in {study.files_dir}" if study.files_dir else "beside the study's file"
        raise Missing(f"{what}: there is no {name} {beside}, nor in {data_dir(study)}{hint}")
    return path


def digest(study: Study, estimator: str) -> str:
    """Digests of the files that an estimator's results depend on: brought weights, and its own maps; '' if none.

    FileNotFoundError if one is not here.
    """
    base = "" if estimator == "clean" else split_name(estimator)[0]
    found = [where(study, study.base_weights)] if study.base_weights else []
    if MAPS.fullmatch(base):
        folder = where(study, base.removeprefix("maps:"))
        found += [folder / name for name in MAP_FILES] + list(folder.glob(MAP_LIST))
    return " ".join(map(files.digest, found))
