"""The report: analysis notebooks run headless, how the study was made, and all of it in one HTML page."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from roarlib.answers import looks, paper, patterns, resolution, stats, verdicts
from roarlib.grid import kernel
from roarlib.study import params, results, yaml12
from roarlib.study.files import root, write_atomically
from roarlib.study.machine import cores
from roarlib.study.names import MODES, UNITS, in_order, keeps, label
from roarlib.study.params import InputError, Study
from roarlib.views import page

ANALYSES = [f.stem for f in sorted((root() / "notebooks").glob("1?-*.ipynb")) if "study_file:" in f.read_text()]
AGAINST_PAPER = "12-against-the-paper"
MACHINE = ["hardware", "device", "precision", "torch", "roarlib", "commit", "python"]
WHAT = {"retrain": "retraining", "base": "base model", "ranking": "ranking", "deletion": "deletion score"}
WHAT |= {"sanity": "comparison with random weights"}


def render(study: Study) -> str:
    """Run the analyses of a study and write report.html; returns what to tell the user: table, figure, page.

    An analysis that fails is left out, and named. Raises InputError where there is no retraining yet.
    """
    table, unit, mode = results.table(study), study.units[0], study.modes[0]
    if not ((table.measure == "retrain") & (table.unit == unit) & (table["mode"] == mode)).any():
        said = f"no retrainings of {study.name} yet (unit {unit}, mode {mode}); `roar run` makes them"
        raise InputError(results.nothing_learnt(study) or said)
    file, chapters, failed = params.save(study), {}, []
    wanted = [name for name in ANALYSES if name != AGAINST_PAPER or paper.comparable(table, study.units[0])]
    with ThreadPoolExecutor(cores()) as pool:  # each waits for a kernel, which is a process
        running = {name: pool.submit(_execute, study, file, name) for name in wanted}
    for name, execution in running.items():
        try:
            chapters[name] = execution.result()
        except ValueError as problem:  # an InputError, or a notebook that takes no study; the others are worth a page
            failed.append(str(problem))
    shown = {name: notebook for name, notebook in chapters.items() if page.shows(notebook)}
    empty = [f"{name}, for want of results to show" for name in chapters if name not in shown]
    empty += [f"{name}, as fewer than three estimators are the paper's" for name in ANALYSES if name not in wanted]
    target, head = study.folder / "report.html", _head(study, table)
    write_atomically(target, page.html(shown, head, _how(study), failed + empty))
    figure = study.folder / "figures" / f"curves-{study.units[0]}-{study.modes[0]}.png"
    left_out = "".join(f"\nLEFT OUT: {problem}" for problem in failed)
    said = "\n\n".join([summary(study), *head["doubts"]])
    return f"{said}\n\nfigure: {figure}\nreport: {target}{left_out}"


def summary(study: Study) -> str:
    """The study's first unit and mode as text: accuracy at each percent and difference from Random, best first."""
    table, unit, mode = results.table(study), study.units[0], study.modes[0]
    points = stats.summary(stats.with_clean(table)).query("measure == 'retrain' and unit == @unit and mode == @mode")
    grid = points.pivot(index="estimator", columns="percent", values="mean").mul(100).add_prefix("t=")
    found = looks.judged(table, study, unit, mode)
    better = pd.Series({"random": 0.0}).combine_first(found.set_index("estimator")["mean"])
    best_first = better.sort_values(ascending=not keeps(mode)).index
    grid = grid.loc[[*best_first.intersection(grid.index, sort=False), *grid.index.difference(best_first)]]
    grid["minus Random's"] = verdicts.cells(found.set_index("estimator"))
    grid = grid.fillna({"minus Random's": ""}).rename(index=label).rename_axis(index=None, columns="estimator")
    few, most, t = points.n.min(), points.n.max(), ", ".join(map(str, verdicts.percents(table, unit, mode)))
    seeds = f"{few} to {most} seeds" if few < most else "1 seed" if most == 1 else f"{most} seeds"
    return (
        f"{study.name}: accuracy in percent after retraining, {mode} the top t percent, unit {unit}, "
        f"mean of {seeds}\n\n"
        f"{grid.to_string(float_format='{:.1f}'.format, col_space=7, na_rep='–')}\n\n{explained(study, table)}"
        f"{verdicts.in_words(found)} {verdicts.advice(table, unit, mode, found)}\n{looks.design(study)}"
        f"{stats.reach(table).capitalize()}.\n"
        f"minus Random's: points, {'mean over' if ',' in t else 'at'} t = {t}, with the 95 percent interval"
    )


LABELS_TOLD = (
    "Test images are masked by explanations of their true label (`target: label`), so the masks may give the label "
    "away: accuracies may be higher than when the predicted class is explained, even higher than on untouched images."
)


def doubts(study: Study, table: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """What casts doubt on the verdicts (found: of `looks.judged`) in the first unit and mode, a sentence each."""
    unit, better = study.units[0], list(found[found.verdict == verdicts.BETTER].estimator)
    lattice = patterns.warning(patterns.lattice(study, unit))
    shape = "" if keeps(study.modes[0]) else patterns.solid(study, unit, better)
    told = "" if study.target == "predicted" else LABELS_TOLD
    order = resolution.warning(table, unit, study.modes[0])
    spent = verdicts.exhausted(table, unit, study.modes[0], margin=study.margin / 100)
    left = (
        f"Random is already within {verdicts.points(study.margin / 100)} of the best possible (guessing where inputs "
        "are removed, clean accuracy where they are kept), so no estimator can be better than Random by more than that."
    )
    beside = verdicts.beside_blurred(table, unit, study.modes[0], study.margin / 100)
    beside += " (This is one test of all seeds; the looks do not judge it.)" * (bool(beside) and study.seeds == "auto")
    old = results.outdated(study).estimator.value_counts()
    outdated = ", ".join(f"{count} row{'s' * (count > 1)} of {label(name)}" for name, count in old.items())
    outdated = f"Left out, as another version of the function made them: {outdated}." * bool(outdated)
    known = results.known(study)
    unlisted = _unlisted(study, known)
    late, left = looks.waits(known, study), left * (spent and not better)
    return list(filter(None, [outdated, unlisted, late, told, left, order, lattice, shape, beside]))


def _unlisted(study: Study, known: pd.DataFrame) -> str:
    """A sentence on the retrainings that the study does not list; empty if there are none."""
    left = known[known.measure == "retrain"].drop(results.listed(known, study).index, errors="ignore")
    seeds = sorted(s for s in {*left.seed} if (s >= study.seeds_max if study.seeds == "auto" else s not in study.seeds))
    parts = {
        "at t =": sorted({*left.percent} - {0, *study.percents}),
        "with seed": seeds,
        "of": [label(name) for name in in_order({*left.estimator} - {"clean", *study.estimators})],
    }
    said = " or ".join(f"{what} {', '.join(map(str, values))}" for what, values in parts.items() if values)
    return f"Left out, as the study does not list them: retrainings {said}." * bool(said)


def explained(study: Study, table: pd.DataFrame) -> str:
    """A line on a network that was brought: its accuracy and that of networks retrained; empty if none was brought."""
    if not study.base_weights:
        return ""
    brought = table[table.measure == "base"].accuracy.mean()
    clean = table[(table.measure == "retrain") & (table.estimator == "clean")].accuracy.mean()
    return (
        f"The network explained was brought ({Path(study.base_weights).name}): {brought:.1%} of the test images right. "
        f"Networks retrained on untouched images reach {clean:.1%}, a difference of {100 * (clean - brought):+.1f} "
        "points.\n"
    )


def _execute(study: Study, file: Path, name: str) -> nbformat.NotebookNode:
    source, target = (folder / f"{name}.ipynb" for folder in (root() / "notebooks", study.folder / "report"))
    try:
        kernel.execute(source, target, {"study_file": str(file)}, timeout=900, env={"ROAR_DPI": str(page.DPI)})
    except kernel.NotebookFailed as problem:
        raise InputError(f"{name} failed: {problem.cause} (see {target})") from None
    return nbformat.read(target, 4)


def _head(study: Study, table: pd.DataFrame) -> dict:
    """What the page says first: the result in a sentence, what it rests on, and clean accuracy beside the floor."""
    retrained, unit, mode = table[table.measure == "retrain"], study.units[0], study.modes[0]
    clean = retrained[retrained.estimator == "clean"].accuracy.mean()
    found = looks.judged(table, study, unit, mode)
    result, groups = verdicts.grouped(found)
    return {
        "study": study,
        "doubts": doubts(study, table, found),
        "result": f"{result}{':' if groups else '.'}",
        "groups": groups,
        "advice": verdicts.advice(table, unit, mode, found),
        "what": f"{UNITS[unit]} {MODES[mode]}",
        "retrained": len(retrained),
        **{name: int(retrained[name].max()) for name in ("n_train", "n_test", "n_classes")},
        "clean": clean,
        "explained": explained(study, table) + looks.design(study),
        "covered": f"{stats.reach(table).capitalize()}.",
        "floor": stats.floor(table),
        "floor_is": "chance" if stats.floor(table) == 1 / retrained.n_classes.max() else "the largest class alone",
        "error": stats.binomial_error(clean, retrained.n_test.max()),
        "cost": _took(results.known(study)),
        "today": datetime.now(),
    }


def _took(rows: pd.DataFrame) -> str:
    """The cost in half a sentence: hours or minutes of one worker, and the machines."""
    worked = hours(rows)[0]
    said = f"{worked:.1f} hours" if worked >= 1 else f"{60 * worked:.0f} minutes"
    machines = [name for name in rows.hardware.dropna().unique() if name]
    return f"{said} of one worker's time on {' and '.join(machines) or 'a machine that rows do not name'}"


def _how(study: Study) -> dict:
    """How the study was made: tables as HTML, and hours."""
    rows = results.known(study)
    tables = {"parameters": parameters(study), "machines": machines(rows), "cost": cost(rows)}
    form = dict(index=False, na_rep="–", float_format="{:,.1f}".format)
    return {name: frame.to_html(**form) for name, frame in tables.items()} | {"hours": hours(rows)}


def parameters(study: Study) -> pd.DataFrame:
    """Every parameter in the order of the YAML files: parameter, value, default, differs ("differs" or empty).

    Values as YAML spells them. A parameter without a default (name, estimators) has "–" there and never differs.
    """
    rows = []
    for key, known in Study.model_fields.items():
        value, default = getattr(study, key), known.get_default(call_default_factory=True)
        differs = "differs" if not known.is_required() and value != default else ""
        rows.append((key, _yaml(value), "–" if known.is_required() else _yaml(default), differs))
    return pd.DataFrame(rows, columns=["parameter", "value", "default", "differs"])


def _yaml(value) -> str:
    return yaml12.dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...")


def machines(rows: pd.DataFrame) -> pd.DataFrame:
    """What computed the rows (of results.known): MACHINE, rows (how many), first, last (UTC, to the minute).

    One line for each distinct combination. "–": unknown; results.csv alone does not know Python's version.
    """
    found = rows.reindex(columns=[*MACHINE, "finished"]).astype(object).replace("", np.nan).fillna("–")
    groups = found.groupby(MACHINE, sort=False)["finished"]
    out = groups.agg(rows="size", first="min", last="max").sort_values("rows", ascending=False).reset_index()
    return out.assign(**{name: out[name].str[:16].str.replace("T", " ") for name in ("first", "last")})


def cost(rows: pd.DataFrame) -> pd.DataFrame:
    """Number, median and total seconds by kind of measurement; a ranking's are its share of what its base took."""
    seconds = rows.groupby("measure")["seconds"].agg(["size", "median", "sum"]).reindex(list(WHAT)).dropna()
    seconds = seconds.astype({"size": int}).rename(index=WHAT)
    seconds.columns = ["n", "median seconds", "total seconds"]
    return seconds.reset_index(names="measurement")


def hours(rows: pd.DataFrame) -> tuple[float, float]:
    """Hours that went into all measurements, and those from the start of the first to the end of the last."""
    seconds, ends = rows["seconds"].fillna(0), pd.to_datetime(rows["finished"], utc=True)
    starts = ends - pd.to_timedelta(seconds, unit="s")
    return float(seconds.sum()) / 3600, (ends.max() - starts.min()).total_seconds() / 3600
