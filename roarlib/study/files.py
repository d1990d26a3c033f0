"""Where files lie, and writing them so that any process may be killed at any time."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def root() -> Path:
    """The project's folder, the one with notebooks/ and params/, wherever the caller's working folder is."""
    return Path(__file__).resolve().parents[2]


def outputs() -> Path:
    """Where results and prepared data lie: $ROAR_OUTPUTS, or outputs/ in the project."""
    return Path(os.environ.get("ROAR_OUTPUTS") or root() / "outputs")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut. OSError names the file."""
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


def part_of(file: Path) -> Path:
    """The name of a file while it is being written; renamed once it is whole."""
    return file.with_name(f".{file.name}.part")


def new_array(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new memory-mapped uint8 file with its disk space reserved: OSError now, not a dead process later."""
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
    """Let go of the pages of memory-mapped arrays, so that memory stays flat however much of a file was read.

    Flush what was written first. Arrays that are not mapped are left alone.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def try_lock(file, shared: bool = False) -> bool:
    """Lock an open file for this process unless another holds it; it ends with the process, however that ends.

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
