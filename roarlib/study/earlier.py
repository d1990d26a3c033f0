"""What earlier runs left in a study's folder: whether there are results, and where they are."""

import csv
import os
from pathlib import Path

from roarlib.study.files import outputs, root, try_lock


def results(folder: Path) -> bool:
    """Whether anything there depends on the study's parameters: a row, a ranking, a published table, an active run."""
    kinds = ("*/*/rows/*.json", "02-attribute/*/*.npy", "results.csv")
    return any(file for kind in kinds for file in folder.glob(kind)) or at_work(folder)


def mentions(folder: Path, word: str) -> bool:
    """Whether any row there is of an estimator or a mode whose name ends in this word, such as -recursive."""
    if any(folder.glob(f"*/*/rows/*{word}_*")):
        return True
    if not (folder / "results.csv").is_file():
        return False
    with (folder / "results.csv").open(newline="") as file:
        return any(str(row.get(key)).endswith(word) for row in csv.DictReader(file) for key in ("estimator", "mode"))


def at_work(folder: Path) -> bool:
    """Whether a run of the study is active, here or on another machine; see `grid.runner.present`."""
    try:
        with (folder / ".runs" / "lock").open("r+") as file:
            return not try_lock(file)
    except OSError:
        return False


def home_of(file: Path, name: str) -> Path | None:
    """The folder that holds the results folder of the study in this file; None if that is `outputs()`.

    A study.yaml among results, or a file in .runs/, belongs to the results around it. Any other file outside the
    project has its results in outputs/ beside it, unless $ROAR_OUTPUTS is set.
    """
    folder = file.parent.parent if file.parent.name == ".runs" else file.parent
    if folder.name == name and (file.parent.name == ".runs" or file.name == "study.yaml" and results(folder)):
        return folder.parent if folder.parent != outputs().resolve() else None
    beside = not os.environ.get("ROAR_OUTPUTS") and not file.is_relative_to(root())
    return file.parent / "outputs" if beside else None
