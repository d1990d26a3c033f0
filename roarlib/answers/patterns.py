"""Patterns that rankings form, whatever they cover: clumps, and the lattice that strides print on gradients.

Both are read off the rankings of test images, in seconds, before anything is retrained.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from roarlib.study import rankings
from roarlib.study.names import KNOWN_ANSWER, label, split_name
from roarlib.study.params import Study

LATTICE = 10  # points above which there is a warning of a lattice
CLUMPED = 0.3  # excess of Moran's I over Random's above which holes are solid enough to doubt a verdict
MODULI = (2, 4)  # periods in px, of one and of two strides of 2


def _masks(study: Study, unit: str, percent: int, count: int, names=None) -> Iterator[tuple[str, np.ndarray]]:
    """What each ranked estimator (of `names`) removes at t: bool (count, C or 1, H, W) of some test images."""
    for name in rankings.ready(study, unit, "test"):
        if names is not None and name not in names:
            continue
        yield name, rankings.removed(rankings.sample(study, name, unit, count), percent)


def lattice(study: Study, unit: str, percent: int = 50, count: int = 500) -> pd.DataFrame:
    """Points between the positions removed most and least at t: estimators by MODULI, 0..100; see `by_position`.

    Over `count` test images, taken evenly. Random has about 1 point modulo 4 with 500 images of 32 x 32 px.
    """
    found = {e: [100 * by_position(m, modulus) for modulus in MODULI] for e, m in _masks(study, unit, percent, count)}
    return pd.DataFrame.from_dict(found, "index", columns=list(MODULI))


def by_position(masks: np.ndarray, modulus: int) -> float:
    """Share removed by row and column modulo `modulus`, the largest minus the smallest: 0..1. masks: (.., H, W)."""
    cells = np.ndindex(modulus, modulus)
    shares = [masks[..., row::modulus, column::modulus].mean() for row, column in cells]
    return float(max(shares) - min(shares))


def warning(found: pd.DataFrame) -> str:
    """A sentence on the estimators with a `lattice` of more than LATTICE points; empty if there is none."""
    worst = found.max(axis=1).sort_values(ascending=False)
    if not len(worst := worst[worst > LATTICE]):
        return ""
    names = ", ".join(f"{label(name)} ({points:.0f})" for name, points in worst.items())
    return (
        f"A lattice: by row and column modulo 2 or 4, the share removed differs by more than {LATTICE} points for "
        f"{names}. Strides print it on gradients, and a fresh model can read the small copy of the image that is left."
    )


def clumpiness(study: Study, unit: str, percent: int, count: int = 500, names=None) -> pd.Series:
    """Moran's I of each estimator's removal masks at t, mean over `count` test images, taken evenly, and channels."""
    found = {name: float(np.nanmean(moran(masks))) for name, masks in _masks(study, unit, percent, count, names)}
    return pd.Series(found, name="moran", dtype=float)


def solid(study: Study, unit: str, better: list[str]) -> str:
    """A sentence on those of `better` that may beat Random only because their holes are solid; empty if there are none.

    Left out are those whose blurred copy is in the study beside blurred Random, as `verdicts.beside_blurred` judges
    these, and those that know the answer.
    """
    there = set(study.estimators) if "random-blur" in study.estimators else set()
    answered = [name for name in better if f"{name.removesuffix('-blur')}-blur" in there]
    asked = [name for name in better if name not in answered and split_name(name)[0] not in KNOWN_ANSWER]
    found = clumpiness(study, unit, 50, names=[*asked, "random"]) if asked else pd.Series(dtype=float)
    if asked and not set(asked) & set(found.index):
        return "Whether holes are solid was not checked: the rankings are not here."
    worst = found.reindex(asked).dropna().sort_values(ascending=False)
    if not len(worst := worst[worst > found.get("random", 0) + CLUMPED]):
        return ""
    names = ", ".join(f"{label(name)} ({value:.1f})" for name, value in worst.head(4).items())
    names += f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return (
        f"Solid holes (Moran's I; 0 for Random): {names}. A network cannot fill in a solid hole as it can scattered "
        "ones, whatever the hole covers, so part of their verdicts may be due to shape. Where estimators are in "
        'the study blurred as well ("*-blur" adds all, at up to twice the retrainings), the report compares these '
        "copies with blurred Random."
    )


def moran(masks: np.ndarray) -> np.ndarray:
    """Moran's I of 2-d patterns (.., H, W): near 0 for scattered, towards 1 for clumped, below 0 for alternating ones.

    I = (N / W) sum of w_ij (m_i - m)(m_j - m) / sum of (m_i - m)^2, w_ij = 1 for the four direct neighbours and W their
    sum. NaN where all values are the same. Source: Moran, Biometrika 37 (1950).
    """
    deviations = masks - masks.mean((-2, -1), keepdims=True, dtype=float)
    height, width = masks.shape[-2:]
    down = (deviations[..., 1:, :] * deviations[..., :-1, :]).sum((-2, -1))
    across = (deviations[..., 1:] * deviations[..., :-1]).sum((-2, -1))
    pairs = (height - 1) * width + height * (width - 1)
    squares = (deviations**2).sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squares > 0, height * width / pairs * (down + across) / squares, np.nan)
