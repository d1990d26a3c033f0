"""Views of stored results to click through in a notebook: `curves(study)` and `images(study)`.

A view is a box of controls over one PNG, drawn anew when a control changes. There is no Output widget and no
`interact`: both can hang a headless run, and this way a view draws, and is tested, without a browser.
"""

import html
import re
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pandas as pd
from ipywidgets import HTML, Button, Checkbox, Dropdown, HBox, Image, IntSlider, Layout, SelectMultiple, VBox
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from roarlib import data as datasets
from roarlib import params, plots, rankings, results

DPI = 110
OWN = "own"  # stands for the bases of users' own estimators
CELL = 1.45  # inches a small image: at least three dots a pixel at 32 x 32, so that pixels stay square
FIRST = ("grad", "grad-sgsq", "random")  # shown at first, where they are there


class View(VBox):
    """Controls, a message and a picture. `figure` is the Figure shown, None while there is only a message."""

    busy = False  # True while controls set one another

    def __init__(self, controls: list, missing: str = ""):
        self.figure = None
        self.message = HTML()
        self.picture = Image(format="png", layout=Layout(max_width="100%", object_fit="contain"))
        if missing:
            super().__init__([self.message])
            return self.say(missing)
        row = HBox(controls, layout=Layout(flex_flow="row wrap", align_items="flex-start"))
        super().__init__([row, self.message, self.picture])
        for control in controls:
            if not isinstance(control, Button):
                control.observe(self.redraw, "value")
        self.redraw()

    def draw(self) -> Figure:
        """The picture for the controls as they are; LookupError, one sentence, where there is none."""
        raise NotImplementedError

    def redraw(self, _change=None) -> None:
        if self.busy:
            return
        try:
            self.figure = self.draw()
        except LookupError as problem:
            return self.say(str(problem.args[0]))
        self.message.layout.display, self.picture.layout.display = "none", None
        self.picture.value = png(self.figure)

    def say(self, sentence: str) -> None:
        """Show a sentence in place of the picture; what stands in `backticks` is set as code."""
        text = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(sentence[:1].upper() + sentence[1:]))
        self.figure, self.message.value = None, f"<p>{text}</p>"
        self.message.layout.display, self.picture.layout.display = None, "none"


class Curves(View):
    """Accuracy over t from a tidy table. Controls: unit, mode, measure, bases, estimator, interval."""

    def __init__(self, table: pd.DataFrame, name: str):
        self.table = table
        found = table[table["measure"].isin(plots.MEASURES) & (table["estimator"] != "clean")]
        if found.empty:
            return super().__init__([], f"there are no results of {name} yet: {run(name)}")
        names = plots.in_order(found["estimator"].unique())
        bases = {base_of(n): None for n in names if n not in plots.CONTROLS}
        self.unit = choice("unit", named(plots.UNITS, found["unit"]), "what was ranked and removed")
        self.mode = choice("top inputs", named(plots.MODES, found["mode"]), "removed, or kept alone")
        options = [*named(plots.MEASURES, found["measure"]), ("both", "both")]
        self.measure = choice("models", options, "retrained on degraded images (ROAR) or not, or both")
        titles = [(plots.BASES[b][0] if b in plots.BASES else "your own", b) for b in bases]
        self.bases = many("bases", titles, list(bases), "families of estimators to show, beside the controls")
        options = [("all in colour", None), *((plots.label(n), n) for n in names)]
        self.estimator = choice("highlight", options, "keep this one's colour and turn the others grey")
        tip = "95 percent t interval over seeds, as a band"
        self.interval = Checkbox(True, description="interval", indent=False, tooltip=tip)
        super().__init__([self.unit, self.mode, self.measure, self.bases, self.estimator, self.interval])

    @mpl.rc_context(plots.LOOK)
    def draw(self) -> Figure:
        both, highlight = self.measure.value == "both", self.estimator.value
        measures = ("deletion", "retrain") if both else (self.measure.value,)
        figure = Figure((4.4 * len(measures) + 0.4, 3.8), DPI, layout="constrained")
        axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for ax, measure in zip(axes, measures, strict=True):
            shown = self.shown(measure)
            plots.curves(self.table, ax, shown, highlight and [highlight], measure, self.unit.value,
                         self.mode.value, self.interval.value, named=False)
        for ax in axes:
            plots.name_lines(ax)
        return figure


    def shown(self, measure: str) -> list[str] | None:
        """The controls and the estimators of the bases chosen; None where the study has no such results."""
        same = {"measure": measure, "unit": self.unit.value, "mode": self.mode.value}
        there = self.table.loc[(self.table[list(same)] == pd.Series(same)).all(axis=1), "estimator"].unique()
        names = [n for n in plots.in_order(there) if n in plots.CONTROLS or base_of(n) in self.bases.value]
        if len(there) and not names:
            raise LookupError("choose at least one base")
        return names or None


class Images(View):
    """Images of a study with what each estimator removes or keeps of them.

    found: (estimator, unit, split) -> ranking uint8 (N, C or 1, H, W). predictions: split -> the base model's
    class of every image (N,). Controls: split, unit, class_name, prediction, index, surprise, estimators,
    percent.
    """

    def __init__(self, data: datasets.Data, found: dict, predictions: dict, name: str):
        if not found:
            return super().__init__([], f"there are no rankings of {name} yet: {run(name)}")
        self.data, self.found, self.predictions = data, found, predictions
        estimators, units, splits = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
        names = plots.in_order(estimators)
        classes = [("all", None), *((c, i) for i, c in enumerate(data.classes))]
        filters = [("all", None), ("correct", True), ("wrong", False)]
        self.split = choice("split", sorted(splits), "which images: of the test or the training set")
        self.class_name = choice("class", classes, "only images of this true class")
        self.prediction = choice("prediction", filters, "only images the base model gets right, or wrong")
        self.prediction.disabled = not predictions
        self.index = IntSlider(0, 0, 0, description="image", tooltip="which of the images selected, from 0")
        self.surprise = Button(description="surprise me", tooltip="another image of the selection, at random")
        self.unit = choice("unit", named(plots.UNITS, units), "what is ranked and removed")
        first = [n for n in FIRST if n in names] or names[:3]
        titles = [(plots.label(n), n) for n in names]
        self.estimators = many("estimators", titles, first, "one row each; several with Ctrl or Shift")
        tip = "share of inputs that is removed, and kept beside it"
        self.percent = IntSlider(30, 0, 100, description="percent t", tooltip=tip)
        for control in (self.split, self.class_name, self.prediction):
            control.observe(self.select, "value")  # before View's observers, which draw the new selection
        self.surprise.on_click(self.jump)
        self.select()
        super().__init__([self.split, self.class_name, self.prediction, self.index, self.surprise, self.unit,
                          self.estimators, self.percent])

    def select(self, _change=None) -> None:
        """Find the images that pass the filters and set the image slider to them."""
        labels = self.data.split(self.split.value).labels
        keep = np.ones(len(labels), dtype=bool)
        if self.class_name.value is not None:
            keep &= labels == self.class_name.value
        if self.prediction.value is not None and self.split.value in self.predictions:
            keep &= (self.predictions[self.split.value] == labels) == self.prediction.value
        self.selected = np.flatnonzero(keep)
        self.busy = True  # the slider's own change is not to draw what the caller draws next
        self.index.max = max(len(self.selected) - 1, 0)
        self.index.value = 0
        self.busy = False

    def jump(self, _button=None) -> None:
        """Go to another image of the selection."""
        if len(self.selected) > 1:
            step = np.random.default_rng().integers(1, len(self.selected))
            self.index.value = (self.index.value + int(step)) % len(self.selected)

    @mpl.rc_context(plots.LOOK)
    def draw(self) -> Figure:
        split, unit, percent = self.split.value, self.unit.value, self.percent.value
        if not len(self.selected):
            raise LookupError("no image passes these filters: choose another class or prediction")
        there = [n for n in self.estimators.value if (n, unit, split) in self.found]
        if not self.estimators.value:
            raise LookupError("choose at least one estimator")
        if not there:
            raise LookupError("the estimators chosen are not ranked for this split and unit: choose others")
        number = self.selected[self.index.value]
        pixels, fill = self.data.split(split).images[number], 255 * self.data.mean
        size = np.array([4 * CELL + 1.2, len(there) * (CELL + 0.1) + 0.5])  # inches
        figure = Figure(size, DPI)
        axes = figure.subplots(len(there), 4, squeeze=False)
        low, high = np.array([1.15, 0.05]) / size, 1 - np.array([0.05, 0.5]) / size  # by hand: quicker
        figure.subplots_adjust(*low, *high, wspace=0.06, hspace=0.07)
        titles = ["image", "importance", f"top {percent}% removed", f"top {percent}% kept"]
        for row, name in zip(axes, there, strict=True):
            ranking = self.found[name, unit, split][number]
            plots.image(row[0], pixels)
            plots.importance(row[1], ranking)
            for ax, mode in zip(row[2:], ("remove", "keep"), strict=True):
                plots.image(ax, plots.degrade(pixels, ranking, percent, mode, fill))
            row[0].set_ylabel(plots.label(name), rotation=0, ha="right", va="center")
        for ax, title in zip(axes[0], titles, strict=True):
            plots.bare(ax, title)
        figure.suptitle(self.caption(number), x=0.01, y=1 - 0.06 / size[1], ha="left", va="top",
                        fontsize=plots.TEXT + 0.5)
        return figure

    def caption(self, number: int) -> str:
        """'test image 7 (1 of 20 selected): true class cat; predicted dog, wrong'."""
        split, label = self.split.value, self.data.split(self.split.value).labels[number]
        text = f"{split} image {number} ({self.index.value + 1} of {len(self.selected)} selected)"
        text += f"\ntrue class: {self.data.classes[label]}"
        if split in self.predictions:
            guess = self.predictions[split][number]
            text += f"; predicted: {self.data.classes[guess]} ({'correct' if guess == label else 'wrong'})"
        return text


def curves(study: params.Study) -> Curves:
    """Accuracy curves of a study to click through; a sentence that says what to run where there are none."""
    return Curves(results.table(study), study.name)


def images(study: params.Study) -> View:
    """Images of a study and what estimators remove of them; a sentence that says what to run if unranked."""
    keys = [(e, u, s) for e in study.estimators for u in study.units for s in datasets.SPLITS]
    found = {key: rankings.load(study, *key) for key in keys if rankings.path(study, *key).is_file()}
    base = study.folder / "01-train" / "base"
    files = {split: base / f"predictions-{split}.npy" for split in datasets.SPLITS}
    predictions = {s: np.load(file, allow_pickle=False) for s, file in files.items() if file.is_file()}
    try:
        data = datasets.load(study) if found else None
    except params.InputError as problem:  # the rankings are there, but the images are not
        return View([], str(problem))
    return Images(data, found, predictions, study.name)


def run(name: str) -> str:
    """What to do about missing results of a study."""
    return f"run `roar run params/{name}.yaml`"


def base_of(name: str) -> str:
    """grad, gb, ig, or OWN for estimators of users."""
    base, _ = params.split_name(name)
    return base if base in plots.BASES else OWN


def named(titles: dict, values) -> list[tuple[str, str]]:
    """(title, value) of those values that occur, in the order of the titles."""
    return [(title, value) for value, title in titles.items() if value in set(values)]


def choice(description: str, options, tooltip: str) -> Dropdown:
    """A labelled choice of one; options: values or (title, value)."""
    return Dropdown(options=options, description=description, tooltip=tooltip, layout=Layout(width="270px"))


def many(description: str, options, value, tooltip: str) -> SelectMultiple:
    """A labelled choice of several; options: values or (title, value)."""
    return SelectMultiple(options=options, value=value, description=description, tooltip=tooltip,
                          rows=min(len(options), 6) or 1, layout=Layout(width="270px"))


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes, lightly compressed: it goes to a browser next door, and time counts."""
    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 1})
    return file.getvalue()
