"""Where files and earlier results are, and writing so that any process may be killed at any time."""

import csv
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np


def root() -> Path:
    """The project's folder, the one with notebooks/ and params/, wherever the caller's working folder is."""
    return Path(__file__).resolve().parents[2]


def outputs() -> Path:
    """The folder of results and prepared data: $ROAR_OUTPUTS, or outputs/ in the project."""
    return Path(os.environ.get("ROAR_OUTPUTS") or root() / "outputs")


def studies() -> list[Path]:
    """study.yaml of every study with retrainings or a results.csv, the newest first.

    They are looked for in `outputs` and, unless $ROAR_OUTPUTS is set, in outputs/ of the working folder.
    """

    def newest(file: Path) -> float:
        found = [*file.parent.glob("04-retrain/*/rows/*.json"), *file.parent.glob("results.csv")]
        return max((f.stat().st_mtime for f in found), default=0.0)

    here = [] if os.environ.get("ROAR_OUTPUTS") else [Path("outputs")]  # beside a YAML of the user's own
    places = {place.resolve() for place in (outputs(), *here)}
    times = {file: newest(file) for place in places for file in place.glob("*/study.yaml")}
    return sorted((file for file in times if times[file]), key=lambda file: (-times[file], file))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all, even if power is cut. An OSError names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def digest(file: Path) -> str:
    """Digest of a file's bytes, which are read again only if its size or time has changed. OSError if it is missing."""
    return _digest(file, file.stat().st_size, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(file: Path, size: int, time: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def part_of(file: Path) -> Path:
    """The name of a file while it is being written; renamed once it is whole."""
    return file.with_name(f".{file.name}.part")


def new_array(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new memory-mapped uint8 file. Its disk space is reserved: a full disk is an OSError now, not a crash later."""
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            try:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(file)) from None
    return array


def release(*arrays: np.ndarray) -> None:
    """Drop the pages of memory-mapped arrays from memory, so that it stays flat however much of a file is read.

    Flush what was written first. Arrays that are not memory-mapped are left alone.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def try_lock(file, shared: bool = False) -> bool:
    """Lock an open file without waiting; False if another process holds it. The lock ends with this process.

    A shared file system must support flock (NFS 4 and Lustre do).
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process works on a folder at a time; others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def has_results(folder: Path) -> bool:
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
    if folder.name == name and (file.parent.name == ".runs" or file.name == "study.yaml" and has_results(folder)):
        return folder.parent if folder.parent != outputs().resolve() else None
    beside = not os.environ.get("ROAR_OUTPUTS") and not file.is_relative_to(root())
    return file.parent / "outputs" if beside else None
