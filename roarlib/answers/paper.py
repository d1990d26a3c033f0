"""The paper's published numbers (Hooker et al., NeurIPS 2019, Table 2) and its claims, beside a study's own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from roarlib import plots, stats
from roarlib.names import PAPER

TABLE2 = Path(__file__).with_name("hooker2019_table2.csv")  # 420 accuracies and their source
DATASETS = {  # ours -> (its name in the table, clean accuracy of the paper, number of classes)
    "imagenet": ("ImageNet", 0.7668, 1000),
    "food101": ("Food", 0.8454, 101),
    "birdsnap": ("Birdsnap", 0.6665, 500),
}
MISPRINT = ("imagenet", "grad-var", "keep", 10)  # 53.38, probably for 63.38; left as printed, and not judged by
DELETION = {"imagenet": {90: 0.005}}  # Random without retraining, from the paper's text: the only such number in it
BASES = ("grad", "gb", "ig")
SLACK = 0.5  # points by which "no better" may be missed


@dataclass(frozen=True)
class Source:
    """Mean accuracies (0..1) from the paper or a study: tables of estimators (rows) by percents (columns).

    clean, chance: accuracy of untouched retrainings, and of guessing. n: retrainings a point.
    """

    name: str
    clean: float
    chance: float
    n: int
    remove: pd.DataFrame
    keep: pd.DataFrame = field(default_factory=pd.DataFrame)
    deletion: pd.DataFrame = field(default_factory=pd.DataFrame)  # without retraining

    def share(self, accuracies: pd.DataFrame) -> pd.DataFrame:
        """Accuracy above chance as a share of the clean one's: 1 nothing lost, 0 all of it."""
        return (accuracies - self.chance) / (self.clean - self.chance)


def table2() -> pd.DataFrame:
    """Table 2 with our names: dataset, estimator, mode, percent, accuracy (0..1), suspect (the likely misprint)."""
    table = pd.read_csv(TABLE2, comment="#")
    ours = {plots.label(name): name for name in PAPER}
    datasets = {there: here for here, (there, _, _) in DATASETS.items()}
    table = pd.DataFrame(
        {
            "dataset": table["dataset"].map(datasets),
            "estimator": table["estimator"].map(ours),
            "mode": table["mode"],
            "percent": table["threshold_pct"],
            "accuracy": table["top1_acc"] / 100,
        }
    )
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
    """A study's means over seeds in one unit, from its tidy table (results.table); None if nothing was retrained."""
    retrained = table[(table.measure == "retrain") & (table.unit == unit)]
    clean = table[(table.measure == "retrain") & (table.estimator == "clean")].accuracy
    if retrained.empty or clean.empty:
        return None

    def wide(measure, mode):
        rows = table[(table.measure == measure) & (table.unit == unit) & (table["mode"] == mode)]
        return rows.pivot_table(index="estimator", columns="percent", values="accuracy")

    return Source(
        str(table.study.iloc[0]),
        float(clean.mean()),
        1 / int(table.n_classes.max()),
        int(retrained.groupby(["estimator", "mode", "percent"]).seed.nunique().min()),
        wide("retrain", "remove"),
        wide("retrain", "keep"),
        wide("deletion", "remove"),
    )


def order(source: Source, mode: str = "remove", percents=None) -> pd.Series:
    """How good each estimator is, best first: share of accuracy taken away (remove) or held (keep), mean over t.

    Only estimators with every percent of the table count (or every one of `percents` that it has), so that means are
    over the same percents.
    """
    table = getattr(source, mode)
    shares = source.share(table if percents is None else table[table.columns.intersection(percents)])
    shares = shares.dropna().mean(axis=1)
    return ((1 - shares) if mode == "remove" else shares).sort_values(ascending=False)


def agreement(one: pd.Series, other: pd.Series) -> dict:
    """Spearman's rank correlation of two orders over the estimators they share: stats.spearman, with `n`."""
    shared = one.index.intersection(other.index)
    return stats.spearman(one[shared], other[shared])


def _random_keeps_most(s: Source):
    share = s.share(s.remove).loc["random"]
    return share.iloc[-1] > 0.5, f"{share.iloc[-1]:.0%} of the accuracy left at {share.index[-1]} %"


def _mean_gap(s: Source, names, references) -> pd.Series:
    """Accuracy of each name minus its reference's in points, mean over t; KeyError if one is missing."""
    rows = [100 * (s.remove.loc[n] - s.remove.loc[r]).mean() for n, r in zip(names, references, strict=True)]
    return pd.Series(rows, index=list(names))


def _said(gaps: pd.Series) -> str:
    return ", ".join(f"{plots.label(name)} {gap:+.1f}" for name, gap in gaps.items()) + " points"


def _bases_no_better(s: Source):
    gaps = _mean_gap(s, BASES, ["random"] * 3)
    return bool((gaps >= -SLACK).all()), _said(gaps)


def _smoothgrad_no_better(s: Source):
    gaps = _mean_gap(s, [f"{b}-sg" for b in BASES], BASES)
    return bool((gaps >= -SLACK).all()), _said(gaps)


def _ensembles_far_better(s: Source):
    names = [f"{b}-{e}" for e in ("sgsq", "var") for b in BASES]
    gaps = _mean_gap(s, names, ["random"] * 6)
    return bool((gaps <= -10).all()), _said(gaps)


def _squaring_helps_a_little(s: Source):
    gaps = _mean_gap(s, [f"{b}-squared" for b in BASES], BASES)
    far = _mean_gap(s, [f"{b}-sgsq" for b in BASES], BASES)
    return bool(((gaps < 0) & (gaps.values > far.values)).all()), _said(gaps)


def _deletion_misleads(s: Source):
    percent = s.deletion.columns.intersection(s.remove.columns).max()
    without, after = (s.share(t).loc["random", percent] for t in (s.deletion, s.remove))
    return without < after / 2, f"Random at {percent} %: {without:.0%} of the accuracy left, {after:.0%} if retrained"


# the paper's sentence, in our words -> (holds, numbers) of a source; KeyError or IndexError: not measured there
CLAIMS: dict[str, Callable[[Source], tuple[bool, str]]] = {
    "Random removal leaves most of the accuracy (over half, at the largest t)": _random_keeps_most,
    "GRAD, GB and IG are no better than Random (mean over t)": _bases_no_better,
    "SmoothGrad is no better than the base it wraps (mean over t)": _smoothgrad_no_better,
    "SG-SQ and VAR are far better than Random (10 points and more, mean over t)": _ensembles_far_better,
    "Squaring alone helps, by less than SG-SQ does (mean over t, against the base)": _squaring_helps_a_little,
    "Without retraining everything seems to work (Random's accuracy more than halved)": _deletion_misleads,
}


def judge(sources: list[Source]) -> pd.DataFrame:
    """Every claim against every source: claim, source, holds (True, False, or None where not measured), numbers."""
    rows = []
    for claim, check in CLAIMS.items():
        for source in sources:
            try:
                holds, numbers = check(source)
                if "nan" in numbers:  # some percents are missing
                    raise KeyError
            except (KeyError, IndexError, TypeError, AttributeError):
                holds, numbers = None, "not measured"
            rows.append({"claim": claim, "source": source.name, "holds": holds, "numbers": numbers})
    return pd.DataFrame(rows)


def draw(ax, source: Source, names, mode: str = "remove", shares: bool = False, **look) -> None:
    """Curves of a source on an axes, from its clean end, in the look of `plots`; shares: of clean above chance.

    `plots.name_lines(ax)`, called last, names them.
    """
    table, end = getattr(source, mode), 0 if mode == "remove" else 100
    table = table.loc[plots.in_order([n for n in names if n in table.index])].copy()
    table[end] = source.clean
    table = (source.share(table) if shares else table).sort_index(axis=1)
    found = table.rename_axis(columns="percent").stack().rename("mean").reset_index()
    found.columns = ["estimator", "percent", "mean"]
    found = found.assign(low=np.nan, high=np.nan)
    for name in table.index:
        plots.line(found, name, ax, interval=False, **look)
    plots.frame(ax, found, mode)


def scatter(ax, x: pd.Series, y: pd.Series) -> None:
    """Two orders against each other in percent, one named point an estimator that both have. Set the labels before."""
    names = plots.in_order(x.index.intersection(y.index))
    for name in names:
        look = plots.style(name)
        ax.plot(100 * x[name], 100 * y[name], look["marker"] or "*", color=look["color"], markersize=5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(0.2, 0.12)
    ax.figure.canvas.draw()  # fixes the layout, which the places of the names depend on
    taken = [ax.transData.transform((100 * x[n], 100 * y[n])) + np.array([[-4, -4], [4, 4]]) for n in names]
    for name in names:
        for dx, dy, side in PLACES:
            text = ax.annotate(plots.label(name), (100 * x[name], 100 * y[name]), (dx, dy), fontsize=6.5, ha=side,
                               va="center", textcoords="offset points", color=plots.INK)  # fmt: skip
            box = text.get_window_extent().get_points()
            if not any((box[0] < other[1]).all() and (other[0] < box[1]).all() for other in taken):
                break
            if (dx, dy, side) != PLACES[-1]:
                text.remove()
        taken.append(box)
        if abs(dy) > 12:
            ax.annotate("", (100 * x[name], 100 * y[name]), (dx, dy), textcoords="offset points",
                        arrowprops=dict(arrowstyle="-", color=plots.FAINT, linewidth=0.5))  # fmt: skip


# where a point's name may stand: offsets in points and alignment, the nearest first
PLACES = [
    (side * (6 + abs(dy) / 3), dy, "left" if side > 0 else "right")
    for dy in (0, 8, -8, 16, -16, 24, -24, 32, -32)
    for side in (1, -1)
]
