"""What a paper says about a study: its data, estimators, seeds, statistics and cost, from parameters and rows."""

from pathlib import Path

import pandas as pd

from roarlib.answers import looks, stats, verdicts
from roarlib.data import datasets, photos
from roarlib.study import names, own, results
from roarlib.study.names import FIXED, MAPS, MODES, PACKAGES, UNITS, imputes, in_order, label, split_name, variant_of
from roarlib.study.params import InputError, Study
from roarlib.views import report

DATA = {  # name -> as a paper writes it, its source, pixels per side (0: the study's)
    "cifar10": ("CIFAR-10", "krizhevsky2009", 32),
    "fashion-mnist": ("Fashion-MNIST", "xiao2017", 28),
    "imagenet": ("ImageNet", "russakovsky2015", 0),
    "food101": ("Food-101", "bossard2014", 0),
    "birdsnap": ("Birdsnap", "berg2014", 0),
}
CAPTUM = {  # class -> the source of its method
    "Saliency": "simonyan2014",
    "GuidedBackprop": "springenberg2015",
    "Deconvolution": "zeiler2014",
    "Occlusion": "zeiler2014",
    "IntegratedGradients": "sundararajan2017",
    "InputXGradient": "shrikumar2017",
    "DeepLift": "shrikumar2017",
    "DeepLiftShap": "lundberg2017",
    "GradientShap": "lundberg2017",
    "KernelShap": "lundberg2017",
    "Lime": "ribeiro2016",
    "LRP": "bach2015",
    "LayerGradCam": "selvaraju2017",
    "GuidedGradCam": "selvaraju2017",
}


def facts(study: Study) -> dict:
    """All that the templates say about a study, by the names that they use. InputError if nothing is retrained yet."""
    table, rows = results.table(study), results.known(study)
    retrained = table[table.measure == "retrain"]
    judged = retrained[retrained.estimator != "clean"]
    if judged.empty:
        raise InputError(f"no retrainings of {study.name} yet; `roar run` with its YAML makes them")
    used = in_order(set(judged.estimator))
    there = set(judged[["unit", "mode"]].itertuples(index=False, name=None))
    sides = [(unit, mode) for unit in UNITS for mode in MODES if (unit, mode) in there]
    scored = table[table.measure == "deletion"]
    tested = [verdicts.verdicts(table, *side) for side in sides if side[1] != "mask"]
    numbers = {name: f"{retrained[name].max():,.0f}" for name in ("n_train", "n_test", "n_classes")}
    return {
        "study": study,
        "table": table,
        "sides": sides,
        "units": {unit for unit, _ in sides},
        "modes": {mode for _, mode in sides},
        "imputed": any(map(imputes, {*judged["mode"], *scored["mode"]})),
        "deletion": len(scored) > 0,
        "data": data(study),
        "brought": brought(study, used),
        **numbers,
        "precision": " or ".join(sorted(set(retrained.precision.dropna()))),
        "reach": stats.reach(table),
        "base": f"{100 * table[table.measure == 'base'].accuracy.mean():.1f}",
        "clean": (clean := stats.spread(retrained[retrained.estimator == "clean"].accuracy)),
        "binomial": stats.binomial_error(clean["mean"], retrained.n_test.max()),
        "floor": (floor := stats.floor(table)),
        "floor_is": "chance" if floor == 1 / retrained.n_classes.max() else "the largest class alone",
        "percents": sorted({int(percent) for percent in judged.percent}),
        "seeds": sorted({int(seed) for seed in judged.seed}),
        "even": judged.groupby([*stats.CURVE, "percent"]).seed.agg(frozenset).nunique() == 1,
        "n": span(judged.groupby(["unit", "mode", "estimator", "percent"]).seed.nunique()),
        "tested": covered(table, sides),
        "families": len(tested),
        "compared": span(counts) if any(counts := [int(found.p.notna().sum()) for found in tested]) else "",
        "borrowed": any((found.degrees > found.n - 1).any() for found in tested),
        "looks": [look.seeds for look in looks.made(rows, study)] if study.seeds == "auto" else [],
        "level": verdicts.LEVEL,
        **estimators(study, used),
        **cost(rows),
    }


def covered(table: pd.DataFrame, sides: list[tuple[str, str]]) -> list[tuple[list[int], str]]:
    """The percents that verdicts cover, and where, in words: '' if it is everywhere the same."""
    where: dict[tuple[int, ...], list[str]] = {}
    for unit, mode in sides:
        where.setdefault(tuple(verdicts.percents(table, unit, mode)), []).append(f"{UNITS[unit]} {MODES[mode]}")
    return [(list(t), ", ".join(words) if len(where) > 1 else "") for t, words in where.items()]


def span(values) -> str:
    """Numbers as their range: `3`, or `2 to 3`."""
    low, high = int(min(values)), int(max(values))
    return f"{low}" if low == high else f"{low} to {high}"


def data(study: Study) -> dict:
    """The data set: its name and source (cite), textures or own or neither, and the size of its images in pixels.

    side, tall: its width and height, 0 if unknown; cut: of photographs, the short side before the centre is cropped;
    part: split -> how its images are chosen, `first` or `evenly` by class, '' if all are taken.
    """
    kind, _, path = study.dataset.partition(":")
    textures = kind.startswith("textures")
    name, cite, side = DATA.get(kind, (Path(path).name if kind in ("folder", "npz") else study.dataset, "", 0))
    if textures:
        name, side = " ".join(["Textures", *filter(None, [kind.partition("-")[2]])]), 32
    tall = side
    if cut := kind in photos.COUNTS or kind == "folder":
        side = tall = study.image_size or 224
    elif not side and (datasets.prepared(study) / "meta.json").is_file():
        tall, side = datasets.sizes(study)[1][-2:]
    chosen = "first" if study.dataset in datasets.ARRAYS else "evenly"
    counts = {"train": study.train_images, "test": study.test_images}
    return {
        "name": name,
        "cite": cite,
        "own": not (cite or textures),
        "textures": textures,
        "part": {split: chosen * bool(count) for split, count in counts.items()},
        "side": side,
        "tall": tall,
        "cut": study.resize or round(side * 8 / 7) if cut else 0,
    }


def brought(study: Study, used: list[str]) -> list[str]:
    """Names of what nobody else has but a paper's readers need: own data, models, weights, functions and maps."""
    named = [study.model, *(split_name(name)[0] for name in used)]
    theirs = [name for name in named if ":" in name and not name.startswith(PACKAGES)]
    weights = [Path(study.base_weights).name] if study.base_weights else []
    return list(dict.fromkeys([data(study)["name"]] * data(study)["own"] + theirs + weights))


def estimators(study: Study, used: list[str]) -> dict:
    """What the estimators are: their labels, the parts of their names, and those that are not ready-made."""
    parts = [split_name(name) for name in used]
    bases, ensembles = {base for base, _ in parts}, {ensemble for _, ensemble in parts}
    other = sorted(base for base in bases if ":" in base)
    return {
        "estimators": [label(name) for name in used if split_name(name)[0] not in FIXED],
        "controls": [label(name) for name in used if split_name(name)[0] in FIXED],
        "bases": bases,
        "ensembles": ensembles,
        "noisy": bool(ensembles - names.QUIET),
        "variants": {variant_of(name) for name in used},
        "mixed": sorted({names.mixed_share(name) for name in used} - {0}),
        "captum": {base: CAPTUM.get(base.partition(":")[2], "") for base in other if base.startswith("captum:")},
        "maps": [base for base in other if MAPS.fullmatch(base)],
        "own": [base for base in other if own.is_own(base)],
        "options": [
            f"{label(base)}: {key} = {value}"
            for base, given in study.estimator_options.items()
            if base in bases
            for key, value in given.items()
        ],
    }


def cost(rows: pd.DataFrame) -> dict:
    """What the rows (results.known) took: kinds of measurement with number and median, hours, machines, versions."""
    kinds = report.cost(rows)
    named = zip(kinds["n"], kinds["measurement"], kinds["median seconds"], strict=True)
    device = rows.device.str.partition(":")[0].replace({"cpu": "CPU", "cuda": "GPU"})
    return {
        "cost": [
            f"{n:,} {what}{'s' * (n > 1)} ({'median ' * (n > 1)}{seconds:,.{int(seconds < 10)}f} s)"
            for n, what, seconds in named
        ],
        "hours": report.hours(rows)[0],
        "machines": sorted(set((rows.hardware + " (" + device + ")").dropna())),
        **{name: sorted(set(rows[name].dropna()) - {""}) for name in ("torch", "roarlib", "commit")},
        "retrainings": int((rows.measure == "retrain").sum()),
        "year": str(rows.finished.dropna().max())[:4],
    }
