"""The device that computes: which one, in what precision, and how much fits on it."""

import ctypes
from pathlib import Path

import psutil
import torch

from roarlib import results
from roarlib.params import InputError, Study


def device_of(study: Study) -> torch.device:
    """The study's device; `auto` is the first GPU if there is one."""
    name = study.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not usable here: {' '.join(str(error).split())[:90]}") from None
    return device


def precision_of(choice: str, device: torch.device) -> str:
    """float32 or bfloat16, of a study's choice; `auto` is bfloat16 where the hardware multiplies it natively."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return "bfloat16" if native else "float32"


def keep_memory() -> bool:
    """Have the C library keep what a pass frees for the next one, for this process; whether it does.

    By default glibc hands the end of its heap and every large block back to the kernel, which then clears the same
    pages again for each pass. Blocks above 32 MB still go back. Elsewhere than with glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # malloc.h's numbers
        return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_threshold, 32 << 20))
    except (AttributeError, OSError, TypeError):  # no such function; no such library
        return False


def room(study: Study, device: torch.device) -> int:
    """Bytes that images and ranking may take on the device: the study's memory_gb, or a cell's part of what is free.

    A third of what is free, shared by the cells that run at a time; of a GPU, by those that its `workers` put on it.
    """
    if study.memory_gb:
        return int(study.memory_gb * 1e9)
    if device.type == "cuda":
        sharing = -(-(study.workers or 1) // max(1, torch.cuda.device_count()))
        return torch.cuda.mem_get_info(device)[0] // (3 * sharing)
    return min([psutil.virtual_memory().available, *_allowed()]) // (3 * (study.workers or results.cores()))


def _allowed() -> list[int]:
    """Bytes that a control group, a batch system's job for example, leaves this process; empty without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [max(0, int(limit) - int(used))] if limit.isdigit() else []
