"""The report: analysis notebooks run headless, their figures kept, and all of it in one HTML page."""

from datetime import datetime
from html import escape
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from roarlib.answers import stats, verdicts
from roarlib.grid import kernel
from roarlib.study import params, results
from roarlib.study.files import root, write_atomically
from roarlib.study.names import MODES, UNITS, label
from roarlib.study.params import InputError, Study
from roarlib.views import page, provenance

ANALYSES = (
    "10-accuracy-curves",
    "11-degraded-images",
    "12-against-the-paper",
    "13-better-than-random",
    "14-can-we-trust-this",
)


def render(study: Study) -> str:
    """Run the analyses of a study and write report.html; returns what to tell the user: table, figure, page.

    The page holds figures and text of all analyses, without code and widgets, and opens without a server.
    An analysis that fails is left out, and named. Raises InputError where there is no retraining yet.
    """
    table = results.table(study)
    if not (table.measure == "retrain").any():
        raise InputError(f"no retrainings of {study.name} yet; `roar run params/{study.name}.yaml` makes them")
    file = (
        params.save(study)
        if (study.folder / "study.yaml").is_file()
        else root() / "params" / f"{study.name}.yaml"
    )
    count = page.Counter()
    analyses, failed = [], []
    for name in ANALYSES:
        try:
            analyses.append(page.of_notebook(_execute(study, file, name), name, count))
        except InputError as problem:  # the others are worth a page
            failed.append(str(problem))
    sections = [section for section in analyses if section.shows()]  # a published table comes without images
    sections.append(_how(study, count, [section.title for section in analyses if not section.shows()], failed))
    target = study.folder / "report.html"
    write_atomically(target, page.html(f"ROAR study {study.name}", _head(study, table), sections))
    figure = study.folder / "figures" / f"curves-{study.units[0]}-{study.modes[0]}.png"
    left_out = "".join(f"\nLEFT OUT: {problem}" for problem in failed)
    return f"{summary(study)}\n\nfigure: {figure}\nreport: {target}{left_out}"


def summary(study: Study) -> str:
    """The study's first unit and mode as text: accuracy at each percent, mean over seeds, best estimator first."""
    table, unit, mode = results.table(study), study.units[0], study.modes[0]
    points = stats.summary(stats.with_clean(table, mode)).query("measure == 'retrain' and unit == @unit")
    grid = points.pivot(index="estimator", columns="percent", values="mean").mul(100)
    areas = stats.area_to_random(table, 1 / int(table.n_classes.max())).query("unit == @unit and mode == @mode")
    grid["area"] = areas.set_index("estimator")["mean"]
    grid = grid.sort_values("area", ascending=False)
    wide = max(14, *(len(label(name)) + 1 for name in grid.index))
    lines = [
        f"{study.name}: accuracy in percent after retraining, {mode} the top t percent, unit {unit}, "
        f"mean of {points.n.min()} {'seed' if points.n.min() == 1 else 'seeds'}",
        "",
        f"{'estimator':<{wide}}" + "".join(f"{f't={p}':>8}" for p in grid.columns[:-1]) + f"{'area':>9}",
    ]
    for name, row in grid.iterrows():
        cells = "".join(f"{v:8.1f}" for v in row.iloc[:-1]) + f"{row.iloc[-1]:9.3f}"
        lines.append(f"{label(name):<{wide}}{cells}")
    return "\n".join(
        [*lines, "", "area: between the curve and Random's; 0: like Random, towards 1: better, below 0: worse"]
    )


def _execute(study: Study, file: Path, name: str) -> nbformat.NotebookNode:
    target = study.folder / "report" / f"{name}.ipynb"
    try:
        kernel.execute(root() / "notebooks" / f"{name}.ipynb", target, {"study_file": str(file)}, timeout=900,
                       env={"ROAR_DPI": str(page.DPI)})  # fmt: skip
    except kernel.NotebookFailed as problem:
        raise InputError(f"{name} failed: {problem.cause} (see {target})") from None
    return nbformat.read(target, 4)


def _head(study: Study, table: pd.DataFrame) -> str:
    """The result in a sentence, what it rests on, and the date."""
    unit, mode = study.units[0], study.modes[0]
    sentence = verdicts.in_words(verdicts.verdicts(table, unit, mode))
    retrained, today = table[table.measure == "retrain"], datetime.now()
    facts = (
        f"{UNITS[unit].capitalize()} {MODES[mode]}; {len(retrained)} retrainings of {study.model} on "
        f"{study.dataset}, {retrained.n_train.max():,.0f} train and {retrained.n_test.max():,.0f} test images, "
        f"{retrained.n_classes.max():.0f} classes. {_clean(retrained)}"
    )
    date = f'<time datetime="{today:%Y-%m-%d}">{today.day} {today:%B %Y}</time>'
    return f'<p class="lead">{page.text(sentence)}</p><p class="facts">{escape(facts)} {date}</p>'


def _clean(retrained: pd.DataFrame) -> str:
    """Clean accuracy beside chance, in points; what follows where it is no better."""
    clean, tested = retrained[retrained.estimator == "clean"].accuracy.mean(), retrained.n_test.max()
    if np.isnan(clean):
        return ""
    chance = 1 / retrained.n_classes.max()
    error = stats.binomial_error(clean, tested)
    said = f"Clean accuracy {100 * clean:.1f}, chance {100 * chance:.1f}; one accuracy is good to ±{200 * error:.1f}."
    lost = " It is no better than chance, so nothing can be lost, or learnt." if clean < chance + 2 * error else ""
    return said + lost


def _how(study: Study, count: page.Counter, left_out: list[str], failed: list[str]) -> page.Section:
    """How it was made: parameters, versions, machines, cost; which analyses had nothing to show, and which failed."""
    rows, given = results.known(study), provenance.parameters(study)
    section = page.Section("How it was made", "how-it-was-made")
    section.blocks = [
        "<h3>Parameters</h3><p>All of the study, in the order of its file; those that differ from their default are "
        "set bold.</p>",
        page.table(given, "Parameters", count, marked=set(given.index[given.differs != ""])),
        "<h3>Versions and machines</h3><p>As the rows say, one line for each unlike combination; times are UTC.</p>",
        page.table(provenance.machines(rows), "Versions and machines", count),
        "<h3>Cost</h3>",
        page.table(provenance.cost(rows), "Measurements and their seconds", count),
        f"<p>{provenance.worker_hours(rows):.2f} worker-hours in all measurements together; "
        f"{provenance.wall_hours(rows):.2f} hours from the start of the first to the end of the last, pauses included. "
        "Starting notebooks and loading data is in the second number alone.</p>",
    ]
    if left_out:
        section.blocks.append(f"<p>Left out, for want of rankings and images: {escape(', '.join(left_out))}.</p>")
    section.blocks += [f"<p>Left out: {escape(problem)}</p>" for problem in failed]
    return section
