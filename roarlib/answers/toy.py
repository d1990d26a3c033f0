"""The paper's toy problem: 16 inputs, 4 of them informative, a linear model, and rankings known to be right or wrong.

x = a z / 10 + d n + e / 10 and y = (z > 0), with z, n and each e standard normal. Only the first 4 values of `a` are
not 0; `d`, the weights of the noise n that all inputs share, has no 0. So 12 inputs know nothing of y, and yet a model
uses them, to subtract the noise. Source: Hooker et al. (2019), section 3; here `a` and `d` are normal, too.
"""

import numpy as np
import pandas as pd

INPUTS, INFORMATIVE = 16, 4
RANKINGS = ("true", "random", "inverted")  # informative inputs first, in any order, last


def accuracies(seeds: int = 20, images: int = 4000) -> pd.DataFrame:
    """Accuracy of a least-squares model after removing inputs: ranking, retrained, removed (0..16), seed, accuracy.

    Removed inputs become 0, their mean. Each seed draws a problem, `images` samples to train on and as many to test on.
    """
    rows = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, INPUTS])
        a, d = rng.standard_normal((2, INPUTS))
        a[INFORMATIVE:] = 0
        (x, y), (x_test, y_test) = (_draw(rng, a, d, images) for _ in range(2))
        orders = {"true": np.arange(INPUTS), "random": rng.permutation(INPUTS), "inverted": np.arange(INPUTS)[::-1]}
        squares, moments = x.T @ x, x.T @ y  # all that least squares needs of the training samples
        base = _fit(squares, moments)
        for ranking, order in orders.items():
            for removed in range(INPUTS + 1):
                kept = np.ones(INPUTS)
                kept[order[:removed]] = 0
                for retrained in (False, True):
                    weights = _fit(squares * np.outer(kept, kept), moments * kept) if retrained else base
                    right = np.mean((x_test * kept @ weights > 0) == (y_test > 0))
                    rows.append((ranking, retrained, removed, seed, float(right)))
    return pd.DataFrame(rows, columns=["ranking", "retrained", "removed", "seed", "accuracy"])


def draw(axes, table: pd.DataFrame) -> None:
    """Two axes, without and with retraining: mean accuracy in percent over the number of inputs removed."""
    colors = dict(zip(RANKINGS, ("#8C510A", "#000000", "#0072B2"), strict=True))
    for ax, (retrained, part) in zip(axes, table.groupby("retrained"), strict=True):
        means = part.groupby(["ranking", "removed"]).accuracy.mean().mul(100)
        for ranking in RANKINGS:
            ax.plot(means[ranking], color=colors[ranking], label=ranking, marker="o", markersize=2.5, linewidth=1.2)
        ax.set(xlabel="inputs removed", ylim=(45, 102))
        ax.set_title("retrained" if retrained else "not retrained", loc="left", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy (%)")


def _draw(rng: np.random.Generator, a: np.ndarray, d: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    z, n = rng.standard_normal((2, count, 1))
    return a * z / 10 + d * n + rng.standard_normal((count, INPUTS)) / 10, np.sign(z[:, 0])


def _fit(squares: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Least squares by its normal equations; the shortest solution where inputs are gone."""
    return np.linalg.lstsq(squares, moments, rcond=None)[0]
