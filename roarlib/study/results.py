"""Results as rows: one JSON file a measurement, written last and atomically, collected into one tidy table."""

import json
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from roarlib.params import InputError, Study, agree, root, save, write_atomically

COLUMNS = [
    "study",
    "cell",
    "measure",
    "estimator",
    "unit",
    "mode",
    "percent",
    "seed",
    "accuracy",
    "n_train",
    "n_test",
    "n_classes",
    "epochs",
    "seconds",
    "device",
    "hardware",
    "precision",
    "torch",
    "roarlib",
    "commit",
    "finished",
]
NUMBERS = ["percent", "seed", "accuracy", "n_train", "n_test", "n_classes", "epochs", "seconds"]
TEXT = {name: str for name in COLUMNS if name not in NUMBERS}  # a commit of digits alone is no number
KEY = ["measure", "estimator", "unit", "mode", "percent", "seed"]  # what makes a row itself
MEASURES = ("base", "deletion", "retrain", "ranking")  # a ranking has no accuracy: its row says that it is done


def row_name(measure: str, estimator: str, unit: str, mode: str, percent: int, seed: int) -> str:
    """The file name of one measurement's row."""
    return f"{measure}_{estimator.replace(':', '.')}_{unit}_{mode}_p{percent}_s{seed}.json"


def folder(study: Study, stage: str, cell: str) -> Path:
    """Where a cell keeps its executed notebook, its arrays and its rows."""
    return study.folder / stage / cell


def has(study: Study, stage: str, cell: str, row: str) -> bool:
    """Whether a row is there, and so its measurement done."""
    return (folder(study, stage, cell) / "rows" / row).is_file()


def write(
    study: Study,
    stage: str,
    cell: str,
    *,
    measure: str,
    estimator: str = "clean",
    unit: str = "all",
    mode: str = "all",
    percent: int = 0,
    seed: int = 0,
    accuracy: float | None = None,
    **more,
) -> dict:
    """Write one row, atomically; its presence means that the measurement is done. Returns the row.

    accuracy: 0..1, or None for a ranking. more: n_train, n_test, seconds and other JSON values.
    """
    if measure not in MEASURES or (accuracy is not None and not 0 <= accuracy <= 1):
        raise ValueError(f"no such row: measure {measure}, accuracy {accuracy}")
    row = {
        "study": study.name,
        "cell": f"{stage}/{cell}",
        "measure": measure,
        "estimator": estimator,
        "unit": unit,
        "mode": mode,
        "percent": percent,
        "seed": seed,
        "accuracy": accuracy,
        **more,
        "epochs": study.epochs,
        **provenance(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "params": study.model_dump(),
    }
    file = folder(study, stage, cell) / "rows" / row_name(measure, estimator, unit, mode, percent, seed)
    if not agree(study).is_file():  # a notebook run by hand: from now on the folder speaks of this study
        save(study)
    try:
        write_atomically(file, json.dumps(row, indent=1))
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from None
    return row


def context(study: Study, data) -> dict:
    """What a row says of the data and the device: sizes of the splits, number of classes, device, precision."""
    from roarlib.device import device_of, precision_of

    device = device_of(study)
    return {
        "n_train": len(data.train),
        "n_test": len(data.test),
        "n_classes": len(data.classes),
        "device": str(device),
        "hardware": hardware(device.type),
        "precision": precision_of(study.precision, device),
    }


def rows(study: Study) -> pd.DataFrame:
    """Every row of the study's row files, rankings included, one a line, in a fixed order."""
    found = []
    for file in study.folder.glob("*/*/rows/*.json"):
        try:
            found.append(json.loads(file.read_text()))
        except ValueError:
            raise InputError(f"{file} is damaged (not JSON); delete it and run the study again") from None
    table = pd.DataFrame(found, columns=list(dict.fromkeys([*COLUMNS, *(k for row in found for k in row)])))
    table = table.drop(columns="params", errors="ignore")
    return table.sort_values(KEY, ignore_index=True)


def known(study: Study) -> pd.DataFrame:
    """Every row, rankings included: the row files, and what only results.csv there still knows. See COLUMNS."""
    return _with_earlier(study, rows(study))


def table(study: Study) -> pd.DataFrame:
    """The tidy table of accuracies: `known` without the rankings."""
    found = known(study)
    return found[found.measure != "ranking"].reset_index(drop=True)


def _with_earlier(study: Study, found: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of an earlier results.csv whose files are not here: a clone has the published table alone."""
    file = study.folder / "results.csv"
    if not file.is_file():
        return found
    earlier = pd.read_csv(file, dtype=TEXT)
    both = pd.concat([found, earlier], ignore_index=True) if len(found) else earlier
    both = both.drop_duplicates(KEY)  # the first stays: a row file wins
    return both.sort_values(KEY, ignore_index=True)


def collect(study: Study) -> Path:
    """Write results.csv and results.parquet, the same table with its types; returns the CSV.

    InputError if there is no row yet.
    """
    found = known(study)
    if found.empty:
        raise InputError(f"no results under {study.folder} yet; `roar run params/{study.name}.yaml` makes them")
    found = found[COLUMNS].astype({name: float for name in NUMBERS if found[name].isna().any()})  # None is no number
    file = study.folder / "results.csv"
    write_atomically(file.with_suffix(".parquet"), found.to_parquet(index=False))
    write_atomically(file, found.to_csv(index=False))
    return file


@cache
def provenance() -> dict:
    """What computed a row: versions, commit, processor, host."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "roarlib": version("roarlib"),
        "commit": commit(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
    }


def hardware(device: str = "cpu") -> str:
    """The name of the GPU (device cuda), or the processor's with the cores that this process may use."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} cores"


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def commit() -> str:
    """The short git commit of the project, with + if the code differs from it; empty outside a repository."""
    try:
        call = ["git", "-C", str(root()), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
