"""From curves to words: is an estimator better than Random, than Sobel, than the base it wraps? And do rankings agree?

Every comparison is paired by seed (same initial weights, same order of images), takes one number per seed (the
difference in accuracy, mean over the percents that both have), borrows from the other estimators how far such numbers
spread (`roarlib.answers.spreads`), and is corrected for the number of estimators compared. It asks two questions: is
there a difference, and is it smaller than a margin? `corrected` accounts for both.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from roarlib.answers import spreads, stats
from roarlib.study.names import MODES, UNITS, in_orders, keeps, label, mixed_share, parent_of, split_name

LEVEL = 0.05  # chance of any false finding among all estimators of one comparison
MARGIN = 0.01  # of accuracy: smaller differences count as equal; a study's own is its `margin`, in points
# open: the data neither tell the estimator apart from its reference nor show that they are equal within the margin
BETTER, WORSE, EQUAL, OPEN, FEW = "better", "worse", "equal", "open", "too few seeds"
VOID = "nothing learnt"  # clean accuracy is no better than guessing
COLUMNS = "estimator reference n mean std low high effect p p_equal degrees p_holm p_equal_holm verdict margin".split()


def verdicts(
    table: pd.DataFrame, unit: str, mode: str, reference: str = "random", margin: float = MARGIN, level: float = LEVEL
) -> pd.DataFrame:
    """One row per estimator: its difference from the reference, tested, and a verdict of one word.

    table: one study's tidy table. reference: an estimator, or `base` for what each is made from (the base an ensemble
    wraps, the estimator that a variant varies). margin: the difference in accuracy (0..1) below which two are equal.
    level: chance of any false verdict among all rows. Columns: estimator, reference, n (seeds), mean, std, low, high
    (difference in accuracy, -1..1, mean over percents; its standard deviation over seeds, its 95 percent interval),
    effect (Hedges' g of the paired differences), p, p_equal and degrees (`spreads.tested`), p_holm and p_equal_holm
    (`corrected` for all rows), verdict (`words`), margin. Lower accuracy is better in the modes that remove, higher in
    those that keep. Sorted, best first.
    """
    rows = stats.complete(_retrained(table, unit, mode))
    pairs = {name: parent_of(name) if reference == "base" else reference for name in rows.estimator.unique()}
    compared = [pair for pair in pairs.items() if pair[1] != pair[0] and pair[1] in pairs]
    values = {pair: stats.differences(rows, *pair) for pair in compared}
    found, shared = [], spreads.of_study(pd.concat(values, axis=1).to_numpy().T) if values else []
    for ((estimator, against), by_seed), others in zip(values.items(), shared, strict=True):
        tested = spreads.tested(by_seed, margin, others) | {"effect": hedges_g(by_seed)}
        found.append({"estimator": estimator, "reference": against, **tested})
    out = pd.DataFrame(found, columns=COLUMNS).assign(margin=margin)
    out["p_holm"], out["p_equal_holm"] = corrected(*out[["p", "p_equal"]].to_numpy(dtype=float).T)
    good = out["mean"] > 0 if keeps(mode) else out["mean"] < 0
    word = words(good, out["p_holm"], out["p_equal_holm"], level)
    spent = {name: exhausted(table, unit, mode, name, margin) for name in out.reference.unique()}
    word = np.where((word == EQUAL) & out.reference.map(spent).astype(bool), OPEN, word)
    out["verdict"] = VOID if stats.nothing_learnt(table) else np.where(out["p"].isna(), FEW, word)
    return out.sort_values("mean", ascending=not keeps(mode), ignore_index=True)


def percents(table: pd.DataFrame, unit: str, mode: str) -> list[int]:
    """The percents that verdicts cover: those that most estimators have. One that lacks any of them gets no verdict."""
    return sorted(stats.complete(_retrained(table, unit, mode)).percent.unique())


def exhausted(table: pd.DataFrame, unit: str, mode: str, reference: str = "random", margin: float = MARGIN) -> bool:
    """Whether the reference has at most `margin` left to lose (in modes that keep: to gain): nothing can be better."""
    rows = stats.complete(_retrained(table, unit, mode))
    own = rows[rows.estimator == reference].accuracy.mean()
    clean = table[(table.measure == "retrain") & (table.estimator == "clean")].accuracy.mean()
    if np.isnan(own) or "n_classes" not in table or table["n_classes"].isna().all():
        return False
    return bool((clean - own if keeps(mode) else own - stats.floor(table)) <= margin)


def corrected(p, p_equal) -> tuple[np.ndarray, np.ndarray]:
    """Corrected p values (.., m) of m estimators: of a difference by Holm's method, of equality times 2 m.

    Equality counts only for estimators without a difference (`words`): at most one statement about each can be false.
    So, if single p values are valid, the chance of any false verdict is at most the level for differences plus half of
    it for equality. In simulations of all sorts of truths both together stay at the level, as false differences get
    rarer where there are other estimators to be found equal (tests, LOG.md).
    """
    p_equal = np.asarray(p_equal, dtype=float)
    return holm(p), np.minimum(1, 2 * np.sum(~np.isnan(p_equal), axis=-1, keepdims=True) * p_equal)


def words(good, p_holm, p_equal_holm, level: float = LEVEL) -> np.ndarray:
    """BETTER, WORSE, EQUAL or OPEN for each estimator. good: whether its mean lies on the better side.

    A significant difference takes precedence, even if it is also smaller than the margin.
    """
    told = np.asarray(p_holm) < level
    return np.select([told & good, told, np.asarray(p_equal_holm) < level], [BETTER, WORSE, EQUAL], OPEN)


def _retrained(table: pd.DataFrame, unit: str, mode: str) -> pd.DataFrame:
    stats.one_study(table)
    judged = table[(table.measure == "retrain") & (table.unit == unit) & (table["mode"] == mode)]
    return judged[~judged.estimator.isin(filter(mixed_share, judged.estimator.unique()))]  # mixed ones judge the metric


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
    """p values (.., m) corrected for m tests: the k-th smallest times m - k + 1, made monotone, at most 1; NaN stays.

    Keeps the chance of any false finding at the level. Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1)  # NaN last
    left = np.sum(~np.isnan(p), axis=-1, keepdims=True) - np.arange(p.shape[-1])
    rising = np.maximum.accumulate(np.take_along_axis(p, order, -1) * left, axis=-1)
    out = np.empty_like(p)
    np.put_along_axis(out, order, np.minimum(1, rising), -1)
    return out


def power(difference: float, std: float, n: int, level: float = LEVEL, among: int = 1) -> float:
    """Chance that a two-sided paired test at `level` on n seeds detects a true difference, given the differences' std.

    1 - F(t) + F(-t) of the noncentral t distribution with noncentrality sqrt(n) difference / std, and the degrees of
    freedom that a study of `among` estimators gives (`spreads.expected`): n - 1 for one alone.
    Source: scipy.stats.nct; Cohen, Statistical Power Analysis (1988).
    """
    if n < 2 or not np.isfinite(std):
        return 0.0 if n < 2 else np.nan
    if std == 0:  # nothing varies: any difference is seen
        return 1.0 if difference else level
    degrees = spreads.expected(n, among)
    edge, shift = scipy_stats.t.ppf(1 - level / 2, degrees), np.sqrt(n) * abs(difference) / std
    tails = scipy_stats.nct.sf(edge, degrees, shift), scipy_stats.nct.cdf(-edge, degrees, shift)
    return float(np.nan_to_num(tails[0], nan=1.0) + np.nan_to_num(tails[1]))  # SciPy gives NaN far out


def seeds_needed(difference: float, std: float, among: int = 1, level: float | None = None) -> int:
    """Fewest seeds that detect a difference, with `among` estimators, with a chance of 0.8; 200 means 200 or more.

    std: of the paired differences. level: None for that of Holm's strictest step, LEVEL / among.
    """
    level = LEVEL / among if level is None else level
    return next((n for n in range(2, 200) if power(difference, std, n, level, among) >= 0.8), 200)


def spread_of_differences(table: pd.DataFrame, unit: str, mode: str) -> float:
    """Typical standard deviation over seeds of the differences from Random: root mean square over estimators."""
    rows = stats.complete(_retrained(table, unit, mode))
    names = set(rows.estimator) - {"random", "clean"}
    variances = [d.var(ddof=1) for name in names if len(d := stats.differences(rows, name, "random")) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else np.nan


def advice(table: pd.DataFrame, unit: str, mode: str, found: pd.DataFrame) -> str:
    """How many seeds would decide open verdicts, in a sentence; empty if there are none. found: of `verdicts`."""
    spread = spread_of_differences(table, unit, mode)
    if not spread > 0 or not found.verdict.isin([OPEN, FEW]).any():
        return ""
    seeds = [seeds_needed(points / 100, spread, len(found)) for points in (5, 2)]
    more = ["200 seeds or more" if count == 200 else f"about {count} seeds" for count in seeds]
    apart = (found.verdict == OPEN) & ((found.low > 0) | (found.high < 0))
    head = "An interval that excludes 0 is not a verdict yet: with" if apart.any() else "With"
    return (
        f"{head} {len(found)} estimators and the spread seen here, "
        f"detecting a true difference of 5 points takes {more[0]}, one of 2 points {more[1]}."
    )


def kendall_w(scores: pd.DataFrame) -> dict:
    """Agreement of several orders of the same things: m, n, W in 0..1 and its p value; NaN for m < 2 or n < 3.

    scores: judges (rows, m) by things (columns, n); only complete columns count. W = chi^2 / (m (n - 1)), chi^2 with n
    - 1 degrees of freedom, corrected for ties. Source: Kendall and Babington Smith, Annals of Mathematical Statistics
    10 (1939); scipy.stats.friedmanchisquare.
    """
    whole = scores.dropna(axis=1)
    m, n = whole.shape
    if m < 2 or n < 3 or (whole.nunique(axis=1) == 1).all():  # too few, or all tied
        return dict(m=m, n=n, w=np.nan, p=np.nan)
    found = scipy_stats.friedmanchisquare(*whole.to_numpy(dtype=float).T)
    return dict(m=m, n=n, w=float(found.statistic) / (m * (n - 1)), p=float(found.pvalue))


def agreement(table: pd.DataFrame, unit: str, mode: str) -> pd.DataFrame:
    """Kendall's W of the orders of estimators by seed, by percent, by unit and by mode, a row each: over, m, n, w, p.

    Seeds and percents within this unit and mode; units within this mode; modes within this unit, where W means that
    the same estimators are good in both (`stats.goodness`). m: judges, n: estimators, those `in_orders`. W is NaN with
    one judge.
    """
    rows = stats.even(_retrained(table, unit, mode))
    rows = rows[rows.estimator.isin(filter(in_orders, _wide(rows).dropna().index))]
    out = []
    for what in ("seed", "percent"):
        scores = rows.pivot_table(index=what, columns="estimator", values="accuracy")
        out.append({"over": f"{what}s", **kendall_w(scores)})
    sides = _sides(table)
    for what, judges in (("units", [s for s in sides if s[1] == mode]), ("modes", [s for s in sides if s[0] == unit])):
        out.append({"over": what, **kendall_w(_orders(table, judges))})
    return pd.DataFrame(out)


def agreement_within(table: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau between the orders of estimators of every two units and modes of a study: see `stats.pairwise`."""
    pairs = [stats.pairwise(_orders(table, pair)) for pair in combinations(_sides(table), 2)]
    found = pd.concat(pairs) if pairs else stats.pairwise(pd.DataFrame())
    return found[["one", "other", "n", "tau", "tau_low", "tau_high"]].reset_index(drop=True)


def _sides(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Every unit and mode that judges estimators; `mask` does not, as what a mask alone tells is a leak."""
    stats.one_study(table)
    judging = table[(table.measure == "retrain") & (table["mode"] != "mask")]
    there = set(judging[["unit", "mode"]].itertuples(index=False, name=None))
    return [(unit, mode) for unit in UNITS for mode in MODES if (unit, mode) in there]


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot_table(index="estimator", columns=["seed", "percent"], values="accuracy")


def _orders(table: pd.DataFrame, sides) -> pd.DataFrame:
    """`stats.goodness` of estimators (columns) on each side (rows), pairs of unit and mode; NaN: not measured.

    Of those `in_orders`. Sides of one mode are taken over the percents that all of them have; percents of different
    modes do not compare.
    """
    rows = {side: stats.even(_retrained(table, *side)) for side in sides}
    if len({mode for _, mode in sides}) == 1:
        shared = set.intersection(*(set(part.percent) for part in rows.values()))
        rows = {side: part[part.percent.isin(shared)] for side, part in rows.items()}
    found = {f"{UNITS[u]} {MODES[m]}": stats.goodness(_wide(part), m) for (u, m), part in rows.items()}
    return pd.DataFrame({side: good[[*filter(in_orders, good.index)]] for side, good in found.items()}).T


def grouped(found: pd.DataFrame, level: float = LEVEL) -> tuple[str, list[tuple[str, str, str]]]:
    """What the verdicts rest on, in half a sentence, and for each verdict given: its word, a phrase, its estimators.

    found, level: of `verdicts`.
    """
    if found.empty:
        return "No estimator shares its seeds with the reference: nothing can be said", []
    name = label(found.reference.iloc[0]) if found.reference.nunique() == 1 else "what it is made from"
    margin = points(found.margin.iloc[0])
    heads = {
        BETTER: f"better than {name}",
        WORSE: f"worse than {name}",
        EQUAL: f"equal to {name} within {margin}",
        OPEN: f"open, that is, neither told apart from {name} nor shown to be equal within {margin}",
        FEW: f"too few seeds paired with {name}, or no spread over them, to say anything",
        VOID: "no verdict, as the models have learnt nothing",
    }

    def names(word: str) -> str:
        """The labels of estimators with this verdict; blurred Random, a yardstick, only if there are no others."""
        there = list(found[found.verdict == word].estimator)
        return ", ".join(map(label, [n for n in there if split_name(n)[0] != "random"] or there))

    groups = [(word, head, names(word)) for word, head in heads.items()]
    n = found.n.min() if found.n.min() == found.n.max() else f"{found.n.min()} to {found.n.max()}"
    seeds = "1 seed" if found.n.max() == 1 else f"{n} seeds"
    return f"With {seeds} and a {level:.0%} chance of any false finding", [group for group in groups if group[2]]


def cells(found: pd.DataFrame) -> pd.Series:
    """For each row of `verdicts`: '-9.5 [-11.8, -7.2] better', in points, without what is undefined (few seeds)."""

    def cell(row: pd.Series) -> str:
        mean, low, high = (f"{round(100 * row[key], 1) + 0.0:+.1f}" for key in ("mean", "low", "high"))  # never -0.0
        parts = {mean: row["mean"], f"[{low}, {high}]": row.low, row.verdict: 0}
        return " ".join(part for part, value in parts.items() if not np.isnan(value))

    return found.apply(cell, axis=1) if len(found) else pd.Series(dtype=str)


def points(share: float) -> str:
    """A share of accuracy as points: 0.01 -> '1 point', 0.005 -> '0.5 points'."""
    return f"{100 * share:g} point" + "s" * (f"{100 * share:g}" != "1")


def beside_blurred(table: pd.DataFrame, unit: str, mode: str, margin: float = MARGIN) -> str:
    """A sentence on blurred estimators beside blurred Random, at the percents of `verdicts`; empty without both."""
    judged = table.estimator.str.endswith("-blur") & table.percent.isin(percents(table, unit, mode))
    blurred = table[judged | (table.estimator == "clean")]
    found = verdicts(blurred, unit, mode, "random-blur", margin)
    said = "Blurred estimators against blurred Random, so that holes are equally solid. "
    return "" if found.empty else said + in_words(found)


def in_words(found: pd.DataFrame) -> str:
    """The verdicts as a sentence to quote. found: of `verdicts`."""
    said, groups = grouped(found)
    return f"{said}{': ' * bool(groups)}{'; '.join(f'{head}: {names}' for _, head, names in groups)}."
