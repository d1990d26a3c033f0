"""Figures of a study: from the tidy table to matplotlib axes, in one look; lines are named at their ends, not in a legend."""

import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from scipy.optimize import isotonic_regression

from roarlib.answers import paper, stats
from roarlib.study.names import (
    BASES,
    FIXED,
    MEASURES,
    MODES,
    UNITS,
    in_order,
    keeps,
    label,
    split_name,
    style,
    variant_of,
)

INK, QUIET, FAINT = "#222222", "#666666", "#c4c4c4"  # text; notes and Sobel; lines that are only context
TEXT = 7.5  # points: readable in a column 8.5 cm wide
LOOK = {  # white paper whatever the theme around it: JupyterLab's dark one, or the caller's style
    **{f"{part}.facecolor": "white" for part in ("figure", "savefig", "axes")},
    **{f"{part}color": INK for part in ("text.", "axes.label", "axes.title", "xtick.label", "ytick.label")},
    **{f"{part}color": QUIET for part in ("axes.edge", "xtick.", "ytick.")},
    **{f"{part}size": TEXT for part in ("font.", "axes.label", "axes.title", "xtick.label", "ytick.label")},
    **{"axes.grid": False, "axes.linewidth": 0.7, "font.family": "sans-serif", "pdf.fonttype": 42},
    "svg.hashsalt": "roar",
}


def subplots(rows: int = 1, columns: int = 1, size: tuple[float, float] = (3.4, 3.0), **keywords):
    """`plt.subplots` on white paper in the look of this module, axes always a 2-d array; size in inches.

    $ROAR_DPI: dots an inch where the figure is shown; the report asks for more than a screen needs.
    """
    dpi = float(os.environ.get("ROAR_DPI") or 0) or None
    # Outside rc_context: the first figure loads the backend, whose settings the context would undo as it ends;
    # a notebook would then show no later figure.
    figure = plt.figure(figsize=size, layout="constrained", facecolor="white", dpi=dpi)
    with mpl.rc_context(LOOK):
        return figure, figure.subplots(rows, columns, squeeze=False, **keywords)


def points(table: pd.DataFrame, measure: str, unit: str, mode: str) -> pd.DataFrame:
    """Mean and interval of each point of a picture (`stats.summary`); LookupError tells what to run."""
    name = table["study"].iloc[0] if len(table) else "<name>"
    rows = stats.with_clean(table, mode)
    found = stats.summary(rows[(rows["measure"] == measure) & (rows["unit"] == unit)])
    if found.empty:
        raise LookupError(
            f"no {measure} results for unit {unit} and mode {mode} yet: "
            f"run `roar run params/{name}.yaml` with both in its lists"
        )
    return found


def chosen(found: pd.DataFrame, names=None) -> list[str]:
    """The estimators of `points` in order, or those asked for; LookupError names one without results."""
    there = in_order(found["estimator"].unique())
    for name in set(names or []) - set(there):
        raise LookupError(f"no results of {name} yet: put it in the study's estimators, then `roar run` it")
    return there if names is None else in_order(names)


def line(found: pd.DataFrame, estimator: str, ax, interval: bool = True, **keywords):
    """Draw one curve of `points`, accuracy in percent over t, interval as a band; returns the line."""
    own = (found["estimator"] == estimator).to_numpy()
    percents, mean, low, high = (found[c].to_numpy(dtype=float)[own] for c in ("percent", "mean", "low", "high"))
    (drawn,) = ax.plot(percents, 100 * mean, **{**style(estimator), "label": label(estimator), **keywords})
    if interval and not np.isnan(low).all():
        band = (100 * np.clip(edge, 0, 1) for edge in (low, high))  # no accuracy lies beyond, though t intervals do
        ax.fill_between(percents, *band, color=drawn.get_color(), alpha=0.15, linewidth=0)
    return drawn


def curves(
    table,
    ax,
    estimators=None,
    highlight=None,
    measure="retrain",
    unit="value",
    mode="remove",
    interval=True,
    chance=None,
    named=True,
):
    """All estimators (or those named) on one axes, each line named at its end.

    highlight: names that keep their colour; Random and Sobel keep theirs too, all others turn to grey context
    without a name. interval: 95 percent t bands over seeds. n and interval are said above the axes.
    named: False where more is to be drawn first, then `name_lines(ax)`. Raises LookupError without results.
    """
    found = points(table, measure, unit, mode)
    names = chosen(found, estimators)
    chosen(found, highlight)  # raises if not there
    loud = set(names) if highlight is None else {*highlight, *FIXED}
    for name in dict.fromkeys([*names, *(highlight or [])]):
        look = {} if name in loud else dict(color=FAINT, linewidth=0.8, marker="", zorder=0.5, label=f"_{label(name)}")
        line(found, name, ax, interval and name in loud, **look)
    frame(ax, found, mode, chance)
    if named:
        name_lines(ax)
    note = about(found, measure, unit, interval, others=len(set(names) - loud))
    ax.set_title(note, loc="left", fontsize=TEXT - 0.5, color=QUIET)


def by_base(table, unit="value", mode="remove", measure="retrain", interval=True, chance=None):
    """A figure like the paper's Figure 4: a panel a base, users' own in a last one, controls in each; no variants."""
    found = points(table, measure, unit, mode)
    names = [n for n in chosen(found) if not variant_of(n)]
    controls, panels = [n for n in names if n in FIXED], {}
    for name in names[: len(names) - len(controls)]:
        base, _ = split_name(name)
        panels.setdefault(BASES[base].label if base in BASES else "Your own", []).append(name)
    panels = panels or {"Controls": []}
    figure, axes = subplots(1, len(panels), (0.5 + 2.9 * len(panels), 3.2), sharey=True)
    for ax, (title, members) in zip(axes[0], panels.items(), strict=True):
        for name in controls + members:
            line(found, name, ax, interval)
        frame(ax, found, mode, chance)
        ax.set_title(title, loc="left", fontsize=TEXT + 1, fontweight="bold", color=INK)
    for ax in axes[0]:  # only now: every panel widens the shared scale
        name_lines(ax)
    note = about(found, measure, unit, interval).replace("\n", "; ")
    figure.suptitle(note, x=0.01, ha="left", fontsize=TEXT, color=QUIET)
    return figure


def roar_and_deletion(table, unit="value", mode="remove", estimators=None, highlight=None, interval=True, chance=None):
    """A figure of what removal costs a model that never saw such images, beside retrained ones (ROAR)."""
    sides = [("deletion", mode), ("retrain", mode)]
    return _side_by_side(sides, table, unit, estimators, highlight, interval, chance)


def remove_and_keep(table, unit="value", estimators=None, highlight=None, interval=True, chance=None):
    """A figure of ROAR (the top t percent removed) beside KAR (only they are kept), on one scale of accuracy.

    In both panels images get emptier to the right. Raises LookupError where one of the two modes has no results.
    """
    sides = [("retrain", "remove"), ("retrain", "keep")]
    figure = _side_by_side(sides, table, unit, estimators, highlight, interval, chance)
    for ax, title in zip(figure.axes, ("ROAR, lower is better", "KAR, higher is better"), strict=True):
        ax.set_title(f"{title}\n{ax.get_title(loc='left')}", loc="left", fontsize=TEXT - 0.5, color=QUIET)
    return figure


def _side_by_side(sides, table, unit, estimators, highlight, interval, chance):
    """Curves of two (measure, mode) on one scale; LookupError before a figure is begun: none is left half empty."""
    for measure, mode in sides:
        chosen(points(table, measure, unit, mode), estimators)
    figure, axes = subplots(1, 2, (7.2, 3.6), sharey=True)
    for ax, (measure, mode) in zip(axes[0], sides, strict=True):
        curves(table, ax, estimators, highlight, measure, unit, mode, interval, chance, named=False)
    for ax in axes[0]:  # only now: either panel widens the shared scale
        name_lines(ax)
    return figure


def about(found: pd.DataFrame, measure: str, unit: str, interval: bool = True, others: int = 0) -> str:
    """Two lines on what a picture shows: measure and unit, then the number of runs and what the band is."""
    low, high = found["n"].min(), found["n"].max()
    seeds = low if low == high else f"{low} to {high}"
    runs = "one model" if measure == "deletion" else "1 seed" if high == 1 else f"mean of {seeds} seeds"
    band = "no interval" if high == 1 else "band: 95% t interval" if interval else ""
    what = f"{MEASURES[measure]}, {UNITS[unit]}" + (f"; grey: {others} others" if others else "")
    return f"{what}\n" + ", ".join(filter(None, [runs, band]))


def frame(ax, found: pd.DataFrame, mode: str, chance: float | None = None) -> None:
    """Axes of curves: from the untouched end rightwards, so that images get emptier in both modes."""
    percents = sorted(found["percent"].unique())
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
        at = dict(xycoords=ax.get_yaxis_transform(), textcoords="offset points")
        ax.annotate("chance", (0, 100 * chance), (2, 2), color=QUIET, fontsize=TEXT - 1, **at)
    plt.setp([ax, ax.figure], facecolor="white")
    plt.setp([ax.xaxis.label, ax.yaxis.label, *ax.spines.values()], color=INK)


def apart(wanted: np.ndarray, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Places (n,) as near as can be to the wanted ones (least squares), at least `gap` apart, in [low, high].

    With places sorted, x_i - i gap must not fall: an isotonic regression. Where they cannot fit, gap shrinks.
    """
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    level = isotonic_regression(wanted[order] - steps).x
    places = np.clip(level, low, high - steps[-1]) + steps
    return places[np.argsort(order)]


def name_lines(ax, size: float = 7.5) -> None:
    """Write each line's label at its right end, moved apart where ends are close, with a leader to the end.

    Call it last: it reads the axes' limits. size in points; it shrinks where more names than fit are wanted.
    """
    lines = [drawn for drawn in ax.lines if not drawn.get_label().startswith("_")]
    right = np.argmax if ax.get_xlim()[1] > ax.get_xlim()[0] else np.argmin
    ends = np.array([drawn.get_xydata()[right(drawn.get_xdata())] for drawn in lines]).reshape(-1, 2)
    ends = (ax.transData + ax.transAxes.inverted()).transform(ends)  # (lines, 2), 0..1 of the axes
    if not lines:
        return
    height = 72 * ax.get_position().height * ax.figure.get_size_inches()[1]  # points
    size = min(size, 0.92 * height / max(len(lines), 1))
    places = apart(ends[:, 1], 1.15 * size / height, 0.0, 1.04)
    leaders = [[(x + 0.02, y), (1.07, place)] for (x, y), place in zip(ends, places, strict=True)]
    colors = np.array([to_rgb(drawn.get_color()) for drawn in lines]).reshape(-1, 3)
    where = dict(transform=ax.transAxes, clip_on=False)
    ax.add_collection(LineCollection(leaders, colors=colors, linewidths=0.5, **where))
    for drawn, place, color in zip(lines, places, 0.68 * colors, strict=True):  # darker: legible as thin text
        ax.text(1.08, place, drawn.get_label(), fontsize=size, color=color, va="center_baseline", **where)


@mpl.rc_context(LOOK)
def save(figure, path: str | Path, formats=("png", "svg", "pdf")) -> list[Path]:
    """Write a figure as <path>.png (200 dots an inch), .svg and .pdf, nothing cut off; their paths."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    dates = {"png": "Creation Time", "svg": "Date", "pdf": "CreationDate"}  # None: same picture, same bytes
    for suffix in formats:
        figure.savefig(f"{path}.{suffix}", dpi=200, bbox_inches="tight", metadata={dates[suffix]: None})
    return [Path(f"{path}.{suffix}") for suffix in formats]


def intervals(ax, found: pd.DataFrame, scale: float = 100) -> None:
    """Means with intervals as dots and bars, one line per estimator, the first on top; a line at 0.

    found: columns estimator, mean, low, high, in order; verdict, if there is one, fills the dots of what is told apart.
    """
    for place, row in enumerate(found.itertuples()):
        color = style(row.estimator)["color"]
        told = getattr(row, "verdict", "better") in ("better", "worse")
        if not np.isnan(row.low):
            ax.plot([scale * row.low, scale * row.high], [-place] * 2, color=color, linewidth=1.2)
        ax.plot(scale * row.mean, -place, "o", color=color, markerfacecolor=color if told else "white", markersize=4.5)
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
    _rows(ax, found.estimator)


def errors(ax, found: pd.DataFrame) -> None:
    """Spread over seeds as dots and binomial error as short lines, in points, one line per estimator, the first on top.

    found: indexed by estimator, columns std and binomial (`stats.seeds_and_test_set`); NaN is left out.
    """
    for place, (name, row) in enumerate(found.iterrows()):
        ax.plot([100 * row["binomial"]] * 2, [-place - 0.35, 0.35 - place], color=INK, linewidth=1)
        ax.plot(100 * row["std"], -place, "o", color=style(name)["color"], markersize=3.5)
    _rows(ax, found.index)


def _rows(ax, estimators) -> None:
    ax.set_yticks([-k for k in range(len(estimators))], [label(name) for name in estimators])
    ax.set_ylim(-len(estimators) + 0.4, 0.6)
    ax.spines[["top", "right"]].set_visible(False)


def curves_of(ax, source: paper.Source, names, mode: str = "remove", shares: bool = False, **look) -> None:
    """Curves of the paper's numbers or a study's, from their clean end; shares: of the clean accuracy above chance.

    `name_lines(ax)`, called last, names them.
    """
    table, end = getattr(source, mode), 0 if mode == "remove" else 100
    table = table.loc[in_order([n for n in names if n in table.index])].copy()
    table[end] = source.clean
    table = (source.share(table) if shares else table).sort_index(axis=1)
    found = table.rename_axis(columns="percent").stack().rename("mean").reset_index()
    found.columns = ["estimator", "percent", "mean"]
    found = found.assign(low=np.nan, high=np.nan)
    for name in table.index:
        line(found, name, ax, interval=False, **look)
    frame(ax, found, mode)


def points_named(ax, x: pd.Series, y: pd.Series) -> None:
    """Two numbers of each estimator against each other, in percent, each point named. Set the axes' labels before."""
    names = in_order(x.index.intersection(y.index))
    for name in names:
        look = style(name)
        ax.plot(100 * x[name], 100 * y[name], look["marker"] or "*", color=look["color"], markersize=5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(0.2, 0.12)
    ax.figure.canvas.draw()  # fixes the layout, which the places of the names depend on
    texts = [ax.text(100 * x[n], 100 * y[n], label(n), fontsize=6.5, color=INK) for n in names]
    leader = dict(arrowstyle="-", color=FAINT, linewidth=0.5)
    adjust_text(texts, ax=ax, expand=(1.15, 1.3), arrowprops=leader, max_move=None, ensure_inside_axes=False)
