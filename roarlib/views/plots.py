"""Pictures of a study: from the tidy table to matplotlib axes; the one palette and the one label map.

Colour says which ensemble, dashes which base, so an estimator looks the same in every figure. The colours are
Okabe and Ito's (2008), which colour-blind readers tell apart; lines are named at their ends, not in a legend.
"""

import os
import textwrap
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from roarlib import remove, stats
from roarlib.degrade import as_seen
from roarlib.labels import name_lines
from roarlib.names import PAPER, parent_of, split_name, variant_of

INK, QUIET, FAINT = "#222222", "#666666", "#c4c4c4"  # text; notes and Sobel; lines that are only context
TEXT = 7.5  # points: readable in a column 8.5 cm wide
LOOK = {  # white paper whatever the theme around it: JupyterLab's dark one, or the caller's style
    **{f"{part}.facecolor": "white" for part in ("figure", "savefig", "axes")},
    **{f"{part}color": INK for part in ("text.", "axes.label", "axes.title", "xtick.label", "ytick.label")},
    **{f"{part}color": QUIET for part in ("axes.edge", "xtick.", "ytick.")},
    **{f"{part}size": TEXT for part in ("font.", "axes.label", "axes.title", "xtick.label", "ytick.label")},
    "axes.grid": False, "axes.linewidth": 0.7, "font.family": "sans-serif",
    "pdf.fonttype": 42, "svg.hashsalt": "roar",
}  # fmt: skip

BASES = {"grad": ("GRAD", "-"), "gb": ("GB", (0, (5, 1.5))), "ig": ("IG", (0, (1.5, 1)))}  # label, dashes
USERS_DASHES = (0, (6, 1.5, 1.5, 1.5))
ENSEMBLES = {  # label, colour, marker
    "": ("{}", "#0072B2", "o"), "squared": ("{}²", "#56B4E9", "s"), "sg": ("SG-{}", "#D55E00", "^"),
    "sg-squared": ("(SG-{})²", "#E69F00", "v"), "sgsq": ("SG-SQ-{}", "#009E73", "D"),
    "var": ("VAR-{}", "#CC79A7", "P"),
}  # fmt: skip
CONTROLS = {  # label, colour, marker, dashes
    "random": ("Random", "#000000", "", (0, (4, 2))), "sobel": ("Sobel", "#808080", "x", "-"),
    "oracle": ("Oracle", "#8C510A", "*", "-"), "anti-oracle": ("Anti-oracle", "#8C510A", "*", (0, (2, 2))),
}  # fmt: skip
MEASURES = {"retrain": "retrained", "deletion": "not retrained"}
UNITS = {"value": "single values", "pixel": "whole pixels"}
MODES = {
    "remove": "removed", "keep": "kept", "remove-imputed": "removed and imputed",
    "keep-imputed": "kept, the rest imputed", "mask": "removed, their mask alone",
}  # fmt: skip
VARIANTS = {  # label, dashes
    "blur": ("{} blurred", (0, (1, 1))), "max": ("{} max-filtered", (0, (1, 2))), "abs": ("|{}|", (0, (3, 1, 1, 1))),
    "reversed": ("{} reversed", (0, (2, 2))), "recursive": ("{} recursive", (0, (7, 2))),
}  # fmt: skip


def label(name: str) -> str:
    """The name as readers know it: 'ig-sg-squared' -> '(SG-IG)²'; users' own estimators keep their name."""
    if variant := variant_of(name):
        return VARIANTS[variant][0].format(label(parent_of(name)))
    if name in CONTROLS:
        return CONTROLS[name][0]
    base, ensemble = split_name(name)
    return ENSEMBLES[ensemble][0].format(BASES[base][0] if base in BASES else base)


def style(name: str) -> dict:
    """Line keywords of an estimator: color, linestyle, marker, linewidth, markersize."""
    if variant := variant_of(name):
        return style(parent_of(name)) | dict(linestyle=VARIANTS[variant][1], linewidth=1.1)
    if name in CONTROLS:
        _, color, marker, dashes = CONTROLS[name]
    else:
        base, ensemble = split_name(name)
        _, color, marker = ENSEMBLES[ensemble]
        dashes = BASES[base][1] if base in BASES else USERS_DASHES
    width = 1.8 if name == "random" else 1.3
    return dict(color=color, linestyle=dashes, marker=marker, linewidth=width, markersize=3.5)


def in_order(names) -> list[str]:
    """Estimators in the paper's order, base by base, then users' own by name, then controls; variants after each."""
    known = [n for n in PAPER if n not in CONTROLS]
    plain = {parent_of(n) if variant_of(n) else n for n in names}
    own = sorted(plain - {*known, *CONTROLS})
    parts = ("", *(f"-{v}" for v in VARIANTS))
    return [n + part for n in (*known, *own, *CONTROLS) for part in parts if n + part in set(names)]


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
        raise LookupError(f"no {measure} results for unit {unit} and mode {mode} yet: "
                          f"run `roar run params/{name}.yaml` with both in its lists")
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


def curve(table, estimator, ax, measure="retrain", unit="value", mode="remove", interval=True, chance=None,
          **keywords):
    """One estimator's accuracy over t; returns the line. `name_lines(ax)`, called last, names several.

    chance: accuracy 0..1 to draw. keywords override the `style`. Raises LookupError without results.
    """
    found = points(table, measure, unit, mode)
    chosen(found, [estimator])
    frame(ax, found, mode, chance)
    return line(found, estimator, ax, interval, **keywords)


def curves(table, ax, estimators=None, highlight=None, measure="retrain", unit="value", mode="remove",
           interval=True, chance=None, named=True):
    """All estimators (or those named) on one axes, each line named at its end.

    highlight: names that keep their colour; Random and Sobel keep theirs too, all others turn to grey context
    without a name. interval: 95 percent t bands over seeds. n and interval are said above the axes.
    named: False where more is to be drawn first, then `name_lines(ax)`. Raises LookupError without results.
    """
    found = points(table, measure, unit, mode)
    names = chosen(found, estimators)
    chosen(found, highlight)  # raises if not there
    loud = set(names) if highlight is None else {*highlight, *CONTROLS}
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
    controls, panels = [n for n in names if n in CONTROLS], {}
    for name in names[: len(names) - len(controls)]:
        base, _ = split_name(name)
        panels.setdefault(BASES[base][0] if base in BASES else "Your own", []).append(name)
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


def roar_and_deletion(table, unit="value", mode="remove", estimators=None, highlight=None, interval=True,
                      chance=None):
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
    ends = (100, min(percents, default=0)) if remove.keeps(mode) else (0, max(percents, default=100))
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


def image(ax, pixels, title: str = "") -> None:
    """Show one uint8 image (C, H, W), C 1 (grey) or 3, without ticks."""
    shown = pixels[0] if len(pixels) == 1 else np.moveaxis(np.asarray(pixels), 0, -1)
    ax.imshow(shown, cmap="gray", vmin=0, vmax=255)  # colour map and range only count for grey
    bare(ax, title)


def importance(ax, ranking, title: str = "") -> None:
    """Show a ranking (C or 1, H, W) as a map: the most important inputs bright, mean of the channels."""
    ax.imshow(100 - np.asarray(ranking, dtype=float).mean(0), cmap="inferno", vmin=0, vmax=100)
    bare(ax, title)


def bare(ax, title: str) -> None:
    """Leave of the axes only what is drawn and a small title."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=TEXT, color=INK, pad=3)


def degraded_sheet(pixels, rankings: dict, percents, mode="remove", fill=(0, 0, 0)):
    """One image as each estimator degrades it: estimators in rows, percents in columns (paper, Figure 1).

    pixels: uint8 (C, H, W). rankings: name -> this image's ranking. fill: training mean per channel, 0..255.
    First come the image and its importance. Raises LookupError where no ranking is given.
    """
    if not rankings:
        raise LookupError("no rankings to show yet: run `roar run params/<name>.yaml`")
    columns = ["image", "importance", *(textwrap.fill(f"{t}% {MODES[mode]}", 18) for t in percents)]
    wide, high = len(columns), len(rankings)
    figure, axes = subplots(high, wide, (0.8 + 0.95 * wide, 0.2 + 0.94 * high))
    for row, name in zip(axes, in_order(rankings), strict=True):
        image(row[0], pixels)
        importance(row[1], rankings[name])
        for ax, percent in zip(row[2:], percents, strict=True):
            image(ax, as_seen(pixels, rankings[name], percent, mode, fill))
        row[0].set_ylabel(label(name), rotation=0, ha="right", va="center", fontsize=TEXT, color=INK)
    for ax, title in zip(axes[0], columns, strict=True):
        bare(ax, title)
    return figure


@mpl.rc_context(LOOK)
def save(figure, path: str | Path, formats=("png", "svg", "pdf")) -> list[Path]:
    """Write a figure as <path>.png (200 dots an inch), .svg and .pdf, nothing cut off; their paths."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    dates = {"png": "Creation Time", "svg": "Date", "pdf": "CreationDate"}  # None: same picture, same bytes
    for suffix in formats:
        figure.savefig(f"{path}.{suffix}", dpi=200, bbox_inches="tight", metadata={dates[suffix]: None})
    return [Path(f"{path}.{suffix}") for suffix in formats]
