"""Seeds where they are needed: `seeds: auto` looks at a study after 3, 5, 8, 12 .. seeds; only open verdicts get more.

An estimator that a look has decided (better, worse or equal) gets no more seeds and keeps its verdict. Every look has
its own part of the level, with Holm's correction within it, so that the chance of any false verdict, over all
estimators and looks, stays at the level however looks depend on each other, if single tests keep theirs. Looks judge
the study's first unit and mode. All is a function of rows and study, so that all who run a study plan the same.
`hours` decide whether seeds are added, never whether a look counts.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from roarlib.answers import verdicts
from roarlib.answers.verdicts import BETTER, EQUAL, LEVEL, OPEN, WORSE
from roarlib.study.names import label, mixed_share
from roarlib.study.params import Study
from roarlib.study.results import listed

TOLD = (BETTER, WORSE, EQUAL)


@dataclass(frozen=True)
class Look:
    """What a study says after `seeds` seeds.

    told: estimator -> its verdict and the seeds of the look that gave it. still: the estimators that are open. hours:
    of work so far. then: the seeds of the next look; 0: this is the last one.
    """

    seeds: int
    told: dict[str, tuple[str, int]]
    still: tuple[str, ...]
    hours: float
    then: int

    def __str__(self) -> str:
        words = [word for word, _ in self.told.values()]
        counts = ", ".join(f"{words.count(word)} {word}" for word in TOLD)
        used = f"{60 * self.hours:.0f} min" if self.hours < 2 else f"{self.hours:.1f} h"
        return f"after {self.seeds} seeds: {counts}, {len(self.still)} open; {used} used"


def counts(most: int) -> list[int]:
    """The numbers of seeds to look at: 3, then half as many again each time, up to `most`."""
    found = [3]
    while found[-1] < most:
        found.append(min(most, -(-3 * found[-1] // 2)))
    return found


def levels(most: int) -> np.ndarray:
    """The part of LEVEL that each look has for itself: LEVEL t^2 is spent once a share t of the seeds is used.

    They sum to LEVEL: Bonferroni over the looks, which assumes nothing about how their t tests depend on each other and
    costs little at levels as small as those of single tests here. Source: Kim and DeMets, Biometrika 74 (1987).
    """
    return LEVEL * np.diff([0, *np.square(counts(most)) / most**2])


def made(table: pd.DataFrame, study: Study) -> list[Look]:
    """The looks whose rows are all there, in order. table: `results.known` of the study."""
    found, told, still, over, table = [], {}, _asked(study), False, listed(table, study)
    steps = counts(study.seeds_max)
    for count, following, level in zip(steps, [*steps[1:], 0], levels(study.seeds_max), strict=True):
        rows = table[(table.measure != "retrain") | table.seed.lt(count)]
        # beyond `hours` nobody waits for an estimator that lacks seeds
        asked = tuple(name for name in still if not over or _whole(rows, study, (name,), count))
        if not asked or not _whole(rows, study, asked, count):
            break
        tested = verdicts.verdicts(rows, study.units[0], study.modes[0], margin=study.margin / 100, level=float(level))
        words = dict(zip(tested.estimator, tested.verdict, strict=True))
        new = {name: words[name] for name in asked if words.get(name) in TOLD}
        told = told | {name: (word, count) for name, word in new.items()}
        still = tuple(name for name in still if name not in new)
        hours, more = _hours(rows, still, (following - count) / count)
        over = bool(study.hours) and hours + more > study.hours
        found.append(Look(count, told, still, hours, following if still and not over else 0))
    return found


def _asked(study: Study) -> tuple[str, ...]:
    """The estimators that looks judge: mixed ones judge the metric, and get the seeds that Random has."""
    return tuple(name for name in study.estimators if name != "random" and not mixed_share(name))


def waits(table: pd.DataFrame, study: Study) -> str:
    """A sentence on the estimators for which the first look waits, so that none has a verdict yet; else empty."""
    if study.seeds != "auto" or made(table, study):
        return ""
    first = counts(study.seeds_max)[0]
    late = [label(name) for name in _asked(study) if not _whole(table, study, (name,), first)]
    return f"No verdict yet: the first look waits for {first} seeds of {', '.join(late)}." if late else ""


def _whole(rows: pd.DataFrame, study: Study, names: tuple[str, ...], count: int) -> bool:
    """Whether these estimators and Random have all of their points with all seeds below `count`."""
    points = [(study.units[0], study.modes[0], percent) for percent in study.percents if percent]
    wanted = {(name, *point, seed) for name in (*names, "random") for point in points for seed in range(count)}
    retrained = rows[rows.measure == "retrain"][["estimator", "unit", "mode", "percent", "seed"]]
    return wanted <= set(retrained.itertuples(index=False, name=None))


def _hours(rows: pd.DataFrame, still: tuple[str, ...], share: float) -> tuple[float, float]:
    """Hours in these rows, and those to come if open estimators, Random and clean get `share` times as many seeds."""
    seconds = rows[rows.measure == "retrain"].groupby("estimator").seconds.sum()
    more = seconds[seconds.index.isin([*still, "random", "clean"])].sum() * share
    return float(rows.seconds.sum()) / 3600, float(more) / 3600


def plan(looks: list[Look], study: Study) -> dict[str, range]:
    """The seeds that each estimator and `clean` should have by the next look; a decided one those of its own look."""
    upto = (looks[-1].then or looks[-1].seeds) if looks else counts(study.seeds_max)[0]
    told = looks[-1].told if looks else {}
    return {name: range(told[name][1] if name in told else upto) for name in ["clean", *study.estimators]}


def judged(table: pd.DataFrame, study: Study, unit: str, mode: str) -> pd.DataFrame:
    """`verdicts.verdicts` against Random; with `seeds: auto`, the looks' verdicts in the unit and mode that they judge.

    The p values are then still those of a single look with all seeds.
    """
    found = verdicts.verdicts(table, unit, mode, margin=study.margin / 100)
    if study.seeds != "auto" or (unit, mode) != (study.units[0], study.modes[0]):
        return found
    told = {name: word for look in made(table, study)[-1:] for name, (word, _) in look.told.items()}
    asked, words = _asked(study), zip(found.estimator, found.verdict, strict=True)
    return found.assign(
        verdict=[told.get(name, OPEN if word in TOLD and name in asked else word) for name, word in words]
    )


def design(study: Study) -> str:
    """How the number of seeds came about, for a reader of the report; empty where it was fixed."""
    if study.seeds != "auto":
        return ""
    *first, last = map(str, counts(study.seeds_max))
    return (
        f"Seeds were added where they were needed: estimators were tested after {', '.join(first)}"
        f"{' and ' * bool(first)}{last} seeds, as far as needed, and these tests (looks) share the {LEVEL:.0%}. An "
        "estimator found better, worse or equal at a look gets no more seeds and keeps that verdict. Intervals take no "
        "account of the looks: those of estimators decided early tend to lie too far from 0. "
        f"{f'None were added beyond {study.hours:g} hours of work. ' if study.hours else ''}Looks judge the estimators "
        "that the study lists, in its first unit and mode; any other verdict is of one test with all seeds there are.\n"
    )
