"""What earlier runs left in a study's folder: whether there are results, and with what options estimators made them."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from roarlib.study import yaml12
from roarlib.study.files import outputs, root, try_lock
from roarlib.study.names import ENSEMBLES, VARIANTS, safe


def results(folder: Path) -> bool:
    """Whether anything there rests on the study's parameters: a row, a ranking, a published table, a run at work."""
    kinds = ("*/*/rows/*.json", "02-attribute/*/*.npy", "results.csv")
    return any(file for kind in kinds for file in folder.glob(kind)) or at_work(folder)


def at_work(folder: Path) -> bool:
    """Whether a run of the study is at work, here or on another machine; see `grid.runner.present`."""
    try:
        with (folder / ".runs" / "lock").open("r+") as file:
            return not try_lock(file)
    except OSError:
        return False


def options(folder: Path, base: str) -> dict | None:
    """The options that the rows of an estimator's base were made with, or are being made; None where it has no rows.

    Rows say it themselves; for those that do not, study.yaml does, if it lists the estimator.
    """
    for file in (file for cell in _cells(folder, base) for file in cell.glob("rows/*.json")):
        try:
            return json.loads(file.read_text())["params"]["estimator_options"].get(base, {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another writer's, or damaged
            break
    else:
        if not _published(folder, base) and not at_work(folder):
            return None
    return _stored(folder, base)


def forget(folder: Path, wanted: dict[str, dict]) -> None:
    """Delete unfinished rankings by the bases in `wanted` that other options than these may have begun.

    Nothing while a run is at work, or before study.yaml is there.
    """
    if at_work(folder) or not (folder / "study.yaml").is_file():
        return
    for base in (base for base, options in wanted.items() if _stored(folder, base) != options):
        for cell in _cells(folder, base):
            if cell.parent.name == "02-attribute" and not any(cell.glob("rows/*.json")):
                shutil.rmtree(cell)


def plain(options: dict) -> dict:
    """Options as JSON has them, and so rows."""
    return json.loads(json.dumps(options, default=str))


def _stored(folder: Path, base: str) -> dict | None:
    """The options of a base in study.yaml; None where that does not list the base or anything made of it."""
    try:
        found = yaml12.load((folder / "study.yaml").read_bytes())
        listed = any(safe(name) in _names(base) for name in found["estimators"])
        return plain(found["estimator_options"].get(base, {})) if listed else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever it is, no study wrote it
        return None


def _cells(folder: Path, base: str) -> Iterator[Path]:
    """The folders of the cells of a base and of what is made of it: mine.f and mine.f-sg, but not mine.f2."""
    return (cell for cell in folder.glob("0[234]-*/*") if cell.name in _names(base))


def _published(folder: Path, base: str) -> bool:
    """Whether results.csv has rows of a base, which may be all that a clone has of them."""
    if not (folder / "results.csv").is_file():
        return False
    with (folder / "results.csv").open(newline="") as file:
        return any(safe(row.get("estimator") or "") in _names(base) for row in csv.DictReader(file))


def _names(base: str) -> set[str]:
    return {"-".join(filter(None, parts)) for parts in product([safe(base)], ENSEMBLES, ["", *VARIANTS])}


def home_of(file: Path, name: str) -> Path | None:
    """Where the results of a study in this file lie, if not in `outputs()`: around the file, if results have it.

    Else beside it if it lies outside of the project, and $ROAR_OUTPUTS does not say otherwise.
    """
    folder = file.parent.parent if file.parent.name == ".runs" else file.parent
    if folder.name == name and (file.parent.name == ".runs" or file.name == "study.yaml" and results(folder)):
        return folder.parent if folder.parent != outputs().resolve() else None
    beside = not os.environ.get("ROAR_OUTPUTS") and not file.is_relative_to(root())
    return file.parent / "outputs" if beside else None
