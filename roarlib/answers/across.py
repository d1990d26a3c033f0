"""Several studies side by side: the same estimators' differences from Random, mean ranks, and how sure these are.

Studies are compared over what they share: one unit, one mode, the percents that all of them have. What that leaves out
is said. Ranks follow Demsar, Journal of Machine Learning Research 7 (2006): Friedman's test asks whether any estimator
ranks differently over the studies, Nemenyi's how far apart two mean ranks must be. Both assume independent studies.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from roarlib.answers import looks, stats, verdicts
from roarlib.study import params, results
from roarlib.study.names import MODES, UNITS, in_orders, keeps, label


class Compared(NamedTuple):
    """Studies over what they share. found: `verdicts` of each, with its name as `study`, over the shared percents.

    scores: studies by estimators, how much better than Random (accuracy, -1..1), NaN where not measured. left_out: what
    is not compared, in phrases. reach: `stats.reach` of each study. pairs: a study with one network and one with a
    network per seed that differ in nothing else (`networks`).
    """

    unit: str
    mode: str
    percents: list[int]
    found: pd.DataFrame
    scores: pd.DataFrame
    left_out: list[str]
    reach: dict[str, str]
    pairs: list[tuple[str, str]]


class Incomparable(LookupError):
    """Studies share nothing to be compared over; the message is one sentence."""


Part = tuple[pd.DataFrame, params.Study]


def load(studies) -> dict[str, Part]:
    """The table of each study and the study, by its name. studies: `Study` objects, or paths of YAML."""
    known = [study if isinstance(study, params.Study) else params.load(study) for study in studies]
    known = list({study.folder.resolve(): study for study in known}.values())
    for study in known:
        params.agree(study)  # else rows made by another YAML would count as this one's
    for study, other in combinations(known, 2):
        if study.name == other.name:
            places = f"{study.folder.resolve()} and {other.folder.resolve()}"
            raise params.InputError(f"two studies have the name {study.name}, {places}: compare one of them")
    return {study.name: (results.table(study), study) for study in known}


def compare(parts: dict[str, Part], unit: str = "", mode: str = "") -> Compared:
    """Compare the studies (of `load`) that have this unit and mode; if left empty, what most of them have.

    A study that has learnt nothing is left out. Incomparable where fewer than two do or where they share no percent.
    """
    void = [name for name, (table, _) in parts.items() if stats.nothing_learnt(table)]
    parts = {name: part for name, part in parts.items() if name not in void}
    left_out = [f"{name}, whose models have learnt nothing" for name in void]
    if len(parts) < 2:
        there = ", ".join([*parts, *left_out]) or "none"
        raise Incomparable(f"Comparing needs two studies with results; so far there is {there}.")
    sides = {name: _sides(table) for name, (table, _) in parts.items()}
    asked = [(u, m) for u in UNITS for m in MODES if unit in ("", u) and mode in ("", m)]
    side = max(asked, key=lambda s: sum(s in there for there in sides.values()), default=(unit, mode))
    here = [name for name in parts if side in sides[name]]
    if len(here) < 2:
        there = _have({name: map(said, of) for name, of in sides.items()})
        asked = " and ".join(filter(None, (unit, mode)))
        raise Incomparable(f"No two of the studies can be compared{asked and f' by {asked}'}: {there}.")
    percents = {name: sides[name][side] for name in here}
    usual = max(set.union(*percents.values()), key=lambda t: (sum(t in of for of in percents.values()), t))
    left_out += [f"{name}, which has no {said(side)} by Random" for name in parts if name not in here]
    left_out += [f"{name}, which has no t = {usual}" for name in here if usual not in percents[name]]
    here = [name for name in here if usual in percents[name]]
    if len(here) < 2:
        raise Incomparable(f"The studies share no percent of {said(side)}: {_have(percents)}.")
    shared = sorted(set.intersection(*(percents[name] for name in here)))
    rest = {name: ", ".join(map(str, sorted(percents[name] - {*shared}))) for name in here}
    left_out += [f"t = {t} of {', '.join(n for n in here if rest[n] == t)}" for t in sorted(set(rest.values())) if t]
    found = pd.concat([_verdicts(*parts[name], side, shared).assign(study=name) for name in here])
    wide = found.pivot(index="study", columns="estimator", values="mean").reindex(here)
    scores = wide if keeps(side[1]) else -wide
    reach = {name: stats.reach(parts[name][0]) for name in here}
    shortened = [n for n in here if parts[n][1].seeds == "auto" and {*shared} != {*parts[n][1].percents}]
    if shortened:
        left_out.append(
            f"the looks of {', '.join(shortened)}, which judged all percents: verdicts here are of a single test"
        )
    pairs = _differ_in_networks([parts[name] for name in here])
    return Compared(*side, shared, found, scores.assign(random=0.0), left_out, reach, pairs)


def said(side: tuple[str, str]) -> str:
    """A unit and a mode in words: 'whole pixels removed'."""
    return f"{UNITS[side[0]]} {MODES[side[1]]}"


def _have(values: dict) -> str:
    return "; ".join(f"{name} has {', '.join(map(str, sorted(there))) or 'nothing'}" for name, there in values.items())


def _sides(table: pd.DataFrame) -> dict[tuple[str, str], set[int]]:
    """The percents of every unit and mode in which Random was retrained; a mask alone judges no estimator."""
    rows = table[(table.measure == "retrain") & (table.estimator == "random") & (table["mode"] != "mask")]
    return {side: set(part.percent.astype(int)) for side, part in rows.groupby(["unit", "mode"])}


def _verdicts(table: pd.DataFrame, study: params.Study, side: tuple[str, str], percents: list[int]) -> pd.DataFrame:
    """Verdicts over these percents, of the estimators that have all of them; clean rows say if anything was learnt."""
    rows = table[table.percent.isin(percents)]
    whole = rows[(rows.measure == "retrain") & (rows.unit == side[0]) & (rows["mode"] == side[1])]
    whole = whole.groupby("estimator").percent.nunique() == len(percents)
    rows = table[table.estimator.eq("clean") | table.percent.isin(percents) & table.estimator.isin(whole.index[whole])]
    if study.seeds == "auto" and {*percents} == {*study.percents}:
        found = looks.judged(table, study, *side)
        return found[found.estimator.isin(rows.estimator)]
    return verdicts.verdicts(rows, *side, margin=study.margin / 100)


def _differ_in_networks(parts: list[Part]) -> list[tuple[str, str]]:
    """Names of studies that differ in `base_models` alone: the one with one network first, then that with several."""
    free = {"name", "base_models", "base_seed", *params.SELECTION, *params.MACHINE}
    alike = []
    for table, study in parts:
        made = table[table.measure == "retrain"].reindex(columns=["data", "source", "precision"]).drop_duplicates()
        alike.append((study, (study.model_dump(exclude=free), sorted(map(str, made.to_numpy().tolist())))))
    ones, others = ([(s, said) for s, said in alike if (s.base_models == "one") == one] for one in (True, False))
    return [(one.name, each.name) for one, said in ones for each, other in others if said == other]


def networks(compared: Compared) -> pd.DataFrame:
    """How far differences from Random spread over seeds (standard deviations, points), the network held fixed or not.

    For each pair of `Compared.pairs` and each estimator that both have with two seeds or more: one (retrainings of one
    network), several (each seed's own network), network (what the network adds, with the noise and Random's masks that
    are drawn anew for it: the root of several^2 - one^2, 0 where that is negative), n (seeds of both); and a row `all`,
    the root mean squares. A spread of 3 to 5 seeds is itself uncertain by a factor of 2 and more.
    """
    spreads, parts = 100 * compared.found.pivot(index="estimator", columns="study", values="std"), []
    for names in compared.pairs:
        squares = spreads[[*names]].dropna().pow(2).set_axis(["one", "several"], axis=1)
        if squares.empty:
            continue
        squares.loc["all"] = squares.mean()
        squares["network"] = (squares.several - squares.one).clip(lower=0)
        n = " and ".join(str(compared.found[compared.found["study"] == name].n.max()) for name in names)
        parts.append(squares.pow(0.5).reset_index().assign(n=n, studies=" and ".join(names)))
    return pd.concat(parts) if parts else pd.DataFrame(columns="estimator one several network n studies".split())


def ranks(scores: pd.DataFrame, level: float = verdicts.LEVEL) -> tuple[pd.Series, float]:
    """Mean rank of each estimator that every study has, best first (1: best everywhere), and the critical difference.

    Two mean ranks that far apart differ, at `level` for all pairs: q sqrt(k (k + 1) / (6 N)) of k estimators in N
    studies, q the studentized range of k at infinitely many degrees of freedom, over sqrt(2). NaN where k < 2.
    Source: Nemenyi (1963), as in Demsar (2006); scipy.stats.studentized_range.
    """
    whole = scores.dropna(axis=1)
    n, k = whole.shape
    q = scipy_stats.studentized_range.ppf(1 - level, k, np.inf) / np.sqrt(2) if k > 1 else np.nan
    means = whole.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    return means, float(q * np.sqrt(k * (k + 1) / (6 * n)))


def joined(means: pd.Series, critical: float) -> list[tuple[float, float]]:
    """The longest runs of mean ranks (sorted) that are less than the critical difference apart: first and last rank."""
    found = means.to_numpy()
    last = np.searchsorted(found, found + critical) - 1
    return [(found[i], found[end]) for i, end in enumerate(last) if end > i and (i == 0 or end > last[i - 1])]


def order(compared: Compared) -> list[str]:
    """The estimators: by mean rank, then those that not every study has, by their mean difference from Random."""
    ranked = ranks(compared.scores)[0].index
    return [*ranked, *compared.scores.mean().drop(ranked).sort_values(ascending=False).index]


def table(compared: Compared) -> pd.DataFrame:
    """Estimators by studies: difference from Random in points, [95 percent interval], verdict; and the mean rank."""
    found, (means, _) = compared.found, ranks(compared.scores)
    wide = found.assign(text=verdicts.cells(found)).pivot(index="estimator", columns="study", values="text")
    wide = wide.reindex(columns=compared.scores.index)
    wide.loc["random"] = "0"
    wide = wide.reindex(order(compared)).assign(**{"mean rank": means.map("{:.1f}".format)}).fillna("–")
    return wide.rename(index=label).rename_axis(index=None, columns=None)


def in_words(compared: Compared) -> list[str]:
    """What is compared and what is left out, whether ranks differ, and what the intervals cover: a sentence each."""
    means, critical = ranks(compared.scores)
    friedman, studies = verdicts.kendall_w(compared.scores), list(compared.scores.index)
    lines = [f"{len(studies)} studies, {said(compared[:2])}, t = {', '.join(map(str, compared.percents))}."]
    unranked = compared.scores.shape[1] - len(means)
    left = compared.left_out + [
        f"from the ranks, {unranked} estimator{'s' * (unranked > 1)} that not every study has"
    ] * bool(unranked)
    lines += [f"Left out: {'; '.join(left)}."] if left else []
    if len(means) > 2:
        lines.append(
            f"Friedman's test of {len(means)} estimators in {len(studies)} studies: p = {friedman['p']:.3f}, Kendall's "
            f"W = {friedman['w']:.2f}. Two mean ranks differ if they are {critical:.2f} or more apart (Nemenyi, 5%)"
            + (f"; no two can be, as ranks go from 1 to {len(means)}." if critical > len(means) - 1 else ".")
        )
    else:
        lines.append("No ranks: the studies share fewer than two estimators beside Random.")
    for phrase in dict.fromkeys(compared.reach.values()):
        lines.append(f"{', '.join(n for n, reach in compared.reach.items() if reach == phrase)}: {phrase}.")
    for row in networks(compared).query("estimator == 'all'").itertuples():
        lines.append(
            f"{row.studies} differ in base_models alone: differences from Random spread by {row.one:.2f} points over "
            f"retrainings of one network, by {row.several:.2f} with one network per seed (root mean squares; {row.n} "
            "seeds, which know a spread to a factor of about 2)."
        )
    return lines


def agreement(compared: Compared) -> pd.DataFrame:
    """Kendall's tau between the orders of every two studies, with its interval; of the estimators `in_orders`."""
    scores = compared.scores[[*filter(in_orders, compared.scores)]]
    return stats.pairwise(scores)[["one", "other", "n", "tau", "tau_low", "tau_high"]]


def text(compared: Compared) -> str:
    """The comparison as text for a terminal."""
    pairs = agreement(compared)
    return (
        "\n".join(in_words(compared))
        + "\n\nAccuracy minus Random's in points, [95 percent interval], verdict; and the mean rank\n"
        + table(compared).to_string()
        + "\n\nKendall's tau between the orders of the estimators that two studies share, without variants and Random\n"
        + pairs.to_string(index=False, float_format="{:.2f}".format, na_rep="–")
    )
