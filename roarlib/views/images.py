"""Views of single images: what estimators rank first in them, what is removed, and what is left."""

import functools
import html
from collections.abc import Callable
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import torch
from ipywidgets import Button, IntSlider, Layout
from matplotlib.figure import Figure

from roarlib.data.datasets import SPLITS, Data
from roarlib.engine import attribute
from roarlib.engine.degrade import as_seen
from roarlib.engine.rank import Explainer
from roarlib.study.names import ENSEMBLES, UNITS, in_order, label, variant_of
from roarlib.study.params import InputError
from roarlib.views import plots
from roarlib.views.sheets import heat, sheet
from roarlib.views.view import WIDTH, View, choice, many, named

FIRST = ("grad", "grad-sgsq", "random")  # shown at first, where they are there
ALL = "all"  # not None, which a Dropdown shows as nothing chosen
SMALL = 64 * 64  # pixels


class Chooser(View):
    """A view of one image of a data set: controls split, unit, index, percent and fill, and those of the subclass.

    predictions: split -> the base model's class of every image (N,); may lack splits.
    """

    def __init__(self, data: Data, predictions: dict, splits: list, units: list):
        self.data, self.predictions = data, predictions
        self.split = choice("split", sorted(splits), "which images: of the test or the training set")
        self.unit = choice("unit", named(UNITS, units), "what is ranked and removed")
        last = len(data.split(self.split.value)) - 1
        self.index = IntSlider(
            0, 0, last, description="image", tooltip="which of the images, from 0", layout=Layout(width=WIDTH)
        )
        tip = "share of inputs that is removed"
        self.percent = IntSlider(30, 0, 100, description="percent t", tooltip=tip, layout=Layout(width=WIDTH))
        fills = {"mean of the training set": "", "imputed from neighbours": "-imputed"}
        self.fill = choice("holes", list(fills.items()), "what stands in the place of removed inputs")
        self.split.observe(self.select, "value")  # before View's observers, which draw the new selection

    def select(self, _change=None) -> None:
        """Set the image slider to the images there are."""
        self.limit(len(self.data.split(self.split.value)))

    def limit(self, count: int) -> None:
        self.busy = True  # the slider's own change is not to draw what the caller draws next
        self.index.max = max(count - 1, 0)
        self.index.value = 0
        self.busy = False

    def number(self) -> int:
        """Which image of the split is shown."""
        return self.index.value

    def pixels(self) -> np.ndarray:
        """The image shown, uint8 (C, H, W)."""
        return self.data.split(self.split.value).images[self.number()]

    def caption(self) -> str:
        """'test image 7: true class cat; predicted dog (wrong)'."""
        split, number = self.split.value, self.number()
        label = self.data.split(split).labels[number]
        text = f"{split} image {number}{self.of()}: true class {self.data.classes[label]}"
        if split in self.predictions:
            guess = self.predictions[split][number]
            text += f"; predicted {self.data.classes[guess]} ({'correct' if guess == label else 'wrong'})"
        return html.escape(text)

    def of(self) -> str:
        return ""

    def sheet(self, rows: dict[str, np.ndarray]) -> Figure:
        """A row an estimator: image, importance, what is removed and what is kept; rows: name -> ranking."""
        pixels, fill, percent = self.pixels(), 255 * self.data.mean, self.percent.value
        tiles = {
            label(name): [pixels, heat(ranking)]
            + [as_seen(pixels, ranking, percent, mode + self.fill.value, fill) for mode in ("remove", "keep")]
            for name, ranking in rows.items()
        }
        titles = ["image", "importance", f"top {percent}% removed", f"top {percent}% kept"]
        self.words = f"Rows: {', '.join(tiles)}. Columns: {', '.join(titles)}. Holes: {self.fill.label}."
        return sheet(tiles, titles)

    def alt(self) -> str:
        return self.words


class Images(Chooser):
    """Images of a study with what each estimator removes or keeps of them.

    found: (estimator, unit, split) -> ranking uint8 (N, C or 1, H, W). Controls, besides Chooser's: class_name,
    prediction, surprise, estimators.
    """

    def __init__(self, data: Data, predictions: dict, found: dict):
        self.found = found
        estimators, units, splits = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
        super().__init__(data, predictions, splits, units)
        names = in_order(estimators)
        classes = [("all", ALL), *((c, i) for i, c in enumerate(data.classes))]
        filters = [("all", ALL), ("correct", True), ("wrong", False)]
        self.class_name = choice("class", classes, "only images of this true class")
        self.prediction = choice("prediction", filters, "only images the base model gets right, or wrong")
        self.prediction.disabled = not predictions
        self.surprise = Button(description="surprise me", tooltip="another image of the selection, at random")
        first = [n for n in FIRST if n in names] or names[:3]
        titles = [(label(n), n) for n in names]
        self.estimators = many("estimators", titles, first, "one row each; several with Ctrl or Shift")
        for control in (self.class_name, self.prediction):
            control.observe(self.select, "value")
        self.surprise.on_click(self.jump)
        self.select()
        View.__init__(
            self,
            [
                self.split,
                self.unit,
                self.class_name,
                self.prediction,
                self.index,
                self.percent,
                self.fill,
                self.surprise,
                self.estimators,
            ],
        )

    def select(self, _change=None) -> None:
        """Find the images that pass the filters and set the image slider to them."""
        labels = self.data.split(self.split.value).labels
        keep = np.ones(len(labels), dtype=bool)
        if self.class_name.value != ALL:
            keep &= labels == self.class_name.value
        if self.prediction.value != ALL and self.split.value in self.predictions:
            keep &= (self.predictions[self.split.value] == labels) == self.prediction.value
        self.selected = np.flatnonzero(keep)
        self.limit(len(self.selected))

    def jump(self, _button=None) -> None:
        """Go to another image of the selection."""
        if len(self.selected) > 1:
            step = np.random.default_rng().integers(1, len(self.selected))
            self.index.value = (self.index.value + int(step)) % len(self.selected)

    def number(self) -> int:
        return int(self.selected[self.index.value])

    def of(self) -> str:
        return f" ({self.index.value + 1} of {len(self.selected)} selected)"

    @mpl.rc_context(plots.LOOK)
    def draw(self) -> Figure:
        if not len(self.selected):
            raise LookupError("no image passes these filters: choose another class or prediction")
        if not self.estimators.value:
            raise LookupError("choose at least one estimator")
        where = self.unit.value, self.split.value
        there = [n for n in self.estimators.value if (n, *where) in self.found]
        if not there:
            raise LookupError("the estimators chosen are not ranked for this split and unit: choose others")
        return self.sheet({n: self.found[n, *where][self.number()] for n in there})


class TryEstimator(Chooser):
    """A function's map and removed images beside known estimators, for any image, by the base model as it is.

    explainer: of the base model. function: as `attribute` describes estimators. found: rankings that are there, as for
    Images; others are computed. Controls, besides Chooser's: ensembles, known.
    """

    def __init__(self, explainer: Explainer, found: dict, function: Callable, name: str, known: tuple[str, ...]):
        self.explainer, self.found, self.name = explainer, found, name
        self.function, self.made_for, self.made = guarded(function, name), None, {}
        super().__init__(explainer.data, explainer.predictions, list(SPLITS), explainer.study.units)
        tip = f"{name} itself, and the noise ensembles around it; several with Ctrl or Shift"
        self.ensembles = many("ensembles", [(look.menu, e) for e, look in ENSEMBLES.items()], ("",), tip)
        mine = {f"{name}-{e}" if e else name for e in ENSEMBLES}
        names = in_order({*known, *(e for e, _, _ in found)} - mine)
        first = [n for n in known if n in names]
        tip = "estimators to see beside it; several with Ctrl or Shift"
        self.known = many("known", [(label(n), n) for n in names], first, tip)
        View.__init__(self, [self.split, self.unit, self.index, self.percent, self.fill, self.ensembles, self.known])

    @mpl.rc_context(plots.LOOK)
    def draw(self) -> Figure:
        own = [f"{self.name}-{e}" if e else self.name for e in self.ensembles.value]
        if not own:
            raise LookupError("choose at least one of the ensembles; plain is the function itself")
        return self.sheet({n: self.ranking(n, own) for n in [*own, *self.known.value]})

    def ranking(self, name: str, own: list[str]) -> np.ndarray:
        """The ranking of the image shown: one that is stored, or made now and kept while the image stays."""
        split, unit, number = self.split.value, self.unit.value, self.number()
        if self.made_for != (split, unit, number):
            self.made_for, self.made = (split, unit, number), {}
        if name not in own and (name, unit, split) in self.found:
            return self.found[name, unit, split][number]
        if variant_of(name) == "recursive":
            raise LookupError(f"{name} is not ranked for this split and unit, and only `roar run` can: it retrains")
        if name not in self.made:
            attribute.register(self.name, self.function)  # now: another view may have taken the name since
            missing = [n for n in (own if name in own else [name]) if n not in self.made]
            part = slice(number, number + 1)
            with quick(self.data.shape):
                made = self.explainer.rankings(split, part, missing, unit)
            self.made |= {n: ranking[0] for n, ranking in made.items()}
        return self.made[name]


@contextmanager
def quick(shape: tuple[int, int, int]):
    """One thread for a small image's passes: more gain nothing, and wait for each other where others work as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if shape[1] * shape[2] <= SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def guarded(function: Callable, name: str) -> Callable:
    """The function with whatever it raises turned into an InputError of one sentence."""

    @functools.wraps(function)
    def call(*inputs, **keywords):
        try:
            return function(*inputs, **keywords)
        except Exception as problem:  # a user's code: anything may come of it
            what = " ".join(str(problem).split())[:200]
            raise InputError(f"{name} raised {type(problem).__name__}: {what}") from None

    return call
