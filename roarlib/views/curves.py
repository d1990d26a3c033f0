"""The view of accuracy curves: a figure as inline SVG whose lines light up and show their numbers when pointed at."""

import html
import re
from io import StringIO
from uuid import uuid4

import matplotlib as mpl
import pandas as pd
from ipywidgets import Checkbox, Dropdown, SelectMultiple
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from roarlib.answers import stats
from roarlib.study.names import CURVES, ENSEMBLES, FIXED, MEASURES, MODES, NAMED, UNITS, in_order, label, split_name
from roarlib.views import plots
from roarlib.views.sheets import DPI
from roarlib.views.view import FITS, RUN, View, named, several

OWN = "own"  # stands for the bases of users' own estimators
WIDE, HIGH = 5.4, 4.0  # inches, of a panel with its names
EXTREMES = 3  # lines at either end that are drawn at first
LINES = [("best and worst three", True), ("all chosen below", False)]
POINTER = 8  # points: how wide a line is to the pointer


class Curves(View):
    """Accuracy over t from tidy tables, study name -> table.

    Controls: study (if there are several), unit, mode, measure, lines, estimator, interval, bases, ensembles.
    """

    def __init__(self, tables: dict[str, pd.DataFrame]):
        self.tables, self.ids = tables, f"v{uuid4().hex[:8]}"
        if all(results(table).empty for table in tables.values()):
            return super().__init__("; ".join(f"there are no results of {name} yet: {RUN}" for name in tables))
        self.study = Dropdown(options=list(tables), tooltip="whose results")
        tip = "models retrained on degraded images (ROAR) or not, or both"
        super().__init__(
            **({"study": self.study} if len(tables) > 1 else {}),
            unit=Dropdown(tooltip="what was ranked and removed"),
            mode=Dropdown(description="top inputs", tooltip="removed, or kept alone"),
            measure=Dropdown(description="models", tooltip=tip),
            lines=Dropdown(options=LINES, tooltip="beside the controls"),
            estimator=Dropdown(description="highlight", tooltip="keep this one's colour and turn the others grey"),
            interval=Checkbox(True, tooltip="95 percent t interval over seeds, as a band"),
            bases=several({}, "families to show, beside the controls"),
            ensembles=several({}, "what is done with a base"),
        )

    def settle(self, changed) -> None:
        """Offer what the study has; what was chosen before stays chosen if it is still there."""
        if changed not in (None, self.study):
            return
        found = results(self.tables[self.study.value])
        names = in_order(found["estimator"].unique())
        families = [family(name) for name in names if family(name)]
        titles = {base: look.label for base, look in NAMED.items()} | {OWN: "your own"}
        options = {
            self.unit: named(UNITS, found["unit"]),
            self.mode: named(MODES, found["mode"]),
            self.measure: [*named({m: MEASURES[m] for m in CURVES}, found["measure"]), ("both", "both")],
            self.estimator: [("all in colour", ""), *((label(n), n) for n in names)],
            self.bases: named(titles, (base for base, _ in families)),
            self.ensembles: named({e: look.menu for e, look in ENSEMBLES.items()}, (e for _, e in families)),
        }
        for control, pairs in options.items():
            before, all_before = control.value, [value for _, value in control.options]
            control.options = pairs
            there = [value for _, value in pairs]
            if isinstance(control, SelectMultiple):  # what the study before did not have is shown
                control.value = [v for v in there if v in before or v not in all_before]
                control.rows = max(len(pairs), 1)
            elif there:
                control.value = before if before in there else there[0]
        fits = found[(found["unit"] == self.unit.value) & (found["mode"] == self.mode.value)]
        if len(found) and not set(self.measures()) <= set(fits["measure"]):  # go to results, retrained ones if any
            first = found.sort_values("measure", key=lambda m: m != "retrain", kind="stable").iloc[0]
            self.measure.value, self.unit.value, self.mode.value = first[["measure", "unit", "mode"]]

    def measures(self) -> list[str]:
        return ["deletion", "retrain"] if self.measure.value == "both" else [self.measure.value]

    def draw(self) -> Figure:
        name, highlight = self.study.value, self.estimator.value
        table = self.tables[name]
        if results(table).empty:
            raise LookupError(f"there are no results of {name} yet: {RUN}")
        same = {"unit": self.unit.value, "mode": self.mode.value}
        each = [{"measure": m, "estimators": self.wanted(table, measure=m, **same)} for m in self.measures()]
        figure = Figure((WIDE * len(each), HIGH), layout="constrained")
        axes = figure.subplots(1, len(each), squeeze=False, sharey=True)[0]
        highlight = [highlight] if highlight else None
        plots.panels(axes, table, each, highlight=highlight, interval=self.interval.value, **same)
        self.words = pointable(axes)
        return figure

    def wanted(self, table: pd.DataFrame, **where) -> list[str] | None:
        """The controls and the estimators of the bases and ensembles chosen; None where there are no such results."""
        rows = table[(table[list(where)] == pd.Series(where)).all(axis=1)]
        there = in_order(rows["estimator"].unique())
        shown = {(base, ensemble) for base in self.bases.value for ensemble in self.ensembles.value} | {None}
        names = [name for name in there if family(name) in shown]
        if there and not names:
            raise LookupError("choose at least one base and one ensemble")
        return self.extremes(rows, names, where["mode"]) if self.lines.value and names else names or None

    def extremes(self, rows: pd.DataFrame, names: list[str], mode: str) -> list[str]:
        """The controls, the one that is highlighted, and of the others the best and the worst few."""
        rows = stats.complete(rows[rows["estimator"].isin(names)])
        wide = rows.pivot_table(index="estimator", columns="percent", values="accuracy")
        order = list(stats.goodness(wide, mode).sort_values().index)
        order = [name for name in order if family(name)]
        always = {self.estimator.value, *(name for name in names if not family(name))}
        return [name for name in names if name in {*always, *order[:EXTREMES], *order[-EXTREMES:]}]

    def caption(self) -> str:
        models = (MEASURES | {"both": "retrained and not"})[self.measure.value]
        text = f"{self.study.value}: models {models}, top {UNITS[self.unit.value]} {MODES[self.mode.value]}"
        text += f", {label(self.estimator.value)} in colour" if self.estimator.value else ""
        if self.interval.value and self.measure.value != "deletion":
            text += f"; {stats.reach(self.tables[self.study.value])}"
        return html.escape(text)

    def shown(self) -> str:
        return drawing(self.figure, self.words, self.ids)


def results(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that curves are drawn from."""
    return table[table["measure"].isin(CURVES) & (table["estimator"] != "clean")]


def family(name: str) -> tuple[str, str] | None:
    """An estimator's base (OWN for users') and ensemble; None for Random, Sobel and the like."""
    base, ensemble = split_name(name)
    return None if base in FIXED else (base if base in NAMED else OWN, ensemble)


def pointable(axes) -> str:
    """Get lines and their names ready for `drawing`; returns all of their numbers in words.

    A line and its name have the gid 'line:k:tooltip', with k the same in every panel; an invisible wide line under all
    lines has 'near:k:tooltip', so that a thin line takes precedence over the wide rims of others.
    """
    labels = list(dict.fromkeys(line.get_label().removeprefix("_") for ax in axes for line in ax.lines))
    words = "Test accuracy over t, the percent of inputs, by estimator."
    for ax in axes:
        gids = {}
        for line in list(ax.lines):
            name = line.get_label().removeprefix("_")
            points = (f"t = {t:g}: {accuracy:.1f}%" for t, accuracy in line.get_xydata())
            said = [f"{name}, {ax.get_title(loc='left').split(',')[0]}", *points]
            words += f" {', '.join(said)}."
            gids[name] = f"{labels.index(name)}:" + "\n".join(said)
            line.set_gid(f"line:{gids[name]}")
            ax.plot(*line.get_data(), linewidth=POINTER, alpha=0, zorder=0, gid=f"near:{gids[name]}")
        for text in ax.texts:
            text.set_gid(f"line:{gids[text.get_text()]}")
    return words


def drawing(figure: Figure, words: str, ids: str) -> str:
    """A `pointable` figure as inline SVG: pointing at a line or its name thickens the line and shows its numbers.

    ids: a prefix for ids, unlike any other on a page, even those of other notebooks and kernels.
    """
    file, nothing = StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": ids}):
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    body = re.sub("<style.*?</style>", "", file.getvalue(), flags=re.S)  # matplotlib's rule would be for the whole page
    lines = set(re.findall(r'<g id="line:(\d+):', body))
    body = re.sub(r'(<g id="near:[^>]*>\s*<path)', r'\1 class="near"', body)
    body = re.sub(r'<g id="(?:near|line):(\d+):([^"]*)">', r'<g class="e\1 line"><title>\2</title>', body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{ids}-", body)
    style = f"#{ids} * {{stroke-linejoin: round; pointer-events: none}}#{ids} .line * {{pointer-events: auto}}"
    for k in lines:
        lit = f"#{ids}:has(.e{k}:hover) .e{k}"
        style += f"{lit}>path:not(.near) {{stroke-width: 3px !important}}{lit} text {{font-weight: bold}}"
    box, body = re.search(r'<svg .*?(viewBox="[^"]*")[^>]*>(.*)', body, re.S).groups()
    wide = round(figure.get_figwidth() * DPI)
    head = f'<svg id="{ids}" role="img" aria-label="{html.escape(words)}" style="width: {wide}px; {FITS}" {box}>'
    return f"{head}<style>{style}</style>{body}"
