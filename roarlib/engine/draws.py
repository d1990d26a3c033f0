"""Random numbers that belong to an image: a function of (seed, stream, image id, position) and nothing else.

A generator that is advanced would make the noise of image i depend on batch size, order and device count. Here each
number is a hash of its coordinates (splitmix64: Steele, Lea and Flood, OOPSLA 2014, "Fast splittable pseudorandom
number generators"), computed for a whole batch at once on any device.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# streams: independent numbers for one image under one seed
NOISE, TIES, RANDOM, IMPUTATION, MASKS, MIXED, SHUFFLE, CALLS = range(1, 9)

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit: torch has no unsigned arithmetic, but wraps alike
_MUL1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MUL2 = 0x94D049BB133111EB - (1 << 64)


def _shift(z, bits):
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical shift: torch's >> copies the sign bit


def _mix(z):
    z = (z ^ _shift(z, 30)) * _MUL1
    z = (z ^ _shift(z, 27)) * _MUL2
    return z ^ _shift(z, 31)


def bits(seed: int, stream: int, ids: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """64 random bits for positions start .. start + count of every image.

    ids: int64 (N,), global image numbers. Returns int64 (N, count) on the device of ids.
    """
    state = torch.tensor([seed], dtype=torch.int64, device=ids.device)
    state = _mix(_mix(state + _GOLDEN) + stream)
    state = _mix(state + ids * _GOLDEN)  # (N,)
    position = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=ids.device)
    return _mix(state[:, None] + position * _GOLDEN)  # (N, count)


def uniform(seed: int, stream: int, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) with 24 bits: float32 (N, count)."""
    return _shift(bits(seed, stream, ids, 0, count), 40).float() * 2**-24


def normal(seed: int, ids: torch.Tensor, sample: int, shape: tuple[int, ...], stream: int = NOISE) -> torch.Tensor:
    """Standard normal noise number `sample` of each image: float32 (N, *shape), by Box and Muller (1958)."""
    count = math.prod(shape)
    half = (count + 1) // 2  # one hash gives two numbers
    z = bits(seed, stream, ids, sample * half, half)
    radius = ((_shift(z, 40) + 1).float() * 2**-24).log_().mul_(-2).sqrt_()  # of a uniform in (0, 1]
    angle = (z & 0xFFFFFF).float() * (2 * math.pi * 2**-24)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return both[:, :count].reshape(len(ids), *shape)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators for a while, then restore them: users' code draws from these."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        random.seed(seed)
        np.random.seed([seed % 2**32, seed >> 32])
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
