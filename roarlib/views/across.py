"""Several studies in one picture: differences from Random by study, and mean ranks with their critical difference."""

import html

import pandas as pd
from ipywidgets import Dropdown
from matplotlib.figure import Figure

from roarlib.answers import across
from roarlib.study.names import MODES, UNITS, label, style
from roarlib.views import plots
from roarlib.views.view import View, named, several

HIGH, WIDE = 0.19, 2.3  # inches per row; per study


def differences(axes, compared: across.Compared) -> None:
    """Differences from Random in points with 95 percent intervals, one axes per study, the same rows in each.

    Ranked estimators come first; dots are filled by verdict, see `plots.intervals`.
    """
    rows = [name for name in across.order(compared) if name != "random"]
    for ax, (name, of) in zip(axes, compared.found.groupby("study", sort=False), strict=True):
        plots.intervals(ax, of.set_index("estimator").reindex(rows).rename_axis("estimator").reset_index())
        ax.set_title(name, loc="left", fontsize=plots.TEXT)


def ranks(ax, means: pd.Series, critical: float) -> None:
    """Mean ranks (`across.ranks`) on a line, the best at the left; a bar joins those that cannot be told apart.

    The critical difference is drawn to scale above the line. Source: the diagram of Demsar (2006), figure 1.
    """
    bars = across.joined(means, critical)
    k, low = len(means), -0.5 * len(bars)
    ink = dict(color=plots.INK, clip_on=False)
    ax.plot([1, k], [0, 0], linewidth=1, **ink)
    ax.plot([1, 1 + critical], [1, 1], marker="|", linewidth=1.2, **ink)
    ax.text(1, 1.3, f"critical difference {critical:.2f}", fontsize=plots.TEXT)
    for tick in range(1, k + 1):
        ax.plot([tick, tick], [0, 0.15], linewidth=1, **ink)
        ax.text(tick, 0.25, tick, ha="center", fontsize=plots.TEXT)
    for number, ends in enumerate(bars):
        ax.plot(ends, [-0.5 * (number + 1)] * 2, linewidth=3, solid_capstyle="round", **ink)
    for place, (name, rank) in enumerate(means.items()):
        left = place < (k + 1) // 2
        depth, side = low - 1 - (place if left else k - 1 - place), 0.9 if left else k + 0.1
        ax.plot([rank, rank, side], [0, depth, depth], color=style(name)["color"], linewidth=1, zorder=0)
        at = dict(ha="right" if left else "left", va="center", fontsize=plots.TEXT)
        ax.text(side, depth, f" {label(name)}, {rank:.1f} ", **at)
    ax.set(xlim=(0.2, k + 0.8), ylim=(low - 1.5 - (k + 1) // 2, 2))
    ax.set_axis_off()


class Across(View):
    """Several studies side by side. parts: of `across.load`. Controls: studies, question (unit and mode)."""

    def __init__(self, parts: dict):
        self.parts = parts
        sides = [side for table, _ in parts.values() for side in zip(table["unit"], table["mode"], strict=True)]
        titles = {(unit, mode): across.said((unit, mode)) for unit in UNITS for mode in MODES if mode != "mask"}
        studies = several(dict(zip(parts, parts, strict=True)), "studies to compare")
        studies.value = tuple(parts)
        question = Dropdown(options=[("what most share", ("", "")), *named(titles, sides)], tooltip="unit and mode")
        super().__init__(studies=studies, question=question)

    def draw(self) -> Figure:
        self.compared = across.compare({name: self.parts[name] for name in self.studies.value}, *self.question.value)
        means, critical = across.ranks(self.compared.scores)
        studies, rows = self.compared.found["study"].nunique(), self.compared.scores.shape[1]
        ranked = 0.3 * len(means) + 0.8 if len(means) > 2 else 0
        figure = Figure((1.2 + WIDE * studies, 0.8 + HIGH * rows + ranked), layout="constrained")
        upper, *lower = figure.subfigures(2, 1, height_ratios=[0.8 + HIGH * rows, ranked]) if ranked else [figure]
        differences(upper.subplots(1, studies, squeeze=False, sharey=True)[0], self.compared)
        upper.supxlabel("accuracy minus Random's, points", fontsize=plots.TEXT)
        for part in lower:
            ranks(part.subplots(), means, critical)
        self.words = " ".join(across.in_words(self.compared))
        return figure

    def caption(self) -> str:
        return "<br>".join(map(html.escape, across.in_words(self.compared)))
