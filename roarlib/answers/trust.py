"""Can a study's ROAR be trusted? What other ways of asking say, estimator by estimator, and what each costs.

Everything here reads rows and rankings: masks alone (`mask`, Rong et al., ICML 2022), smoothed and unsigned variants
(Song et al., 2023; Cai et al., 2025), imputed holes (ROAD, Rong et al.), keep and retrain, the other unit, importance
recomputed (Madsen et al., 2022), random weights (Adebayo et al., 2018) and, where it is known, the truth.
"""

import numpy as np
import pandas as pd

from roarlib.answers import stats, verdicts
from roarlib.answers.verdicts import BETTER, EQUAL, MARGIN, OPEN, WORSE
from roarlib.study import rankings
from roarlib.study.names import DEPTHS, FIXED, imputes, keeps, mixed_share, variant_of
from roarlib.study.params import Study

METRICS = {  # name -> measure and mode of its rows
    "ROAR": ("retrain", "remove"),
    "KAR": ("retrain", "keep"),
    "ROAR, imputed": ("retrain", "remove-imputed"),
    "KAR, imputed": ("retrain", "keep-imputed"),
    "deletion": ("deletion", "remove"),
    "deletion, kept": ("deletion", "keep"),
    "ROAD, most relevant first": ("deletion", "remove-imputed"),
    "ROAD, least relevant first": ("deletion", "keep-imputed"),
}
CHECKS = ("keep", "imputed", "imputed, kept", "other unit", "without sign", "blurred", "recomputed")
MISSING = "–"
LEAK = 0.05  # a model that sees only masks shows a leak if its accuracy is above chance by more


def leak(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Accuracy of models that saw nothing but the removal masks: stats.summary's columns, and above_chance (0..1)."""
    rows = table[(table.measure == "retrain") & (table["mode"] == "mask") & (table.unit == unit)]
    found = stats.summary(rows)
    return found.assign(above_chance=found["mean"].astype(float) - stats.floor(table))


def scores(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """How good each metric finds each estimator, higher is better (`stats.goodness`): metrics (rows) by estimators.

    Metrics without rows are left out, as are mixed estimators, on whose order metrics agree too easily.
    """
    found = {}
    for name, (measure, mode) in METRICS.items():
        rows = table[(table.measure == measure) & (table["mode"] == mode) & (table.unit == unit)]
        wide = stats.complete(rows).pivot_table(index="estimator", columns="percent", values="accuracy")
        if len(good := stats.goodness(wide[~wide.index.map(mixed_share).astype(bool)], mode)):
            found[name] = good
    return pd.DataFrame(found).T


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """What each metric took: metric, rows, seconds in all, seconds per estimator, unit and percent (all seeds).

    rows: of results.known. Every metric needs the rankings on top, whose seconds are per estimator.
    """
    kinds = {of: name for name, of in METRICS.items()} | {("ranking", "all"): "rankings, for all"}
    named = rows.assign(metric=[kinds.get(of) for of in zip(rows.measure, rows["mode"], strict=True)])
    named["unit"] = named.unit.mask(named.measure == "ranking", "all")
    points = named.drop_duplicates(["metric", "estimator", "unit", "percent"]).metric.value_counts()
    found = named.groupby("metric").seconds.agg(rows="size", seconds="sum").reindex(list(kinds.values())).dropna()
    found["seconds a point"] = found.seconds / points
    return found.astype({"rows": int}).rename_axis("metric").reset_index()


def truth(study: Study, masks: np.ndarray, unit: str, percents, count: int = 500) -> pd.DataFrame:
    """Share of truly informative inputs among each estimator's top t: estimators by percents, 0..1, on test images.

    masks: bool (N, 1, H, W), True where a test image's inputs inform. Mean over `count` images, taken evenly,
    of the estimators that are ranked.
    """
    masks, found = masks[rankings.evenly(len(masks), count)], {}
    for name in rankings.ready(study, unit, "test"):
        ranking = rankings.sample(study, name, unit, count)
        true = np.broadcast_to(masks, ranking.shape)
        top = {percent: rankings.removed(ranking, percent) for percent in percents}
        found[name] = {percent: float((true & gone).sum() / max(gone.sum(), 1)) for percent, gone in top.items()}
    return pd.DataFrame(found).T.rename_axis(index="estimator", columns="percent")


def sanity(rows: pd.DataFrame, unit: str) -> pd.DataFrame:
    """How similar rankings remain as the model's weights become random, mean over base models.

    rows: of results.known. Columns: estimator, depth (percent of the layers that are random), percent (t of the
    overlap), rho (Spearman's, -1..1), overlap (0..1). Source: Adebayo et al. (2018).
    """
    rows = rows[(rows.measure == "sanity") & (rows.unit == unit)]
    found = rows.assign(depth=rows["mode"].map(DEPTHS)).groupby(["estimator", "depth", "percent"])
    return found[["rho", "overlap"]].mean().reset_index()


def survival(table: pd.DataFrame, unit: str, margin: float = MARGIN, claims=None) -> pd.DataFrame:
    """Whether each estimator's ROAR verdict survives: one row per estimator that is neither a control nor a variant.

    Columns: estimator; ROAR, the verdict against Random after Holm's correction (`claims`, or verdicts.verdicts); one
    word for each of CHECKS: better or worse than its reference if the 95 percent interval of the difference leaves out
    0, equal if it lies within the margin (of accuracy, 0..1), open if neither, – if not measured; leak, largest
    accuracy above chance of models that saw only its masks (0..1, NaN); survives, in words. The reference is Random
    under the same check, for a blurred estimator blurred Random. Checks are not corrected for their number: they are
    there to cast doubt. Imputed holes count as retrained or, where they were not, as ROAD scores them.
    """
    claims = verdicts.verdicts(table, unit, "remove", margin=margin) if claims is None else claims
    claims = claims.set_index("estimator").verdict
    leaks = leak(table, unit).groupby("estimator").above_chance.max()
    rows = []
    for name in claims.index:
        if variant_of(name) or name in FIXED:
            continue
        checks = {check: _word(*_difference(table, unit, name, check), margin) for check in CHECKS}
        row = {"estimator": name, "ROAR": claims[name], **checks, "leak": leaks.get(name, np.nan)}
        rows.append(row | {"survives": _said(claims[name], checks, row["leak"])})
    return pd.DataFrame(rows, columns=["estimator", "ROAR", *CHECKS, "leak", "survives"])


def _said(claim: str, checks: dict[str, str], leaked: float) -> str:
    if claim not in (BETTER, WORSE, EQUAL):
        return "nothing claimed"
    against = [check for check, word in checks.items() if word in (BETTER, WORSE) and word != claim]
    held = [check for check, word in checks.items() if word == claim]
    doubts = ([f"contradicted: {', '.join(against)}"] if against else []) + (
        ["its mask tells the class"] if claim in (WORSE, EQUAL) and leaked > LEAK else []
    )
    if doubts:
        return "; ".join(doubts)
    measured = sum(word != MISSING for word in checks.values())
    if not measured:
        return "unchecked"
    if held:
        return f"yes, confirmed by {len(held)} of {measured} check{'s' * (measured > 1)}"
    return f"neither confirmed nor contradicted by {measured} check{'s' * (measured > 1)}"


def _word(mean: float, low: float, high: float, margin: float) -> str:
    if np.isnan(mean):
        return MISSING
    return BETTER if low > 0 else WORSE if high < 0 else EQUAL if -margin < low and high < margin else OPEN


def _difference(table: pd.DataFrame, unit: str, name: str, check: str) -> tuple[float, float, float]:
    """How much better than its reference under a check: mean, low and high (95 percent); NaN where not measured."""
    other = next((u for u in ("value", "pixel") if u != unit), unit)
    own = {"without sign": f"{name}-abs", "blurred": f"{name}-blur", "recomputed": f"{name}-recursive"}.get(check, name)
    unit = other if check == "other unit" else unit
    mode = {"keep": "keep", "imputed": "remove-imputed", "imputed, kept": "keep-imputed"}.get(check, "remove")
    there = table[(table.unit == unit) & (table["mode"] == mode)]
    reference = "random-blur" if check == "blurred" else "random"
    by_seed = stats.differences(stats.complete(there[there.measure == "retrain"]), own, reference)
    scored = there[(there.measure == "deletion") & there["mode"].map(imputes).astype(bool)]  # ROAD
    if by_seed.empty and scored.seed.nunique() > 1:  # each seed with its own base model
        by_seed = stats.differences(scored, own, reference)
    sign = 1 if keeps(mode) else -1
    if by_seed.empty:
        return _scored(scored, own, reference, sign)
    found = stats.spread(sign * by_seed)
    return found["mean"], found["low"], found["high"]


def _scored(rows: pd.DataFrame, own: str, reference: str, sign: int) -> tuple[float, float, float]:
    """The difference of one model's scores, mean over percents, with the test set's binomial error.

    Computed as if unpaired, and with one common error at all percents, since the images are the same: rather too wide.
    """
    wide = rows.pivot_table(index="percent", columns="estimator", values="accuracy")
    if not {own, reference} <= set(wide.columns) or wide[[own, reference]].dropna().empty:
        return np.nan, np.nan, np.nan
    both = wide[[own, reference]].dropna()
    errors = stats.binomial_error(both, rows.n_test.max())
    half = 1.96 * float(np.sqrt((errors**2).sum(axis=1)).mean())
    mean = sign * float((both[own] - both[reference]).mean())
    return mean, mean - half, mean + half


def guards(table: pd.DataFrame) -> pd.DataFrame:
    """The conditions that make the comparison fair, as far as rows can show them: guard, holds, detail."""
    retrained = table[table.measure == "retrain"]
    points = retrained[retrained.estimator != "clean"].groupby(["unit", "mode", "percent", "estimator"]).seed
    seeds = points.agg(lambda values: tuple(sorted(values))).groupby(["unit", "mode", "percent"]).nunique()
    rows = [("same seeds for every estimator at a point", bool((seeds == 1).all()), f"{len(seeds)} points")]
    for column, said in (
        ("n_train", "all trained on the same number of images"),
        ("n_test", "all tested on the same number of images"),
        ("epochs", "all trained equally long, the last epoch judged"),
        ("precision", "all computed in one precision"),
        ("torch", "all computed with one version of torch"),
    ):
        values = sorted(str(value) for value in retrained[column].dropna().unique())
        rows.append((said, len(values) <= 1, ", ".join(values)))
    return pd.DataFrame(rows, columns=["guard", "holds", "detail"])
