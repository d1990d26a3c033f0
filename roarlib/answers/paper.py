"""The paper (Hooker et al., NeurIPS 2019) beside a study: its published numbers, its claims, and its toy problem.

The toy problem (section 3 there): 16 inputs, 4 of them informative, a linear model, and rankings known to be right or
wrong. x = a z / 10 + d n + e / 10 and y = (z > 0), with z, n and each e standard normal. Only the first 4 values of `a`
are not 0; `d`, the weights of the noise n that all inputs share, has no 0. So 12 inputs carry no information about y,
and yet a model uses them, to subtract the noise. Here `a` and `d` are drawn from normal distributions, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from roarlib.answers import stats
from roarlib.study.names import BASES, PAPER, label, variant_of

TABLE2 = Path(__file__).with_name("hooker2019_table2.csv")  # 420 accuracies and their source
DATASETS = {  # ours -> (its name in the table, clean accuracy of the paper, number of classes)
    "imagenet": ("ImageNet", 0.7668, 1000),
    "food101": ("Food", 0.8454, 101),
    "birdsnap": ("Birdsnap", 0.6665, 500),
}
MISPRINT = ("imagenet", "grad-var", "keep", 10)  # 53.38, probably for 63.38; kept as printed, and not used to judge
DELETION = {"imagenet": {90: 0.005}}  # Random without retraining, from the paper's text: the only such number in it
SLACK = 0.5  # points of tolerance in "no better"


@dataclass(frozen=True)
class Source:
    """Mean accuracies (0..1) from the paper or a study: tables of estimators (rows) by percents (columns).

    clean, chance: accuracy of untouched retrainings, and of guessing. n: retrainings a point (median).
    """

    name: str
    clean: float
    chance: float
    n: int
    remove: pd.DataFrame
    keep: pd.DataFrame = field(default_factory=pd.DataFrame)
    deletion: pd.DataFrame = field(default_factory=pd.DataFrame)  # without retraining

    def share(self, accuracies: pd.DataFrame) -> pd.DataFrame:
        """Accuracy above chance as a share of the clean one's: 1: nothing is lost, 0: all of it."""
        return (accuracies - self.chance) / (self.clean - self.chance)


def table2() -> pd.DataFrame:
    """Table 2 with our names: dataset, estimator, mode, percent, accuracy (0..1), suspect (the likely misprint)."""
    table = pd.read_csv(TABLE2, comment="#").rename(columns={"threshold_pct": "percent", "top1_acc": "accuracy"})
    ours = {label(name): name for name in PAPER}
    datasets = {there: here for here, (there, _, _) in DATASETS.items()}
    table["dataset"], table["estimator"] = table.dataset.map(datasets), table.estimator.map(ours)
    table["accuracy"] /= 100
    keys = table[["dataset", "estimator", "mode", "percent"]].apply(tuple, axis=1)
    return table.assign(suspect=keys == MISPRINT)


def published(dataset: str) -> Source:
    """The paper's accuracies on `imagenet`, `food101` or `birdsnap`; means of 5 retrainings, spread not published."""
    table = table2()
    name, clean, classes = DATASETS[dataset]
    wide = {
        mode: part.pivot(index="estimator", columns="percent", values="accuracy")
        for mode, part in table[(table.dataset == dataset) & ~table.suspect].groupby("mode")
    }
    without = pd.DataFrame(DELETION.get(dataset, {}), index=["random"])
    name = f"paper, {'Food-101' if name == 'Food' else name}"
    return Source(name, clean, 1 / classes, 5, wide["remove"], wide["keep"], without)


def of_study(table: pd.DataFrame, unit: str) -> Source | None:
    """A study's means over seeds in one unit, from its tidy table (results.table); None if nothing was retrained.

    At the percents that most of its estimators have (`stats.complete`), without variants, which the paper has none of.
    """
    retrained = table[(table.measure == "retrain") & (table.unit == unit)]
    clean = table[(table.measure == "retrain") & (table.estimator == "clean")].accuracy
    if retrained.empty or clean.empty:
        return None

    def wide(measure, mode):
        rows = table[(table.measure == measure) & (table.unit == unit) & (table["mode"] == mode)]
        rows = rows[rows.estimator.map(variant_of) == ""]
        return stats.complete(rows).pivot_table(index="estimator", columns="percent", values="accuracy")

    return Source(
        str(table.study.iloc[0]),
        float(clean.mean()),
        stats.floor(table),
        int(retrained.groupby(["estimator", "mode", "percent"]).seed.nunique().median()),
        wide("retrain", "remove"),
        wide("retrain", "keep"),
        wide("deletion", "remove"),
    )


def comparable(table: pd.DataFrame, unit: str) -> bool:
    """Whether a study shares at least three estimators beside Random with Table 2, so that an order means something."""
    retrained = table[(table.measure == "retrain") & (table.unit == unit) & table["mode"].isin(["remove", "keep"])]
    return len({*retrained.estimator} & {*table2().estimator} - {"random"}) > 2


def order(source: Source, mode: str = "remove", percents=None) -> pd.Series:
    """How good each estimator is, best first: share of accuracy taken away (remove) or held (keep), mean over t.

    Only estimators with every percent of the table count (or every one of `percents` that it has): `stats.goodness`.
    """
    table = getattr(source, mode)
    shares = source.share(table if percents is None else table[table.columns.intersection(percents)])
    return (stats.goodness(shares, mode) + (mode == "remove")).sort_values(ascending=False)


def agreement(one: pd.Series, other: pd.Series) -> dict:
    """Spearman's rank correlation of two orders over the estimators they share: stats.spearman, with `n`."""
    shared = one.index.intersection(other.index)
    return stats.spearman(one[shared], other[shared])


def _random_keeps_most(s: Source):
    share = s.share(s.remove).loc["random"]
    return share.iloc[-1] > 0.5, f"{share.iloc[-1]:.0%} of the accuracy left at {share.index[-1]} %"


def _gaps(s: Source, names, references, holds: Callable[[pd.Series], pd.Series]) -> tuple[bool, str]:
    """Accuracy of each name minus its reference's, points, mean over t: do all hold, and a text; KeyError: missing."""
    rows = [100 * (s.remove.loc[n] - s.remove.loc[r]).mean() for n, r in zip(names, references, strict=True)]
    gaps = pd.Series(rows, index=list(names))
    return bool(holds(gaps).all()), ", ".join(f"{label(name)} {gap:+.1f}" for name, gap in gaps.items()) + " points"


def _squaring_helps_a_little(s: Source):
    far = [100 * (s.remove.loc[f"{b}-sgsq"] - s.remove.loc[b]).mean() for b in BASES]
    return _gaps(s, _of_bases("squared"), BASES, lambda gaps: (gaps < 0) & (gaps.values > far))


def _of_bases(ensemble: str) -> list[str]:
    return [f"{base}-{ensemble}" for base in BASES]


def _deletion_misleads(s: Source):
    percent = s.deletion.columns.intersection(s.remove.columns).max()
    without, after = (s.share(t).loc["random", percent] for t in (s.deletion, s.remove))
    return without < after / 2, f"Random at {percent} %: {without:.0%} of the accuracy left, {after:.0%} if retrained"


# the paper's sentence, in our words -> (holds, numbers) of a source; KeyError or IndexError: not measured there
CLAIMS: dict[str, Callable[[Source], tuple[bool, str]]] = {
    "Random removal leaves most of the accuracy (over half, at the largest t)": _random_keeps_most,
    "GRAD, GB and IG are no better than Random (mean over t)": lambda s: _gaps(
        s, BASES, ["random"] * 3, lambda gaps: gaps >= -SLACK
    ),
    "SmoothGrad is no better than the base it wraps (mean over t)": lambda s: _gaps(
        s, _of_bases("sg"), BASES, lambda gaps: gaps >= -SLACK
    ),
    "SG-SQ and VAR are far better than Random (10 points and more, mean over t)": lambda s: _gaps(
        s, _of_bases("sgsq") + _of_bases("var"), ["random"] * 6, lambda gaps: gaps <= -10
    ),
    "Squaring alone helps, by less than SG-SQ does (mean over t, against the base)": _squaring_helps_a_little,
    "Without retraining everything seems to work (Random's accuracy more than halved)": _deletion_misleads,
}


def judge(sources: list[Source]) -> pd.DataFrame:
    """Every claim against every source that has measured what it speaks of: claim, source, holds, numbers."""
    rows = []
    for claim, check in CLAIMS.items():
        for source in sources:
            try:
                holds, numbers = check(source)
            except (KeyError, IndexError, TypeError, AttributeError):  # not measured there
                continue
            if "nan" not in numbers:  # else some percents are missing
                rows.append({"claim": claim, "source": source.name, "holds": holds, "numbers": numbers})
    return pd.DataFrame(rows, columns=["claim", "source", "holds", "numbers"])


INPUTS, INFORMATIVE = 16, 4


def toy(seeds: int = 20, images: int = 4000) -> pd.DataFrame:
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


def _draw(rng: np.random.Generator, a: np.ndarray, d: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    z, n = rng.standard_normal((2, count, 1))
    return a * z / 10 + d * n + rng.standard_normal((count, INPUTS)) / 10, np.sign(z[:, 0])


def _fit(squares: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Least squares by its normal equations; the shortest solution where inputs are gone."""
    return np.linalg.lstsq(squares, moments, rcond=None)[0]
