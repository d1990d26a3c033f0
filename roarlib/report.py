"""The report: analysis notebooks run headless, their figures kept, and all of it in one HTML page."""

import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from roarlib import kernel, params, plots, results, stats
from roarlib.params import InputError, Study

ANALYSES = ("10-accuracy-curves", "11-degraded-images", "12-against-the-paper", "13-better-than-random")


def render(study: Study) -> str:
    """Run the analyses of a study and write report.html; returns what to tell the user: table, figure, page.

    The page holds figures and text of all analyses, without code and widgets, and opens without a server.
    Raises InputError where there is no retraining yet or an analysis fails.
    """
    table = results.table(study)
    if not (table.measure == "retrain").any():
        raise InputError(f"no retrainings of {study.name} yet; `roar run params/{study.name}.yaml` makes them")
    file = (
        params.save(study)
        if (study.folder / "study.yaml").is_file()
        else params.root() / "params" / f"{study.name}.yaml"
    )
    executed = [_execute(study, file, name) for name in ANALYSES]
    page = study.folder / "report.html"
    params.write_atomically(page, _html(study, executed))
    figure = study.folder / "figures" / f"curves-{study.units[0]}-{study.modes[0]}.png"
    return f"{summary(study)}\n\nfigure: {figure}\nreport: {page}"


def summary(study: Study) -> str:
    """The study's first unit and mode as text: accuracy at each percent, mean over seeds, best estimator first."""
    table, unit, mode = results.table(study), study.units[0], study.modes[0]
    points = stats.summary(stats.with_clean(table, mode)).query("measure == 'retrain' and unit == @unit")
    grid = points.pivot(index="estimator", columns="percent", values="mean").mul(100)
    areas = stats.area_to_random(table, 1 / int(table.n_classes.max())).query("unit == @unit and mode == @mode")
    grid["area"] = areas.set_index("estimator")["mean"]
    grid = grid.sort_values("area", ascending=False)
    lines = [
        f"{study.name}: accuracy in percent after retraining, {mode} the top t percent, unit {unit}, "
        f"mean of {points.n.min()} seed(s)",
        "",
        f"{'estimator':<14}" + "".join(f"{f't={p}':>8}" for p in grid.columns[:-1]) + f"{'area':>9}",
    ]
    for name, row in grid.iterrows():
        lines.append(f"{plots.label(name):<14}" + "".join(f"{v:8.1f}" for v in row.iloc[:-1]) + f"{row.iloc[-1]:9.3f}")
    return "\n".join(
        [*lines, "", "area: between the curve and Random's; 0: like Random, towards 1: better, below 0: worse"]
    )


def _execute(study: Study, file: Path, name: str) -> nbformat.NotebookNode:
    target = study.folder / "report" / f"{name}.ipynb"
    try:
        kernel.execute(params.root() / "notebooks" / f"{name}.ipynb", target, {"study_file": str(file)}, timeout=900)
    except kernel.NotebookFailed as problem:
        raise InputError(f"{name} failed: {problem.cause} (see {target})") from None
    return nbformat.read(target, 4)


def _html(study: Study, notebooks: list) -> str:
    """One page of the notebooks' prose, figures and tables; widgets need a kernel and are left out."""
    whole = nbformat.v4.new_notebook(metadata=notebooks[0].metadata)
    whole.cells = [
        cell
        for notebook in notebooks
        for cell in notebook.cells
        if "widget" not in cell.metadata.get("tags", []) and "## Choose for yourself" not in cell.source
    ]
    for cell in whole.cells:  # links to notebooks lead nowhere from here
        cell.source = re.sub(r"\[([^\]]+)\]\([\w-]+\.ipynb\)", r"\1", cell.source)
    whole.metadata.pop("widgets", None)
    exporter = HTMLExporter(
        exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True, embed_images=True
    )
    body, _ = exporter.from_notebook_node(whole, {"metadata": {"name": f"ROAR study {study.name}"}})
    return re.sub(r'<script[^>]*\ssrc="https?:[^>]*>\s*</script>', "", body)  # nothing is fetched to show the page
