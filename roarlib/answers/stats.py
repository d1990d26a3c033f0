"""Numbers from the tidy table: means with intervals, the shared clean point, area to Random, differences by seed.

Most functions take one study's table (one row per measurement, accuracy 0..1) and return a new table.
Intervals are Student's t over seeds: mean +- t(0.975, n - 1) s / sqrt(n), NaN where n is 1.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import integrate
from scipy import stats as scipy_stats

from roarlib.study.names import FIXED, keeps

CURVE = ["measure", "estimator", "unit", "mode"]  # the columns that name one curve
SPREAD = ["n", "mean", "std", "low", "high"]
LEVEL = 0.95  # of every interval


def floor(table: pd.DataFrame) -> float:
    """The accuracy (0..1) of guessing: chance, or the largest class's share of the test set if that is more."""
    known = table["floor"].max() if "floor" in table else np.nan
    return float(np.fmax(1 / table["n_classes"].max(), known))


def nothing_learnt(table: pd.DataFrame) -> bool:
    """Whether models retrained on untouched images are on average no better than guessing."""
    clean = table[(table["measure"] == "retrain") & (table["estimator"] == "clean")]
    return "n_classes" in table and len(clean) > 0 and bool(clean["accuracy"].mean() <= floor(table) + 1e-9)


def reach(table: pd.DataFrame) -> str:
    """Whether intervals over seeds cover the choice of the network explained, according to the rows: a phrase."""
    retrained = table[table["measure"] == "retrain"].reindex(columns=["estimator", "base_seed", "network"])
    explaining = retrained[~retrained["estimator"].isin(["clean", *FIXED])]
    if (explaining.groupby("base_seed")["network"].nunique() > 1).any():
        return "rows rest on two base models where one was meant (it was trained anew elsewhere): intervals mix them"
    if retrained["base_seed"].nunique() < 2:
        return "one base model: intervals hold for this network only"
    return "each seed with a base model of its own: intervals cover the choice of the network"


def t_halfwidth(std, n):
    """Half the width of the 95 percent t interval of a mean of n values with this std (ddof 1); NaN where n < 2."""
    return scipy_stats.t.ppf((1 + LEVEL) / 2, n - 1) * std / np.sqrt(n)  # without degrees of freedom NaN


def spread(values) -> dict:
    """n, mean, std (ddof 1), low and high (95 percent t interval) of values (n,); NaN where undefined."""
    values = pd.Series(values, dtype=float)
    n, mean, std = len(values), values.mean(), values.std()
    half = float(t_halfwidth(std, n))
    return dict(n=n, mean=mean, std=std, low=mean - half, high=mean + half)


def one_study(table: pd.DataFrame) -> None:
    """Raise ValueError where studies are mixed: their seeds are not repeats of one another."""
    names = sorted(table["study"].dropna().unique()) if "study" in table else []
    if len(names) > 1:
        raise ValueError(f"the table mixes the studies {', '.join(names)}: keep one of them")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over seeds, one row per measure, estimator, unit, mode and percent.

    Columns: those five, then n, mean, std (ddof 1), low, high (95 percent t interval); accuracies 0..1,
    std, low and high NaN where n is 1. Rows without a point (clean, base) stay as they are: see `with_clean`.
    """
    one_study(table)
    groups = table.groupby([*CURVE, "percent"], sort=True)["accuracy"]
    out = groups.agg(n="count", mean="mean", std="std").reset_index()
    half = t_halfwidth(out["std"], out["n"])
    return out.assign(low=out["mean"] - half, high=out["mean"] + half)


def with_clean(table: pd.DataFrame) -> pd.DataFrame:
    """The curves of a table, each with its untouched end: rows of retrain and deletion, in curve order.

    Retrained curves get the shared `clean` rows (one per seed), deletion curves the `base` row, at percent 0
    in the modes that remove and at 100 in those that keep: nothing is removed there. A mask alone has no such end.
    The clean and base rows themselves are left out; a curve whose clean rows are missing stays without.
    """
    one_study(table)
    shared = (table["measure"] == "base") | (table["estimator"] == "clean")
    curves = table[~shared & table["measure"].isin(["retrain", "deletion"])]
    if curves.empty:
        return curves.copy()
    clean = table[shared].assign(measure=table.loc[shared, "measure"].replace("base", "deletion"))
    clean = clean.drop(columns=["estimator", "unit", "mode", "percent"])
    ends = curves.loc[curves["mode"] != "mask", CURVE].drop_duplicates().merge(clean, on="measure")
    ends["percent"] = np.where(ends["mode"].map(keeps).astype(bool), 100, 0)
    both = pd.concat([ends[table.columns], curves]) if len(ends) else curves
    both = both.drop_duplicates([*CURVE, "percent", "seed"], keep="last")  # a curve's own row wins
    return both.astype({"percent": int}).sort_values([*CURVE, "percent", "seed"], ignore_index=True)


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of one curve as a grid, seeds down, percents across; NaN where not measured.

    A seed run in float32 and in bfloat16 is two, as they are no pair.
    """
    if "precision" in rows:
        rows = rows.assign(seed=rows.seed.astype(str) + rows.precision.astype(object).fillna("").astype(str))
    return rows.pivot(index="seed", columns="percent", values="accuracy")


def complete(rows: pd.DataFrame, what: str = "percent") -> pd.DataFrame:
    """The rows at the percents that half of the estimators have at least, of those that have all of these.

    rows: of one measure, unit and mode. what: `percent`, or `seed` for the seeds. Means over percents compare only over
    the same ones; those that Random lacks, if it is there, compare nothing.
    """
    each = rows.groupby("estimator")[what].agg(frozenset)
    if each.empty:
        return rows
    each = each.map(each.get("random", frozenset(rows[what])).intersection)
    votes = each.drop("random", errors="ignore") if len(each) > 1 else each
    have = {some: sum(map(some.issubset, votes)) for some in votes}  # the most that half of them have
    usual = max(have, key=lambda some: (min(2 * have[some], len(votes)), len(some), sorted(some)))
    return rows[rows[what].isin(usual) & rows.estimator.isin(each.index[each.map(usual.issubset)])]


def even(rows: pd.DataFrame) -> pd.DataFrame:
    """`complete` in percents and in seeds, of which `seeds: auto` gives more to some."""
    return complete(complete(rows), "seed")


def area_to_random(table: pd.DataFrame, chance: float, measure: str = "retrain") -> pd.DataFrame:
    """How far each curve lies from Random towards the ideal, one row per estimator, unit and mode.

    For each seed, with A(t) the estimator's and R(t) Random's accuracy and trapezoids over t,

        area = integral (R - A) dt / integral (R - I) dt,    I(t) = chance (remove..) or clean accuracy (keep..)

    1: the ideal at once (accuracy at chance, or, in mode keep, never below clean); 0: like Random;
    negative: worse than Random. The curves share their clean end, so 1 is approached and not reached in
    mode remove. chance: 1 / number of classes. Columns: estimator, unit, mode, n, mean, std, low, high
    (95 percent t interval over seeds), of the `complete` curves alone, as areas compare only over the same percents.
    A seed counts where both curves have their clean point and every percent, clean accuracy is above chance, and
    Random is on the whole short of the ideal; where none does, n is 0 and the rest NaN. Distrust areas where Random
    is close to the ideal: both integrals are noise then.
    Source: the paper's reading of its Figure 4 as one number; normalised as a skill score.
    """
    points = with_clean(table)
    points = points[points["measure"] == measure]
    rows = []
    for (unit, mode), curves in points.groupby(["unit", "mode"]):
        grids = {name: by_seed(curve) for name, curve in complete(curves).groupby("estimator")}
        for name, grid in grids.items():
            areas = seed_areas(grid, grids.get("random", pd.DataFrame()), mode, chance)
            rows.append(dict(estimator=name, unit=unit, mode=mode, **spread(areas)))
    return pd.DataFrame(rows, columns=["estimator", "unit", "mode", *SPREAD])


def seed_areas(own: pd.DataFrame, random: pd.DataFrame, mode: str, chance: float) -> np.ndarray:
    """Normalised area of each seed complete in both grids (see `area_to_random`, `by_seed`) -> (seeds,)."""
    percents = own.columns.intersection(random.columns).sort_values()
    kept = keeps(mode)
    clean = 100 if kept else 0
    if clean not in percents or len(percents) < 2:
        return np.empty(0)
    own, random = own[percents].dropna(), random[percents].dropna()
    random = random[random[clean] > chance]  # else nothing was learnt, and nothing can be lost
    seeds = own.index.intersection(random.index)
    own, random = own.loc[seeds], random.loc[seeds]
    ideal = random[[clean]].to_numpy() if kept else chance  # (seeds, 1) or a number
    gained = integrate.trapezoid((random - own).to_numpy(), percents, axis=1)
    possible = integrate.trapezoid((random - ideal).to_numpy(), percents, axis=1)
    room = possible < 0 if kept else possible > 0
    return gained[room] / possible[room]


def differences(rows: pd.DataFrame, estimator: str, reference: str) -> pd.Series:
    """Accuracy of an estimator minus the reference's, mean over percents, for each seed complete in both, by seed.

    rows: of one measure, unit and mode.
    """
    own, other = (by_seed(rows[rows.estimator == name]) for name in (estimator, reference))
    percents = own.columns.intersection(other.columns)
    return (own[percents] - other[percents]).dropna().mean(axis=1) if len(percents) else pd.Series(dtype=float)


def goodness(wide: pd.DataFrame, mode: str) -> pd.Series:
    """How good each estimator is, larger is better: mean accuracy, times -1 in the modes that remove.

    wide: accuracies, estimators (rows) by points (columns: percents, or seeds and percents). Only estimators with every
    point count, so that means are over the same points.
    """
    return wide.dropna().mean(axis=1) * (1 if keeps(mode) else -1)


def pairwise(orders: pd.DataFrame) -> pd.DataFrame:
    """How far every two rows agree: one, other, n, rho and tau, each with its 95 percent interval.

    orders: rows (metrics, modes ..) by estimators, larger is better; NaN: not measured. See `spearman`, `kendall`.
    """
    rows = []
    for one, other in combinations(orders.index, 2):
        both = orders.loc[[one, other]].dropna(axis=1).to_numpy(dtype=float)
        tau = kendall(*both)
        tau = {"tau": tau["tau"], "tau_low": tau["low"], "tau_high": tau["high"]}
        rows.append({"one": one, "other": other, **spearman(*both), **tau})
    return pd.DataFrame(rows, columns=["one", "other", "n", "rho", "low", "high", "tau", "tau_low", "tau_high"])


def binomial_error(accuracy, n_test):
    """Standard error of an accuracy (0..1) measured on n_test images: sqrt(a (1 - a) / n_test).

    It says how one model's accuracy would vary over other test sets of that size. All seeds are scored on the same
    images, so their spread does not contain it and may be smaller. Numbers or arrays.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    return np.sqrt(accuracy * (1 - accuracy) / n_test)


def seeds_and_test_set(table: pd.DataFrame, unit: str, mode: str) -> pd.DataFrame:
    """Two errors of each retrained accuracy side by side, one row per estimator and percent.

    Columns: estimator, percent, n (seeds), mean (accuracy 0..1), std (over seeds, ddof 1; NaN for one seed),
    binomial (`binomial_error` of the mean on the test set's images).
    """
    rows = table[(table["measure"] == "retrain") & (table["unit"] == unit) & (table["mode"] == mode)]
    found = summary(rows)[["estimator", "percent", "n", "mean", "std"]]
    return found.assign(binomial=binomial_error(found["mean"], rows["n_test"].max()))


def spearman(one, other) -> dict:
    """Spearman's rank correlation of paired values (n,): n, rho, low, high (95 percent interval).

    Interval: tanh(artanh(rho) +- 1.96 sqrt((1 + rho^2 / 2) / (n - 3))), NaN where n < 4 or |rho| = 1.
    Source: scipy.stats.spearmanr; Bonett and Wright, Psychometrika 65 (2000), for the standard error.
    """
    n = len(one)
    rho = float(scipy_stats.spearmanr(one, other).statistic) if n > 2 else np.nan
    return dict(n=n, rho=rho) | _fisher(rho, (1 + rho**2 / 2) / (n - 3) if n > 3 else np.nan)


def kendall(one, other) -> dict:
    """Kendall's rank correlation of paired values (n,): n, tau (tau-b), low, high (95 percent interval), p (two-sided).

    Interval: tanh(artanh(tau) +- 1.96 sqrt(0.437 / (n - 4))), NaN where n < 5 or |tau| = 1; tau and p are NaN where
    n < 2 or all values of one side are equal.
    Source: scipy.stats.kendalltau; Fieller, Hartley and Pearson, Biometrika 44 (1957), for the standard error.
    """
    n = len(one)
    tau, p = map(float, scipy_stats.kendalltau(one, other)) if n > 1 else (np.nan, np.nan)
    return dict(n=n, tau=tau, p=p) | _fisher(tau, 0.437 / (n - 4) if n > 4 else np.nan)


def _fisher(r: float, variance: float) -> dict:
    """low and high, the 95 percent interval of a correlation whose artanh has this variance; NaN where |r| = 1."""
    if not abs(r) < 1 - 1e-12:
        return dict(low=np.nan, high=np.nan)
    half = scipy_stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    return dict(low=float(np.tanh(np.arctanh(r) - half)), high=float(np.tanh(np.arctanh(r) + half)))
