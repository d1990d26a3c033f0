"""Figures of a study: from the tidy table to matplotlib axes, in one style; lines are named at their ends."""

import os
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from roarlib.answers import paper, stats
from roarlib.answers.verdicts import BETTER, EQUAL, WORSE
from roarlib.study.names import BASES, FIXED, MEASURES, MODES, READY, UNITS, in_order, keeps, label, style, variant_of
from roarlib.views import naming

INK, QUIET, FAINT = "#222222", "#666666", "#c4c4c4"  # text; notes and Sobel; lines that are only context
DPI = 140  # of a figure in a notebook: three panels of the widest fill a page of 1,400 dots
TEXT = 7.5  # points: readable in a column 8.5 cm wide
LOOK = {  # on white, whatever the theme around it: JupyterLab's dark one, or the caller's style
    **{f"{part}.facecolor": "white" for part in ("figure", "savefig", "axes")},
    **{f"{part}color": INK for part in ("text.", "axes.label", "axes.title", "xtick.label", "ytick.label")},
    **{f"{part}color": QUIET for part in ("axes.edge", "xtick.", "ytick.")},
    **{f"{part}size": TEXT for part in ("font.", "axes.label", "axes.title", "xtick.label", "ytick.label")},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    **{"axes.grid": False, "axes.linewidth": 0.7, "font.family": "sans-serif", "pdf.fonttype": 42},
    "svg.hashsalt": "roar",
}


class Shown(NamedTuple):
    """What curves show, as keywords of all functions that draw them."""

    measure: str = "retrain"
    unit: str = "value"
    mode: str = "remove"
    interval: bool = True  # 95 percent t bands over seeds
    chance: float | None = None  # an accuracy, as a dotted line


def subplots(rows: int = 1, columns: int = 1, size: tuple[float, float] = (3.4, 3.0), **keywords):
    """`plt.subplots` on white, in the style of this module, axes always a 2-d array; size in inches.

    $ROAR_DPI: dots per inch where the figure is shown; the report asks for more than a screen needs.
    """
    dpi = float(os.environ.get("ROAR_DPI") or DPI)
    # Outside rc_context: the first figure loads the backend, whose settings the context would undo as it ends;
    # a notebook would then show no later figure.
    figure = plt.figure(figsize=size, layout="constrained", facecolor="white", dpi=dpi)
    with mpl.rc_context(LOOK):
        return figure, figure.subplots(rows, columns, squeeze=False, **keywords)


def points(table: pd.DataFrame, measure: str, unit: str, mode: str) -> pd.DataFrame:
    """Mean and interval of each point of a picture (`stats.summary`); LookupError tells what to run."""
    rows = stats.with_clean(table)
    found = stats.summary(rows[(rows["measure"] == measure) & (rows["unit"] == unit) & (rows["mode"] == mode)])
    if found.empty:
        run = "run `roar run` with a YAML that has both in its lists"
        raise LookupError(f"no {measure} results for unit {unit} and mode {mode} yet: {run}")
    return found


def chosen(found: pd.DataFrame, names=None) -> list[str]:
    """The estimators of `points` in order, or those asked for; LookupError names one without results."""
    there = in_order(found["estimator"].unique())
    for name in set(names or []) - set(there):
        raise LookupError(f"no results of {name} yet: put it in the study's estimators, then `roar run` it")
    return there if names is None else in_order(names)


def line(ax, name: str, rows: pd.DataFrame, interval: bool = True, **look) -> None:
    """Draw an estimator's rows of `points`, accuracy in percent over t, interval as a band."""
    (drawn,) = ax.plot(rows["percent"], 100 * rows["mean"], **{**style(name), "label": label(name), **look})
    if interval and rows["low"].notna().any():
        edges = 100 * rows[["low", "high"]].clip(0, 1).to_numpy().T  # no accuracy lies beyond, though t intervals do
        ax.fill_between(rows["percent"], *edges, color=drawn.get_color(), alpha=0.15, linewidth=0)


def curves(table, ax, estimators=None, highlight=None, named=True, **shown) -> None:
    """All estimators (or those named) on one axes, each line named at its end; shown: see `Shown`.

    highlight: names that keep their colour; Random and Sobel keep theirs too, all others turn to grey context
    without a name. n and interval are said above the axes. named: False where more is to be drawn first, then
    `naming.name_lines(ax)`. Raises LookupError without results.
    """
    what = Shown(**shown)
    found = points(table, what.measure, what.unit, what.mode)
    names = chosen(found, estimators)
    chosen(found, highlight)  # raises if not there
    loud = set(names) if highlight is None else {*highlight, *FIXED}
    for name in dict.fromkeys([*names, *(highlight or [])]):
        look = {} if name in loud else dict(color=FAINT, linewidth=0.8, marker="", zorder=0.5, label=f"_{label(name)}")
        line(ax, name, found[found["estimator"] == name], what.interval and name in loud, **look)
    frame(ax, found["percent"], what.mode, what.chance)
    if named:
        naming.name_lines(ax)
    ax.set_title(about(found, what, len(set(names) - loud)), loc="left", fontsize=TEXT - 0.5, color=QUIET)


def panels(axes, table, each: list[dict], **same) -> None:
    """`curves` on axes that share a scale. each: the keywords of one axes; same: those of all."""
    for ax, own in zip(axes, each, strict=True):
        curves(table, ax, named=False, **own, **same)
    for ax in axes:  # only now: every panel widens the scale
        naming.name_lines(ax)


def by_base(table, width: float | None = None, **shown):
    """A figure like the paper's Figure 4: a panel per base, other and users' own ones in the last, controls in each.

    width: inches, for at most three panels abreast; None: as much as all need side by side.
    """
    what = Shown(**shown)
    found = points(table, what.measure, what.unit, what.mode)
    names = [name for name in chosen(found) if not variant_of(name)]
    controls, bases = [name for name in names if name in FIXED], {}
    for name in names[: len(names) - len(controls)]:
        base = name.partition("-")[0]
        title = BASES[base].label if base in BASES else "Others" if base in READY else "Your own"
        bases.setdefault(title, []).append(name)
    bases = bases or {"Controls": []}
    down, across = (-(-len(bases) // 3), min(len(bases), 3)) if width else (1, len(bases))
    figure, axes = subplots(down, across, (width or 0.5 + 2.9 * across, (2.6 if width else 3.2) * down), sharey=True)
    panels(axes.flat[: len(bases)], table, [{"estimators": controls + own} for own in bases.values()], **shown)
    for ax, title in zip_longest(axes.flat, bases):
        ax.set_title(title, loc="left", fontsize=TEXT + 1, fontweight="bold", color=INK) if title else ax.remove()
    figure.suptitle(about(found, what).replace("\n", "; "), x=0.01, ha="left", fontsize=TEXT, color=QUIET)
    return figure


def roar_and_deletion(table, **keywords):
    """A figure of what removal costs a model that never saw such images, beside retrained ones (ROAR)."""
    return _side_by_side(table, [{"measure": "deletion"}, {"measure": "retrain"}], **keywords)


def remove_and_keep(table, **keywords):
    """A figure of ROAR (the top t percent removed) beside KAR (only they are kept); images get emptier to the right.

    Keywords here and above: as of `curves`. Raises LookupError where one of the two has no results.
    """
    figure = _side_by_side(table, [{"mode": "remove"}, {"mode": "keep"}], **keywords)
    for ax, title in zip(figure.axes, ("ROAR, lower is better", "KAR, higher is better"), strict=True):
        ax.set_title(f"{title}\n{ax.get_title(loc='left')}", loc="left", fontsize=TEXT - 0.5, color=QUIET)
    return figure


def _side_by_side(table, each, estimators=None, highlight=None, size=(7.2, 3.6), **shown):
    for own in each:  # raises before a figure is begun: none is left half empty
        chosen(points(table, *Shown(**own, **shown)[:3]), estimators)
    figure, axes = subplots(1, 2, size, sharey=True)
    panels(axes[0], table, each, estimators=estimators, highlight=highlight, **shown)
    return figure


def about(found: pd.DataFrame, what: Shown, others: int = 0) -> str:
    """Two lines on what a picture shows: measure and unit, then the number of runs and what the band is."""
    low, high = found["n"].min(), found["n"].max()
    seeds = low if low == high else f"{low} to {high}"
    kind = "model" if what.measure == "deletion" else "seed"
    runs = f"1 {kind}" if high == 1 else f"mean of {seeds} {kind}s"
    band = "no interval" if high == 1 else "band: 95% t interval" if what.interval else ""
    first = f"{MEASURES[what.measure]}, {UNITS[what.unit]}" + (f"; grey: {others} others" if others else "")
    return f"{first}\n" + ", ".join(filter(None, [runs, band]))


def frame(ax, percents, mode: str, chance: float | None = None) -> None:
    """Axes of curves: from the untouched end rightwards, so that images get emptier in both modes."""
    percents = sorted(set(percents))
    ends = (100, min(percents, default=0)) if keeps(mode) else (0, max(percents, default=100))
    pad = 0.03 * (ends[1] - ends[0])
    ticks = percents if np.diff(percents).min(initial=100) >= 8 else range(0, 101, 20)  # closer would touch
    ax.set(xlim=(ends[0] - pad, ends[1] + pad), xticks=ticks, xlabel=f"t: percent of inputs {MODES[mode]}")
    if ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col():
        ax.set_ylabel("test accuracy (%)")
    ax.tick_params(color=QUIET, labelcolor=INK, labelsize=TEXT)
    ax.spines[["top", "right"]].set_visible(False)
    if chance is not None:
        ax.axhline(100 * chance, color=QUIET, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0.6)
        said = "chance" if abs(1 / chance - round(1 / chance)) < 1e-9 else "largest class alone"
        at = dict(xycoords=ax.get_yaxis_transform(), textcoords="offset points", fontsize=TEXT - 1)
        ax.annotate(said, (0, 100 * chance), (2, 2), color=QUIET, **at)
    plt.setp([ax, ax.figure], facecolor="white")
    plt.setp([ax.xaxis.label, ax.yaxis.label, *ax.spines.values()], color=INK)


@mpl.rc_context(LOOK)
def save(figure, path: str | Path, formats=("png", "svg", "pdf"), box: str | None = "tight") -> list[Path]:
    """Write a figure as <path>.png (200 dots per inch), .svg and .pdf; returns the paths. box: None: its exact size."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    dates = {"png": "Creation Time", "svg": "Date", "pdf": "CreationDate"}  # None: same picture, same bytes
    for suffix in formats:
        figure.savefig(f"{path}.{suffix}", dpi=200, bbox_inches=box, metadata={dates[suffix]: None})
    return [Path(f"{path}.{suffix}") for suffix in formats]


def intervals(ax, found: pd.DataFrame, scale: float = 100) -> None:
    """Means with intervals as dots and bars, one line per estimator, the first on top; a line at 0.

    found: columns estimator, mean, low, high, in order. If there is a column verdict, only the dots of those told apart
    are filled, in grey those that are equal; a column margin is drawn as a pale band around 0.
    """
    if "margin" in found:
        ax.axvspan(*scale * found["margin"].max() * np.array([-1, 1]), color=FAINT, alpha=0.35, linewidth=0)
    for place, row in enumerate(found.itertuples()):
        color = style(row.estimator)["color"]
        inside = {BETTER: color, WORSE: color, EQUAL: FAINT}.get(getattr(row, "verdict", BETTER), "white")
        bar = scale * np.array([[row.mean - row.low], [row.high - row.mean]])
        ax.errorbar(scale * row.mean, -place, xerr=bar, fmt="o", color=color, mfc=inside, ms=4.5, elinewidth=1.2)
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
    _rows(ax, found.estimator)


def errors(ax, found: pd.DataFrame) -> None:
    """Spread over seeds as dots and binomial error as short lines, in points, one line per estimator, the first on top.

    found: indexed by estimator, columns std and binomial (`stats.seeds_and_test_set`); NaN is left out.
    """
    places = -np.arange(len(found))
    ax.plot(100 * found["binomial"], places, "|", color=INK, markersize=8)
    ax.scatter(100 * found["std"], places, 12, [style(name)["color"] for name in found.index], zorder=3)
    _rows(ax, found.index)


def _rows(ax, estimators) -> None:
    ax.set_yticks(-np.arange(len(estimators)), list(map(label, estimators)))
    ax.set_ylim(-len(estimators) + 0.4, 0.6)


def curves_of(ax, source: paper.Source, names, mode: str = "remove", shares: bool = False, **look) -> None:
    """Curves of the paper's numbers or a study's, from their clean end; shares: of the clean accuracy above chance.

    `naming.name_lines(ax)`, called last, names them.
    """
    table = getattr(source, mode)
    table = table.loc[in_order(set(names) & set(table.index))].assign(**{"clean": source.clean})
    table = table.rename(columns={"clean": 100 if keeps(mode) else 0})
    table = (source.share(table) if shares else table).sort_index(axis=1).dropna(how="all")
    for name, accuracies in table.iterrows():
        line(ax, name, accuracies.dropna().rename_axis("percent").reset_index(name="mean"), interval=False, **look)
    frame(ax, table.columns, mode)


def grid(ax, frame: pd.DataFrame, digits: int = 0, **look) -> None:
    """A table as a picture: a coloured cell with its number for each value, names of rows on the left."""
    look = dict(annot=True, fmt=f".{digits}f", cmap="viridis", cbar=False, annot_kws={"fontsize": TEXT}) | look
    sns.heatmap(frame, ax=ax, yticklabels=True, **look)
    ax.set(xlabel="", ylabel="")
    ax.tick_params("y", rotation=0)
