"""The view of accuracy curves: an SVG whose lines tell their numbers when pointed at."""

import html

import matplotlib as mpl
import pandas as pd
from ipywidgets import Checkbox, Layout
from matplotlib.figure import Figure

from roarlib.study.names import BASES, CURVES, ENSEMBLES, MEASURES, MODES, UNITS, in_order, label, split_name
from roarlib.views import plots
from roarlib.views.svg import drawing, new_ids
from roarlib.views.view import OWN, WIDTH, View, base_of, choice, is_control, many, named, run

PANEL = {1: (4.6, 3.4), 2: (3.2, 3.4)}  # inches: width and height of axes, where there are so many
LEFT, RIGHT, BOTTOM, TOP = 0.55, 0.05, 0.45, 0.4  # inches around them


class Curves(View):
    """Accuracy over t from tidy tables, study name -> table.

    Controls: study (if there are several), unit, mode, measure, estimator, interval, bases, ensembles.
    """

    def __init__(self, tables: dict[str, pd.DataFrame]):
        self.tables, self.ids = tables, new_ids()
        if all(results(table).empty for table in tables.values()):
            said = (f"there are no results of {name} yet: {run(name)}" for name in tables)
            return super().__init__([], "; ".join(said))
        self.study = choice("study", list(tables), "whose results")
        self.unit = choice("unit", [], "what was ranked and removed")
        self.mode = choice("top inputs", [], "removed, or kept alone")
        self.measure = choice("models", [], "retrained on degraded images (ROAR) or not, or both")
        self.estimator = choice("highlight", [], "keep this one's colour and turn the others grey")
        tip = "95 percent t interval over seeds, as a band"
        self.interval = Checkbox(True, description="interval", tooltip=tip, layout=Layout(width=WIDTH))
        self.bases = many("bases", [], [], "families to show, beside the controls; several with Ctrl or Shift")
        self.ensembles = many("ensembles", [], [], "what is done with a base; several with Ctrl or Shift")
        self.fill()
        self.study.observe(self.fill, "value")  # before View's observer, which draws the new study
        controls = [self.unit, self.mode, self.measure, self.estimator, self.interval, self.bases, self.ensembles]
        super().__init__([self.study] * (len(tables) > 1) + controls)

    def fill(self, _change=None) -> None:
        """Offer what the study has; what was chosen before stays chosen where it is there."""
        found = results(self.tables[self.study.value])
        names = in_order(found["estimator"].unique())
        own = [n for n in names if not is_control(n)]
        titles = {b: look.label for b, look in BASES.items()} | {OWN: "your own"}
        options = {
            self.unit: named(UNITS, found["unit"]),
            self.mode: named(MODES, found["mode"]),
            self.measure: [*named({m: MEASURES[m] for m in CURVES}, found["measure"]), ("both", "both")],
            self.estimator: [("all in colour", ""), *((label(n), n) for n in names)],
            self.bases: named(titles, map(base_of, own)),
            self.ensembles: named({e: look.menu for e, look in ENSEMBLES.items()}, (split_name(n)[1] for n in own)),
        }
        self.busy = True  # one drawing for all of it
        for control, pairs in options.items():
            before, all_before = control.value, [value for _, value in control.options]
            control.options = pairs
            there = [value for _, value in pairs]
            if control in (self.bases, self.ensembles):  # what the study before did not have is shown
                control.value = tuple(v for v in there if v in before or v not in all_before)
                control.rows = max(len(pairs), 1)
            elif before in there:
                control.value = before
            elif there:
                control.value = there[0]
        self.settle(found)
        self.busy = False

    def settle(self, found: pd.DataFrame) -> None:
        """Go to results that are there, retrained ones if any, where the choice has none."""
        controls = {"measure": self.measure, "unit": self.unit, "mode": self.mode}
        measures = list(CURVES) if self.measure.value == "both" else [self.measure.value]
        fits = found["measure"].isin(measures) & (found["unit"] == self.unit.value) & (found["mode"] == self.mode.value)
        if len(found) and found.loc[fits, "measure"].nunique() < len(measures):
            first = found.sort_values("measure", key=lambda m: m != "retrain", kind="stable").iloc[0]
            for name, control in controls.items():
                control.value = first[name]

    @mpl.rc_context(plots.LOOK)
    def draw(self) -> Figure:
        name, highlight = self.study.value, self.estimator.value
        if results(self.tables[name]).empty:
            raise LookupError(f"there are no results of {name} yet: {run(name)}")
        measures = ("deletion", "retrain") if self.measure.value == "both" else (self.measure.value,)
        wanted = [self.wanted(measure) for measure in measures]
        letters = max((len(label(n)) for names in (*wanted, [highlight]) for n in names or [] if n), default=0)
        wide, high = PANEL[len(measures)]
        room = 0.08 * wide + 0.68 * letters * plots.TEXT / 72  # inches for the names at the lines' ends
        size = (LEFT + len(measures) * (wide + room) + RIGHT, BOTTOM + high + TOP)
        figure = Figure(size, layout="none")  # margins by hand: half the time of a layout engine
        axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        figure.subplots_adjust(
            LEFT / size[0], BOTTOM / size[1], 1 - (room + RIGHT) / size[0], 1 - TOP / size[1], wspace=room / wide
        )
        for ax, measure, names in zip(axes, measures, wanted, strict=True):
            plots.curves(
                self.tables[name],
                ax,
                names,
                [highlight] if highlight else None,
                measure,
                self.unit.value,
                self.mode.value,
                self.interval.value,
                named=False,
            )
        for ax in axes:
            plots.name_lines(ax)
        self.titles = mark(axes)
        return figure

    def wanted(self, measure: str) -> list[str] | None:
        """The controls and the estimators of the bases and ensembles chosen; None where there are no such results."""
        table = self.tables[self.study.value]
        same = {"measure": measure, "unit": self.unit.value, "mode": self.mode.value}
        there = table.loc[(table[list(same)] == pd.Series(same)).all(axis=1), "estimator"].unique()
        names = [n for n in in_order(there) if is_control(n) or self.picked(n)]
        if len(there) and not names:
            raise LookupError("choose at least one base and one ensemble")
        return names or None

    def picked(self, name: str) -> bool:
        return base_of(name) in self.bases.value and split_name(name)[1] in self.ensembles.value

    def caption(self) -> str:
        titles = MEASURES | {"both": "retrained and not"}
        text = (
            f"{self.study.value}: models {titles[self.measure.value]}, top {UNITS[self.unit.value]} "
            f"{MODES[self.mode.value]}"
        )
        return html.escape(text + (f", {label(self.estimator.value)} in colour" if self.estimator.value else ""))

    def alt(self) -> str:
        """All accuracies, a sentence a line."""
        panels = (" ".join(title.replace("\n", ", ") + "." for title in titles) for titles in self.titles)
        return "Test accuracy over t, the percent of inputs, by estimator. " + " ".join(panels)

    def shown(self) -> str:
        return drawing(self.figure, self.alt(), self.ids, self.titles)


def results(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that curves are drawn from."""
    return table[table["measure"].isin(CURVES) & (table["estimator"] != "clean")]


def mark(axes) -> list[list[str]]:
    """Give lines and their names the gids that `svg.drawing` wants; returns its titles: panel -> line -> text.

    A line has the same number in every panel.
    """
    labels = list(dict.fromkeys(line.get_label().removeprefix("_") for ax in axes for line in ax.lines))
    titles = [["" for _ in labels] for _ in axes]
    for panel, ax in enumerate(axes):
        for line in ax.lines:
            name = line.get_label().removeprefix("_")
            k = labels.index(name)
            points = (f"t = {t:g}: {accuracy:.1f}%" for t, accuracy in line.get_xydata())
            titles[panel][k] = "\n".join([f"{name}, {ax.get_title(loc='left').split(',')[0]}", *points])
            line.set_gid(f"line:{panel}:{k}")
        for text in ax.texts:
            text.set_gid(f"line:{panel}:{labels.index(text.get_text())}")
    return titles
