"""What a ranking file says: NumPy alone, so that analyses read it without torch. `engine.store` writes it.

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
    """Where a ranking lies: 02-attribute/<group>/<estimator>-<unit>-<split>.npy under the study's folder.

    Before .npy stands `-b<seed>` where every seed has a base model of its own.
    """
    return study.folder / Key("ranking", estimator).cell / f"{safe(estimator)}-{unit}-{split}{study.of_base}.npy"


def ready(study: Study, unit: str, split: str) -> list[str]:
    """The study's estimators whose rankings of a split are there."""
    return [name for name in study.estimators if path(study, name, unit, split).is_file()]


def load(study: Study, estimator: str, unit: str, split: str) -> np.ndarray:
    """A ranking, memory-mapped (writing changes a private copy). LookupError if it is not there."""
    file = path(study, estimator, unit, split)
    if not file.is_file():
        raise LookupError(f"no {unit} ranking by {estimator} of {study.name} yet; `roar run` with its YAML makes it")
    return np.load(file, mmap_mode="c", allow_pickle=False)


def removed(ranking, percent: int, mode: str = "remove"):
    """True where an input is removed: the top `percent`, or in the modes that keep (KAR) all others.

    ranking: a NumPy array or a torch tensor. Exactly floor(percent/100 x units) are removed (or kept).
    """
    return ranking >= percent if keeps(mode) else ranking < percent


def counts(ranking: np.ndarray, percent: int) -> np.ndarray:
    """How many units of each image lie in its top `percent`: int (N,). A split of any size, in one pass."""
    parts = (ranking[first : first + 1000] < percent for first in range(0, len(ranking), 1000))
    return np.concatenate([part.reshape(len(part), -1).sum(1) for part in parts])


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of removed units that two rankings of one image have in common, at t = 1 .. 100: float (100,).

    2 |A and B| / (|A| + |B|) (Dice, Ecology 26, 1945), so that Random, which removes t percent only on average, counts
    as the others do. Where both remove equally many it is the share of either's units that the other removes too, and
    t / 100 is its mean for unrelated rankings. NaN where nothing is removed.
    """
    one, other, both = (np.bincount(x.reshape(-1), minlength=100).cumsum() for x in (a, b, np.maximum(a, b)))
    return np.divide(2 * both, one + other, out=np.full(100, np.nan), where=one + other > 0)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two rankings of the same images (N, ..), mean over the images.

    Values are ranks already, in steps of a percent: ties within them move it by less than 0.001.
    """
    one, other = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True) for x in (a, b))
    return float(((one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))).mean())
