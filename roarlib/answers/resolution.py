"""Does a metric recover a known order, and how small a difference between estimators can it detect?

Nobody knows which estimator is best on photographs. But the more of an estimator's units are in random order (variants
`mix25` ..), the worse it must be, if it is any good itself. F-Fidelity (Zheng et al., ICLR 2025) also checks metrics by
degraded explanations. An estimator that is worse than chance gains from disorder, so it shows nothing here. Disorder
also scatters the holes; those of a reversed ranking at t are as clumped as the estimator's at 100 - t,
and it must be worse, too.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from roarlib.answers import stats, verdicts
from roarlib.answers.trust import METRICS
from roarlib.study.names import keeps, label, mixed_share, parent_of

REVERSED = 125  # place of the reversed estimator, which is compared only with the estimator
SEEN = 0.8  # chance of detecting a difference of the size of the resolution


def families(names) -> dict[str, dict[int, str]]:
    """Estimators with mixed variants -> place in the known order, best first -> name.

    The place is the percent mixed, 0 for the estimator itself.
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if mixed_share(name) and parent_of(name) in set(names):
            found.setdefault(parent_of(name), {0: parent_of(name)})[mixed_share(name)] = name
    for base, family in found.items():
        family |= {REVERSED: f"{base}-reversed"} if f"{base}-reversed" in set(names) else {}
    return {base: dict(sorted(family.items())) for base, family in found.items()}


def differences(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """How much worse each metric finds each mixed variant than the estimator itself, seed by seed, in points.

    Columns: base, metric (of METRICS), percent (t; 0: mean over all t), seed, mixed (the place in the known order),
    worse (points of accuracy, above 0 if the metric is right), error (binomial, of one accuracy on the test set).
    """
    found = [pd.DataFrame(columns=["base", "metric", "percent", "seed", "mixed", "worse", "error"])]
    for metric, (measure, mode) in METRICS.items():
        rows = table[(table.measure == measure) & (table["mode"] == mode) & (table.unit == unit)]
        wide = rows.pivot_table(index=["seed", "percent"], columns="estimator", values="accuracy")
        for base, family in families(wide.columns).items():
            own = wide[list(family.values())].set_axis(list(family), axis=1).rename_axis("mixed", axis=1).dropna()
            whole = own.unstack("percent").dropna().stack("percent", future_stack=True)  # seeds that have every t
            for percent, part in [*own.groupby("percent"), (0, whole)]:
                seeds = 100 * part.groupby("seed").mean()
                worse = seeds.rsub(seeds[0], axis=0) if keeps(mode) else seeds.sub(seeds[0], axis=0)
                named = dict(base=base, metric=metric, percent=percent)
                error = stats.binomial_error(seeds.mean().mean() / 100, rows.n_test.max())
                found.append(worse.stack().rename("worse").reset_index().assign(**named, error=100 * error))
    return pd.concat(found[1:] or found, ignore_index=True)


def resolution(found: pd.DataFrame) -> pd.DataFrame:
    """What each metric makes of a known order, one row per base, metric and percent (0: mean over all t).

    found: of `differences`. Columns: those three; n (seeds); right, pairs (pairs of estimators in the known order,
    and all pairs: every two degrees of disorder, the estimator and its reverse); slope, low, high (points lost per 25
    percent mixed, above 0 if the metric is right, with its 95 percent interval; the reversed one aside); points, mixed
    (the resolution: the smallest difference from the estimator that is detected with chance SEEN, and the percent mixed
    that costs as much; NaN where the slope may be 0 or it is above 100). With one model, which has no spread over
    seeds, the error is that of the test set, as if accuracies were independent.
    """
    rows = []
    for (base, metric, percent), part in found.groupby(["base", "metric", "percent"], sort=False):
        named = dict(base=base, metric=metric, percent=percent)
        rows.append(named | _judged(part.pivot(index="seed", columns="mixed", values="worse"), part.error.iloc[0]))
    columns = ["base", "metric", "percent", "n", "right", "pairs", "slope", "low", "high", "points", "mixed"]
    return pd.DataFrame(rows, columns=columns)


def _judged(worse: pd.DataFrame, error: float) -> dict:
    """worse: points by seed and place. error: of one accuracy, in points."""
    graded = worse[[place for place in worse if place != REVERSED]]
    pairs = list(combinations(graded.mean(), 2)) + [(0, mean) for mean in worse.mean().get([REVERSED], [])]
    steps, n = np.array(graded.columns) / 25, len(worse)
    slopes = np.polyfit(steps, graded.T, 1)[0]  # of each seed
    if n > 1:
        slope = stats.spread(slopes)
        points = float(np.sqrt(graded.drop(columns=0).var().mean())) * smallest_seen(n)
    else:
        half = 1.96 * error / np.sqrt(((steps - steps.mean()) ** 2).sum())
        slope = dict(mean=slopes[0], low=slopes[0] - half, high=slopes[0] + half)
        points = (1.96 + 0.84) * np.sqrt(2) * error
    told = {"slope": slope["mean"], "low": slope["low"], "high": slope["high"], "points": points}
    mixed = 25 * points / slope["mean"] if slope["low"] > 0 else np.inf
    known = {"mixed": mixed if mixed <= 100 else np.nan}  # there is no more disorder than that
    return dict(n=n, right=sum(a < b for a, b in pairs), pairs=len(pairs)) | told | known


def interval(values) -> tuple[float, float]:
    """The 95 percent t interval of the mean of one point's seeds, for seaborn."""
    found = stats.spread(values)
    return found["low"], found["high"]


def smallest_seen(n: int) -> float:
    """The smallest true difference, in standard deviations, that n seeds detect with chance SEEN (`verdicts.power`)."""
    return brentq(lambda difference: verdicts.power(difference, 1.0, n) - SEEN, 1e-3, 1e3)


def in_words(row) -> str:
    """Whether an order came out right: yes, or how many of its pairs did. row: of `resolution`."""
    return "yes" if row.right == row.pairs else f"{row.right} of {row.pairs} pairs"


def warning(table: pd.DataFrame, unit: str, mode: str) -> str:
    """A sentence if retrainings in this mode do not recover a known order; empty if they do, or there is none."""
    metric = next((name for name, judged in METRICS.items() if judged == ("retrain", mode)), "")
    found = resolution(differences(table, unit)).query("metric == @metric and percent == 0")
    wrong = found[found.right < found.pairs]
    if wrong.empty:
        return ""
    told = ", ".join(f"{label(row.base)} ({in_words(row)} right)" for row in wrong.itertuples())
    blind = wrong[~(wrong.low > 0)].base.map(label)
    said = f"{metric} does not rank estimators above their own copies in growing disorder, as it must: {told}."
    if blind.empty:
        return f"{said} It sees the disorder as a whole, but not every step of it."
    good = f"If {' or '.join(blind)} is any better than chance"
    return f"{said} {good}, the metric is blind here and says nothing about real estimators."
