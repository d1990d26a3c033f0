"""Which inputs go: rankings from scores, masks from rankings. Pure functions on tensors of any device.

A ranking is uint8: `ceil(100 (r + 1) / K) - 1` for rank r = 0 (most important) .. K - 1. An input is removed at t
percent exactly when its value is below t, so one byte an input serves every whole percent and every mode.

Modes say what a model gets to see. `remove` (ROAR): the image without its top t percent, the training mean in their
place. `keep` (KAR): the top t percent alone. `remove-imputed`, `keep-imputed`: the same with removed inputs imputed
from their neighbours (ROAD). `mask`: the holes alone, 1 where an input is removed, else -1, nothing of the image.
"""

import numpy as np
import torch

from roarlib import draws

UNITS = ("value", "pixel")


def keeps(mode: str) -> bool:
    """Whether a mode keeps the most important inputs (`keep`, `keep-imputed`) rather than removing them."""
    return mode.startswith("keep")


def imputes(mode: str) -> bool:
    """Whether removed inputs are imputed from their neighbours (ROAD's fill) instead of set to the mean."""
    return mode.endswith("-imputed")


def to_unit(scores: torch.Tensor, unit: str) -> torch.Tensor:
    """Scores per ranked unit: (N, C, H, W) stays for `value`; `pixel` sums the channels to (N, 1, H, W).

    A uint8 tensor is a ranking already (see attribute.random); for `pixel` its first channel stands for the pixel.
    """
    if unit == "value":
        return scores
    return scores[:, :1] if scores.dtype == torch.uint8 else scores.sum(1, keepdim=True)


def rank(scores: torch.Tensor, ids: torch.Tensor, seed: int) -> torch.Tensor:
    """Rank the units of every image, largest score first, ties in an order drawn from seed and image.

    scores: float (N, C, H, W), finite. ids: int64 (N,), image numbers in the split. Returns uint8 of the same shape,
    0..99. Raises ValueError for NaN or infinite scores. One sort of 64-bit keys: the score's bits in ascending integer
    order above, 32 random bits below.
    """
    flat = scores.detach().reshape(len(scores), -1).float()
    if not torch.isfinite(flat).all():
        bad = int(ids[~torch.isfinite(flat).all(1)][0]) % (1 << 40)  # above are the split's bits: data.image_ids
        raise ValueError(f"scores of image {bad} are NaN or infinite; an importance must be a finite number")
    units = flat.shape[1]
    order = (-flat + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0: they tie
    order = torch.where(order < 0, order ^ 0x7FFFFFFF, order)  # negative floats ascend backwards as integers
    keys = (order << 32) | (draws.bits(seed, draws.TIES, ids, 0, units) & 0xFFFFFFFF)
    rank_to_unit = keys.argsort(1)
    rank_of_value = torch.arange(units, device=flat.device)
    value = ((100 * (rank_of_value + 1) + units - 1) // units - 1).to(torch.uint8)  # (K,)
    ranking = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    ranking.scatter_(1, rank_to_unit, value.expand(len(flat), units))
    return ranking.reshape(scores.shape)


def removed(ranking: torch.Tensor, percent: int, mode: str = "remove") -> torch.Tensor:
    """True where an input is removed: the top `percent`, or in the modes that keep (KAR) all others.

    Works on torch tensors and numpy arrays alike; exactly floor(percent/100 x units) are removed (or kept).
    """
    return ranking >= percent if keeps(mode) else ranking < percent


def counts(ranking: np.ndarray, percent: int) -> np.ndarray:
    """How many units of each image lie in its top `percent`: int (N,). For every image of a split in one pass."""
    parts = (ranking[first : first + 1000] < percent for first in range(0, len(ranking), 1000))
    return np.concatenate([part.reshape(len(part), -1).sum(1) for part in parts])
