"""The machine that computes: its device, precision and memory, and the versions that a row names.

Functions import torch only when they need it, so that reading tables does not wait for it.
"""

import ctypes
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from roarlib.study.files import root
from roarlib.study.params import InputError, Study


def device_of(study: Study):
    """The study's torch.device; `auto` is the first GPU if there is one. InputError where it cannot be used."""
    import torch

    name = study.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not usable here: {' '.join(str(error).split())[:90]}") from None
    return device


def precision_of(choice: str, device) -> str:
    """float32 or bfloat16, as a study chooses; `auto` is bfloat16 where the hardware multiplies it natively."""
    import torch

    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return "bfloat16" if native else "float32"


def keep_memory() -> bool:
    """Make the C library keep the memory that one pass frees for the next, in this process; whether that worked.

    By default glibc returns the top of its heap and every large block to the kernel, which then clears the same pages
    again for each pass. Blocks above 32 MB are still returned. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # malloc.h's numbers
        return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_threshold, 32 << 20))
    except (AttributeError, OSError, TypeError):  # no such function; no such library
        return False


def room(study: Study, device) -> int:
    """Bytes that images and ranking may take on the device: the study's memory_gb, or a cell's part of what is free.

    That part is a third of what is free, divided by the number of cells that run at a time (on a GPU: on that GPU).
    """
    import torch

    if study.memory_gb:
        return int(study.memory_gb * 1e9)
    if device.type == "cuda":
        sharing = -(-(study.workers or 1) // max(1, torch.cuda.device_count()))
        return torch.cuda.mem_get_info(device)[0] // (3 * sharing)
    return min([psutil.virtual_memory().available, *_allowed()]) // (3 * (study.workers or cores()))


def _allowed() -> list[int]:
    """Bytes that a control group, such as a batch job's, leaves this process, in a list; empty without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [max(0, int(limit) - int(used))] if limit.isdigit() else []


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch uses this many threads meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hardware(device: str = "cpu") -> str:
    """The name of the GPU (device cuda, cuda:1 ..), or the processor's with the number of cores for this process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} cores"


@cache
def provenance() -> dict:
    """What computed a row: host, versions, commit, threads."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "roarlib": installed("roarlib"),
        "commit": commit(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
    }


def installed(name: str) -> str:
    """The version of an installed package; empty if it is not installed, as a clone can run without installation."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The short git commit of the project, with + if the code differs from it; empty outside a repository."""
    try:
        call = ["git", "-C", str(root()), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
