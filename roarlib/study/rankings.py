"""Reading ranking files, with NumPy alone, so that analyses do without torch. `engine.store` writes them.

A ranking is uint8 (N, C, H, W), or (N, 1, H, W) for unit `pixel`: `ceil(100 (r + 1) / K) - 1` for rank r = 0 (most
important) .. K - 1 of K units. A unit is removed at t percent exactly when its value is below t, so one byte serves
every whole percent and every mode.
"""

from pathlib import Path

import numpy as np

from roarlib.study.names import keeps, safe
from roarlib.study.params import Study
from roarlib.study.results import Key


def path(study: Study, estimator: str, unit: str, split: str) -> Path:
    """The path of a ranking: 02-attribute/<group>/<estimator>-<unit>-<split>.npy in the study's folder.

    If every seed has its own base model, the name ends in `-b<seed>.npy`.
    """
    return study.folder / Key("ranking", estimator).cell / f"{safe(estimator)}-{unit}-{split}{study.of_base}.npy"


def ready(study: Study, unit: str, split: str) -> list[str]:
    """The study's estimators whose rankings of a split exist."""
    return [name for name in study.estimators if path(study, name, unit, split).is_file()]


def load(study: Study, estimator: str, unit: str, split: str) -> np.ndarray:
    """A ranking, memory-mapped (writing changes a private copy). LookupError if it does not exist."""
    file = path(study, estimator, unit, split)
    if not file.is_file():
        raise LookupError(f"no {unit} ranking by {estimator} of {study.name} yet; `roar run` with its YAML makes it")
    return np.load(file, mmap_mode="c", allow_pickle=False)


def evenly(total: int, count: int) -> np.ndarray:
    """Which `count` of `total` images to take as a sample, int64, evenly spaced: folders are sorted by class."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))


def sample(study: Study, estimator: str, unit: str, count: int) -> np.ndarray:
    """The rankings of `count` test images, taken `evenly`."""
    found = load(study, estimator, unit, "test")
    return np.asarray(found[evenly(len(found), count)])


def removed(ranking, percent: int, mode: str = "remove"):
    """True where an input is removed: the top `percent`, or all others in the modes that keep (KAR).

    ranking: a NumPy array or a torch tensor. Exactly floor(percent/100 x units) are removed (or kept), except that
    Random removes each with probability percent/100.
    """
    return ranking >= percent if keeps(mode) else ranking < percent


def counts(ranking: np.ndarray, percent: int) -> np.ndarray:
    """How many units of each image lie in its top `percent`: int (N,). Reads in parts, so a split may have any size."""
    parts = (ranking[first : first + 1000] < percent for first in range(0, len(ranking), 1000))
    return np.concatenate([part.reshape(len(part), -1).sum(1) for part in parts])


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of removed units that two rankings of the same images have in common, at t = 1 .. 100: float (100,).

    2 |A and B| / (|A| + |B|) (Dice, Ecology 26, 1945), which treats Random, which removes t percent only on average,
    like the others. If both remove equally many, it is the share of the units that one removes which the other removes
    too, and its mean for unrelated rankings is t / 100. NaN where nothing is removed.
    """
    one, other, both = (np.bincount(x.reshape(-1), minlength=100).cumsum() for x in (a, b, np.maximum(a, b)))
    return np.divide(2 * both, one + other, out=np.full(100, np.nan), where=one + other > 0)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two rankings of the same images (N, ..), mean over the images.

    Values are already ranks, in steps of one percent; the ties that this makes change it by less than 0.001.
    """
    one, other = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True) for x in (a, b))
    return float(((one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))).mean())
