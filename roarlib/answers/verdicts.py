"""From curves to words: is an estimator better than Random, than Sobel, than the base it wraps? And do rankings agree?

Every comparison is paired by seed (same first weights, same order of images), takes one number a seed (the difference
of accuracy, mean over the percents that both have), and is corrected for the number of estimators compared.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from roarlib import plots, remove, stats
from roarlib.names import parent_of

LEVEL = 0.05  # chance of any false finding among all estimators of one comparison
BETTER, WORSE, NONE, FEW = "better", "worse", "no difference seen", "too few seeds"


def verdicts(table: pd.DataFrame, unit: str, mode: str, reference: str = "random") -> pd.DataFrame:
    """One row an estimator: its difference to the reference, tested, and one word.

    table: one study's tidy table. reference: an estimator, or `base` for what each is made from (the base an ensemble
    wraps, the estimator that a variant varies). Columns:
    estimator, reference, n (seeds), mean, low, high (difference of accuracy, -1..1, mean over percents, with its 95
    percent t interval), effect (Hedges' g of the paired differences), p (two-sided paired t test), p_holm (corrected
    for all rows), verdict. Lower accuracy is better in the modes that remove, higher in those that keep. Sorted, best
    first.
    """
    stats.one_study(table)
    rows = _retrained(table, unit, mode)
    found = []
    for estimator in rows.estimator.unique():
        against = parent_of(estimator) if reference == "base" else reference
        if against not in ("", estimator) and (differences := by_seed(rows, estimator, against)).size:
            found.append({"estimator": estimator, "reference": against, **_tested(differences)})
    columns = ["estimator", "reference", "n", "mean", "low", "high", "effect", "p", "p_holm", "verdict"]
    out = pd.DataFrame(found, columns=columns)
    out["p_holm"] = holm(out["p"].to_numpy(dtype=float))
    good = out["mean"] > 0 if remove.keeps(mode) else out["mean"] < 0
    word = np.where(out["p_holm"] < LEVEL, np.where(good, BETTER, WORSE), NONE)
    out["verdict"] = np.where(out["n"] < 2, FEW, word)
    return out.sort_values("mean", ascending=not remove.keeps(mode), ignore_index=True)


def _retrained(table: pd.DataFrame, unit: str, mode: str) -> pd.DataFrame:
    return table[(table.measure == "retrain") & (table.unit == unit) & (table["mode"] == mode)]


def by_seed(rows: pd.DataFrame, estimator: str, reference: str) -> np.ndarray:
    """Accuracy of an estimator minus the reference's, mean over percents, for each seed complete in both: (seeds,)."""
    if "precision" in rows:  # a seed run in float32 and in bfloat16 is no pair
        rows = rows.assign(seed=rows.seed.astype(str) + rows.precision.fillna("").astype(str))
    own, other = (stats.by_seed(rows[rows.estimator == name]) for name in (estimator, reference))
    percents = own.columns.intersection(other.columns)
    return (own[percents] - other[percents]).dropna().mean(axis=1).to_numpy() if len(percents) else np.empty(0)


def _tested(differences: np.ndarray) -> dict:
    numbers = stats.spread(differences)
    varies = numbers["n"] > 1 and numbers["std"] > 1e-12
    p = float(scipy_stats.ttest_1samp(differences, 0).pvalue) if varies else np.nan
    return {k: numbers[k] for k in ("n", "mean", "low", "high")} | {"effect": hedges_g(differences), "p": p}


def hedges_g(differences) -> float:
    """Mean of paired differences in units of their standard deviation, corrected for small n; NaN below 3 seeds.

    g = (mean / std) (1 - 3 / (4 (n - 1) - 1)). Source: Hedges, Journal of Educational Statistics 6 (1981).
    """
    differences = np.asarray(differences, dtype=float)
    n = len(differences)
    if n < 3 or differences.std(ddof=1) < 1e-12:
        return np.nan
    return float(differences.mean() / differences.std(ddof=1) * (1 - 3 / (4 * (n - 1) - 1)))


def holm(p) -> np.ndarray:
    """p values (m,) corrected for m tests: the k-th smallest times m - k + 1, never falling, at most 1; NaN stays.

    Keeps the chance of any false finding at the level. Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return out


def power(difference: float, std: float, n: int, level: float = LEVEL) -> float:
    """Chance that a two-sided paired t test at `level` on n seeds sees a true difference, given the differences' std.

    1 - F(t) + F(-t) of the noncentral t distribution with n - 1 degrees and noncentrality sqrt(n) difference / std.
    Source: scipy.stats.nct; Cohen, Statistical Power Analysis (1988).
    """
    if n < 2 or not np.isfinite(std):
        return 0.0 if n < 2 else np.nan
    edge, shift = scipy_stats.t.ppf(1 - level / 2, n - 1), np.sqrt(n) * abs(difference) / std
    tails = scipy_stats.nct.sf(edge, n - 1, shift), scipy_stats.nct.cdf(-edge, n - 1, shift)
    return float(np.nan_to_num(tails[0], nan=1.0) + np.nan_to_num(tails[1]))  # SciPy gives NaN far out


def seeds_needed(difference: float, std: float, level: float = LEVEL, wanted: float = 0.8, most: int = 200) -> int:
    """Fewest seeds with which a difference is seen with chance `wanted`; `most` stands for that many or more.

    std: of the paired differences. For m estimators under Holm's correction take level / m, its strictest step.
    """
    return next((n for n in range(2, most) if power(difference, std, n, level) >= wanted), most)


def spread_of_differences(table: pd.DataFrame, unit: str, mode: str) -> float:
    """Typical standard deviation over seeds of the differences to Random: root mean square over estimators."""
    rows = _retrained(table, unit, mode)
    names = set(rows.estimator) - {"random", "clean"}
    variances = [d.var(ddof=1) for name in names if len(d := by_seed(rows, name, "random")) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else np.nan


def kendall_w(scores: pd.DataFrame) -> dict:
    """Agreement of several rankings of the same things: W in 0..1 and its p value, NaN if m or n is below 2.

    scores: judges (rows, m) by things (columns, n), only complete columns count. W = 12 S / (m^2 (n^3 - n) - m T),
    S the sum of squared deviations of the rank sums, T the ties' sum of t^3 - t; p from chi^2 = m (n - 1) W with n - 1
    degrees of freedom.
    Source: Kendall and Babington Smith, Annals of Mathematical Statistics 10 (1939).
    """
    ranks = scores.dropna(axis=1).rank(axis=1)
    m, n = ranks.shape
    if m < 2 or n < 2:
        return dict(m=m, n=n, w=np.nan, p=np.nan)
    deviations = ranks.sum() - m * (n + 1) / 2
    ties = sum((c**3 - c) for _, row in ranks.iterrows() for c in row.value_counts())
    w = 12 * float((deviations**2).sum()) / (m**2 * (n**3 - n) - m * ties)
    return dict(m=m, n=n, w=w, p=float(scipy_stats.chi2.sf(m * (n - 1) * w, n - 1)))


def goodness(table: pd.DataFrame, unit: str, mode: str, percents=None) -> pd.Series:
    """How good each estimator is, larger is better: accuracy where inputs are kept, minus it where they are removed.

    Mean over seeds and percents (of `percents`, if given); only estimators with every seed and percent count, so that
    means are over the same points. Indexed by estimator; empty where nothing was retrained.
    """
    stats.one_study(table)
    rows = _retrained(table, unit, mode)
    rows = rows if percents is None else rows[rows.percent.isin(percents)]
    whole = rows.pivot_table(index=["seed", "percent"], columns="estimator", values="accuracy").dropna(axis=1)
    return whole.mean() if remove.keeps(mode) else -whole.mean()


def agreement(table: pd.DataFrame, unit: str, mode: str) -> pd.DataFrame:
    """Whether the order of estimators is the same for every seed, percent, unit and mode: over, m, n, w, p.

    Seeds and percents within this unit and mode; units within this mode; modes within this unit, where W means that
    the same estimators are good in both (see `goodness`). m: judges, n: estimators. W is NaN with one judge.
    """
    rows = _retrained(table, unit, mode)
    whole = rows.pivot_table(index=["seed", "percent"], columns="estimator", values="accuracy").dropna(axis=1)
    rows, out = rows[rows.estimator.isin(whole.columns)], []  # means only over the same seeds and percents
    for what in ("seed", "percent"):
        scores = rows.pivot_table(index=what, columns="estimator", values="accuracy")
        out.append({"over": f"{what}s", **kendall_w(scores)})
    sides = _sides(table)
    for what, judges in (("units", [s for s in sides if s[1] == mode]), ("modes", [s for s in sides if s[0] == unit])):
        out.append({"over": what, **kendall_w(_orders({side: (table, *side) for side in judges}))})
    return pd.DataFrame(out)


def agreement_within(table: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau between the orders of estimators of every two units and modes of a study: see `agreement_of`."""
    return _pairs({f"{plots.UNITS[u]} {plots.MODES[m]}": (table, u, m) for u, m in _sides(table)})


def agreement_of(tables: dict[str, pd.DataFrame], unit: str, mode: str) -> pd.DataFrame:
    """Kendall's tau between the orders of estimators of every two studies: one, other, n, tau, low, high, p.

    tables: name -> a study's tidy table. n: estimators that both have, each by its mean over the percents that both
    have (see `goodness`); interval of `stats.kendall`; tau is NaN where fewer than two estimators are shared.
    """
    return _pairs({name: (table, unit, mode) for name, table in tables.items()})


def _sides(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Every unit and mode that judges estimators; a mask alone does not: what it tells is a leak."""
    judging = table[(table.measure == "retrain") & (table["mode"] != "mask")]
    there = set(judging[["unit", "mode"]].itertuples(index=False, name=None))
    return [(unit, mode) for unit in plots.UNITS for mode in plots.MODES if (unit, mode) in there]


def _orders(sides: dict) -> pd.DataFrame:
    """`goodness` of estimators (columns) on each side (rows), {name: (table, unit, mode)}; NaN: not measured.

    Sides of one mode are taken over the percents that all of them have; a percent kept is none removed.
    """
    percents = None
    if len({mode for _, _, mode in sides.values()}) == 1:
        percents = set.intersection(*(set(_retrained(*side).percent) for side in sides.values()))
    return pd.DataFrame({name: goodness(*side, percents) for name, side in sides.items()}).T


def _pairs(sides: dict) -> pd.DataFrame:
    rows = []
    for one, other in combinations(sides, 2):
        both = _orders({name: sides[name] for name in (one, other)}).dropna(axis=1)
        rows.append({"one": one, "other": other, **stats.kendall(*both.to_numpy(dtype=float))})
    return pd.DataFrame(rows, columns=["one", "other", "n", "tau", "low", "high", "p"])


def in_words(found: pd.DataFrame, label) -> str:
    """The verdicts as a sentence to quote. found: of `verdicts`; label: name -> how readers know it."""
    if found.empty:
        return "No estimator shares its seeds with the reference: nothing can be said."
    name = label(found.reference.iloc[0]) if found.reference.nunique() == 1 else "the base it wraps"
    groups = {word: [label(e) for e in found[found.verdict == word].estimator] for word in (BETTER, WORSE, NONE, FEW)}
    parts = [
        f"{word} than {name}: {', '.join(names)}" for word, names in groups.items() if names and word in (BETTER, WORSE)
    ]
    if groups[NONE]:
        parts.append(f"no difference seen: {', '.join(groups[NONE])}")
    if groups[FEW]:
        parts.append(f"too few seeds to say anything: {', '.join(groups[FEW])}")
    n = found.n.min() if found.n.min() == found.n.max() else f"{found.n.min()} to {found.n.max()}"
    seeds = "1 seed" if found.n.max() == 1 else f"{n} seeds"
    return f"With {seeds} and a {LEVEL:.0%} chance of any false finding: " + "; ".join(parts) + "."


def draw(ax, found: pd.DataFrame, scale: float = 100) -> None:
    """Means with intervals as dots and bars, one line an estimator, best on top; a line at 0.

    found: columns estimator, mean, low, high, in order, and verdict if there is one, which sets open and full dots.
    """
    for place, row in enumerate(found.itertuples()):
        color = plots.style(row.estimator)["color"]
        told = getattr(row, "verdict", "better") in ("better", "worse")
        if not np.isnan(row.low):
            ax.plot([scale * row.low, scale * row.high], [-place] * 2, color=color, linewidth=1.2)
        ax.plot(scale * row.mean, -place, "o", color=color, markerfacecolor=color if told else "white", markersize=4.5)
    ax.axvline(0, color=plots.INK, linewidth=0.8, linestyle=(0, (4, 2)))
    ax.set_yticks([-k for k in range(len(found))], [plots.label(name) for name in found.estimator])
    ax.set_ylim(-len(found) + 0.4, 0.6)
    ax.spines[["top", "right"]].set_visible(False)


def draw_errors(ax, found: pd.DataFrame) -> None:
    """Spread over seeds as dots and binomial error as short lines, in points, one line an estimator, the first on top.

    found: indexed by estimator, columns std and binomial (`stats.seeds_and_test_set`); NaN is left out.
    """
    for place, (name, row) in enumerate(found.iterrows()):
        color = plots.style(name)["color"]
        ax.plot([100 * row["binomial"]] * 2, [-place - 0.35, 0.35 - place], color=plots.INK, linewidth=1)
        ax.plot(100 * row["std"], -place, "o", color=color, markersize=3.5)
    ax.set_yticks([-k for k in range(len(found))], [plots.label(name) for name in found.index])
    ax.set_ylim(-len(found) + 0.4, 0.6)
    ax.spines[["top", "right"]].set_visible(False)
