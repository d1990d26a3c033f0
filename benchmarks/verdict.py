"""The price of a verdict: worker-seconds to tell a true difference of 1 point, and of 2, from none.

python benchmarks/verdict.py [STUDY.yaml ..]: from the rows of finished studies, by default params/cifar10-cpu.yaml.
python benchmarks/verdict.py STUDY.yaml --run [--recipe epochs=4 --recipe "epochs=4 flip_average=true"] [--seeds 6]:
the study's recipe and others (its keys, with other values) side by side on this machine, in turn, seed by seed, by the
rankings that the study has (`roar run STUDY.yaml --only '02*'` makes them). Seconds are then of the processor. With
--tests 2000 every network is tested on so many images as well (the first of the data set), beside the study's number.

Seeds: as many as tell the difference with 80 percent power at 0.05 / 18, Holm's strictest step among the paper's 18
estimators, given the spread over seeds of paired differences from Random; `alone`, where every estimator is tested by
its own seeds, without what the others say of the spread. A retraining is one estimator, one percent, one seed; the
price of a study is seeds x (18 + Random) x percents retrainings, of one estimator at one percent seeds x 1. A row's
seconds are of one worker: a core, or a GPU; 200 seeds stand for 200 or more. `network` is what one network takes, its
training and its rankings by all estimators of the study; a study's hours hold that once, or for every seed that has its
own. A recipe that learns less has smaller differences as well: `size` is their root mean square over estimators. The
ratio is the price without pairing over that with it; with --run, the study's over the last column's, both by variance x
seconds, which has no whole seeds to jump by; of several studies, the first one's hours over the last one's. `tau` and
`slope` set a recipe's, or another study's, differences beside the first: its points are worth 1 / slope of those.

--simulate 300: so many studies of 18 estimators, with the differences and the spread of the rows, but one whose true
difference is 1 (or 2) points. How many seeds, on average over the 18 and Random, tell this one in 80 percent of them:
fixed seeds with every estimator alone, fixed seeds as we test, and `seeds: auto`; what hours these take; and how many
words are false.
"""

import argparse
import dataclasses
import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy import stats

from roarlib.answers import looks, spreads, verdicts
from roarlib.data import datasets
from roarlib.engine import train
from roarlib.study import params, rankings, results, yaml12
from roarlib.study.machine import hardware
from roarlib.study.names import group_of, keeps

ESTIMATORS, DIFFERENCES, MOST = 18, (0.01, 0.02), 40


def price(table: pd.DataFrame, unit: str, mode: str) -> dict:
    """What a verdict takes by the rows of one study or recipe; spreads in points, seconds of a retraining."""
    rows = table[(table.measure == "retrain") & (table.unit == unit) & (table["mode"] == mode)]
    spread = verdicts.spread_of_differences(table, unit, mode)
    wide = rows.pivot_table(index="seed", columns="estimator", values="accuracy")
    alone, differences = wide.var(ddof=1), wide.sub(wide.random, axis=0).mean()
    found = {
        "seeds": len(wide),
        "estimators": wide.shape[1] - 1,
        "percents": rows.percent.nunique(),
        "accuracy": 100 * wide.to_numpy().mean(),
        "size": 100 * float(np.sqrt(differences.drop("random").pow(2).mean())),
        "spread": 100 * spread,
        "unpaired": 100 * float(np.sqrt(alone.drop("random").mean() + alone["random"])),
        "seconds": rows.seconds.median(),
    }
    networks = of_networks(table, unit)
    found |= {"network": networks.median().sum(), "a network a seed": len(networks) > 1}
    for difference in DIFFERENCES:
        needed = verdicts.seeds_needed(difference, spread, ESTIMATORS)
        alone = verdicts.seeds_needed(difference, spread, level=verdicts.LEVEL / ESTIMATORS)
        one = needed * found["seconds"]
        points = f"{100 * difference:g}"
        found |= {f"seeds for {points}, alone": alone, f"seeds for {points}": needed, f"seconds for {points}": one}
        networks = found["network"] * (needed if found["a network a seed"] else 1)
        found[f"hours for {points}, all"] = hours(found, needed, networks)
    return found


def of_networks(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Seconds of each network (rows): its training, `base`, and its rankings, by the group that shares their passes."""
    rows = table[(table.measure == "base") | (table.measure == "ranking") & (table.unit == unit)]
    parts = [
        kind if kind == "base" else group_of(name) for kind, name in zip(rows.measure, rows.estimator, strict=True)
    ]
    return rows.assign(part=parts).pivot_table(index="seed", columns="part", values="seconds", aggfunc="sum")


def hours(found: dict, retrained: float, networks: float) -> float:
    """Worker-hours of a study. retrained: seeds of an estimator, on average. networks: their seconds in all."""
    return (retrained * (ESTIMATORS + 1) * found["percents"] * found["seconds"] + networks) / 3600


def simulated(table: pd.DataFrame, unit: str, mode: str, studies: int, priced: dict) -> dict:
    """Seeds and hours that tell a true difference of 1 and 2 points, by design: see the module's docstring."""
    assert not keeps(mode), "here lower accuracy is better"
    spread, found = verdicts.spread_of_differences(table, unit, mode), verdicts.verdicts(table, unit, mode)
    names, parts = np.resize(found.estimator.map(group_of), ESTIMATORS), of_networks(table, unit).median()
    noise = np.random.default_rng(0).standard_normal((studies, ESTIMATORS + 1, MOST)) * spread / np.sqrt(2)
    out = {}
    for difference in DIFFERENCES:
        truth = np.resize(found["mean"], ESTIMATORS)
        truth[0] = difference
        values = truth[:, None] + noise[:, 1:] - noise[:, :1]
        for name, design in {"alone": _alone, "fixed": _fixed, "auto": _auto}.items():
            low, high = 2, MOST  # the fewest seeds, 3 or more, with which power is reached, by halving
            while high - low > 1:
                middle = (low + high) // 2
                told = np.mean([design(one, middle)[0][0] == verdicts.WORSE for one in values])
                low, high = (low, middle) if told >= 0.8 else (middle, high)
            if high == MOST:
                raise SystemExit(f"{MOST} seeds do not tell {100 * difference:g} points, {name}")
            words, used = map(np.array, zip(*(design(one, high) for one in values), strict=True))
            better, worse, equal = (words == word for word in (verdicts.BETTER, verdicts.WORSE, verdicts.EQUAL))
            false = better & (truth >= 0) | worse & (truth <= 0) | equal & (abs(truth) >= verdicts.MARGIN)
            points = f"{name}, {100 * difference:g}"
            out |= {points: (used.sum(1) + used.max(1)).mean() / (ESTIMATORS + 1), f"{points}: most": high}
            # a group is ranked until the last of it is told; what 18 estimators lack (Random's), as long as any
            last = [used[:, names == part].max(1, initial=0) for part in parts.index]
            last = [np.where(one > 0, one, used.max(1)).mean() for one in last]
            out[f"{points}: hours"] = hours(
                priced, out[points], float(parts @ last) if priced["a network a seed"] else 0
            )
            out |= {f"{points}: told": (words != verdicts.OPEN).mean(), f"{points}: false": false.any(1).mean()}
    return out


def _alone(values, seeds: int, others: spreads.Shared = spreads.ALONE) -> tuple[np.ndarray, np.ndarray]:
    """Words on differences (estimators, seeds) after so many, as in mode remove, and the seeds used."""
    found = spreads.tested(values[:, :seeds], verdicts.MARGIN, others)
    word = verdicts.words(found["mean"] < 0, *verdicts.corrected(found["p"], found["p_equal"]))
    return word, np.full(len(values), seeds)


def _fixed(values, seeds: int):
    return _alone(values, seeds, spreads.shared(values[:, :seeds]))


def _auto(values, seeds: int):
    names = [f"e{i}" for i in range(len(values))]
    rows = pd.DataFrame(np.vstack([values[:, :seeds], np.zeros(seeds)]), index=[*names, "random"]).stack().reset_index()
    rows.columns = ["estimator", "seed", "accuracy"]
    rows = rows.assign(measure="retrain", unit="pixel", mode="remove", percent=50, seconds=1.0)
    study = SimpleNamespace(
        estimators=[*names, "random"], units=["pixel"], modes=["remove"], percents=[50], margin=1.0, hours=0,
        seeds_max=seeds,
    )  # fmt: skip
    last = looks.made(rows, study)[-1]
    return tuple(
        np.array(part)
        for part in zip(*(last.told.get(name, (verdicts.OPEN, last.seeds)) for name in names), strict=True)
    )


def side_by_side(
    study: params.Study, recipes: dict[str, dict], seeds: int, more_tests: list[int]
) -> dict[str, pd.DataFrame]:
    """Rows of every recipe: the same rankings, images and seeds, recipe after recipe in an order that turns.

    more_tests: numbers of test images, fewer than the study's, on which every network is tested as well, as recipes of
    their own. LookupError for rankings that are not here.
    """
    torch.set_num_threads(1)
    unit, mode, data, rows = study.units[0], study.modes[0], datasets.load(study), {}
    for seed in study.seeds[:seeds]:
        for estimator, percent in itertools.product(study.estimators, study.percents):
            made = {part: rankings.load(study.based(seed), estimator, unit, part) for part in datasets.SPLITS}
            for name in np.roll(list(recipes), seed):
                other = params.Study(**study.model_dump() | recipes[name])
                started = time.process_time()
                model = train.train(other, data, seed, made["train"], percent, mode)
                trained = time.process_time() - started
                key = results.Key("retrain", estimator, unit, mode, percent, seed)
                for count in dict.fromkeys([len(data.test), *more_tests]):
                    started, few = time.process_time(), _first(data, count)
                    found = train.tested(other, model, few, made["test"][:count], percent, mode)
                    more = {"accuracy": found["accuracy"], "seconds": trained + time.process_time() - started}
                    called = name if count == len(data.test) else f"{name}, {count} tests"
                    rows.setdefault(called, []).append(key._asdict() | more)
    return {name: pd.DataFrame(found) for name, found in rows.items()}


def beside(recipe: pd.DataFrame, study: pd.DataFrame, unit: str, mode: str) -> dict[str, float]:
    """A recipe's differences from Random beside the study's: Kendall's tau, and their slope through 0.

    Where a recipe makes differences larger, a point of the study's is `slope` points of its own. Of estimators and
    percents that both have.
    """
    cells = ["estimator", "percent"]
    recipe = recipe.merge(study[cells].drop_duplicates())
    study = study.merge(recipe[cells].drop_duplicates())
    one, other = (verdicts.verdicts(t, unit, mode).set_index("estimator")["mean"] for t in (recipe, study))
    one = one[other.index]
    return {"tau": stats.kendalltau(one, other).statistic, "slope": float((one * other).sum() / (other**2).sum())}


def _first(data: datasets.Data, count: int) -> datasets.Data:
    """The data with the first test images alone."""
    test = dataclasses.replace(data.test, images=data.test.images[:count], labels=data.test.labels[:count])
    return dataclasses.replace(data, test=test)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=["params/cifar10-cpu.yaml"])
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--recipe", action="append", default=[], metavar='"KEY=VALUE .."')
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--tests", type=int, action="append", default=[], metavar="IMAGES")
    parser.add_argument("--simulate", type=int, default=0, metavar="STUDIES")
    options = parser.parse_args()
    study, *others = map(params.load, options.studies)
    params.agree(study)
    if others and options.run:
        parser.error("--run takes one study")
    if options.run:
        recipes = {text: dict(map(_read, text.split())) for text in options.recipe}
        tables = side_by_side(study, {study.name: {}} | recipes, options.seeds, options.tests)
        where = hardware(study.device)
    else:
        tables = {one.name: results.known(one) for one in (study, *others)}
        where = ", ".join(sorted({name for table in tables.values() for name in table.hardware.dropna()}))
    found = {name: price(table, study.units[0], study.modes[0]) for name, table in tables.items()}
    if len(tables) > 1:
        found = {
            n: one | beside(tables[n], tables[study.name], study.units[0], study.modes[0]) for n, one in found.items()
        }
    print(f"{where}; of one estimator at one percent, and of all {ESTIMATORS} and Random at all percents")
    shown = pd.DataFrame(found)
    print(shown.to_string(float_format="{:.2f}".format))
    if options.simulate:
        made = simulated(tables[study.name], study.units[0], study.modes[0], options.simulate, found[study.name])
        print(pd.Series(made).to_string(float_format="{:.3f}".format))
        found |= {"simulated": made}
    cost = {name: one["spread"] ** 2 * one["seconds"] for name, one in found.items() if name in tables}
    first, last = found[study.name], list(tables)[-1]
    ratio = cost[study.name] / cost[last] if options.run else (first["unpaired"] / first["spread"]) ** 2
    if others:
        ratio = first["hours for 1, all"] / found[last]["hours for 1, all"]
    print(json.dumps({"benchmark": "verdict", "ratio": round(ratio, 2)} | {n: _short(one) for n, one in found.items()}))


def _read(text: str) -> tuple:
    key, _, value = text.partition("=")
    return key, yaml12.load(value.encode())


def _short(found: dict) -> dict:
    return {key: round(float(value), 3) for key, value in found.items()}


if __name__ == "__main__":
    main()
