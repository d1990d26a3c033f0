"""Views of single images: what estimators rank first in them, what is removed, and what is left."""

import functools
import html
import itertools
from collections.abc import Callable

import numpy as np
import torch
from ipywidgets import BoundedIntText, Button, Dropdown, IntSlider, Widget, link
from matplotlib.figure import Figure

from roarlib.data.datasets import SPLITS, Data
from roarlib.engine.degrade import as_seen
from roarlib.engine.estimators import register
from roarlib.engine.rank import Explainer
from roarlib.study import machine, own
from roarlib.study.names import ENSEMBLES, UNITS, in_order, label, variant_of
from roarlib.views.sheets import heat, sheet
from roarlib.views.view import View, named, several

FIRST = ("grad", "grad-sgsq", "random")  # shown at first, if they are ranked
ALL = "all"  # not None, which a Dropdown shows as nothing chosen
SMALL = 64 * 64  # pixels


class Chooser(View):
    """A view of one image. Controls: split, unit, class_name, prediction, index, percent, surprise, and a subclass's.

    predictions: split -> the base model's class of every image (N,); may lack splits. found: rankings, (estimator,
    unit, split) -> uint8 (N, C or 1, H, W).
    """

    def __init__(self, data: Data, predictions: dict, found: dict, **controls: Widget):
        self.data, self.predictions, self.found, self.selected = data, predictions, found, np.empty(0, int)
        _, units, splits = zip(*found, strict=True)
        classes = [("all", ALL), *((name, k) for k, name in enumerate(data.classes))]
        right = [("all", ALL), ("correct", True), ("wrong", False)]
        surprise = Button(description="surprise me", tooltip="another image of the selection, at random")
        surprise.on_click(self.jump)
        index = IntSlider(description="image", readout=False, tooltip="which of the images, from 0")
        box = BoundedIntText(description="number", tooltip="type the number of an image, or use the arrow keys")
        for trait in ("max", "value"):
            link((index, trait), (box, trait))
        back, on = (Button(description=word, tooltip=f"the {word} image") for word in ("previous", "next"))
        back.on_click(lambda _: self.step(-1))
        on.on_click(lambda _: self.step(1))
        tip = "only images the base model gets right, or wrong"
        super().__init__(
            split=Dropdown(options=sorted(set(splits)), tooltip="which images: of the test or the training set"),
            unit=Dropdown(options=named(UNITS, units), tooltip="what is ranked and removed"),
            class_name=Dropdown(options=classes, description="class", tooltip="only images of this true class"),
            prediction=Dropdown(options=right, disabled=not predictions, tooltip=tip),
            percent=IntSlider(30, 0, 100, description="percent t", tooltip="share of inputs that is removed"),
            index=index,
            box=box,
            back=back,
            on=on,
            surprise=surprise,
            **controls,
        )

    def settle(self, changed) -> None:
        """Find the images that pass the filters and set the image slider to them."""
        split, labels = self.split.value, self.data.split(self.split.value).labels
        fits = np.ones(len(labels), bool) if self.class_name.value == ALL else labels == self.class_name.value
        if self.prediction.value != ALL and split in self.predictions:
            fits &= (self.predictions[split] == labels) == self.prediction.value
        if not np.array_equal(selected := np.flatnonzero(fits), self.selected):
            self.selected, self.index.max, self.index.value = selected, max(len(selected) - 1, 0), 0

    def jump(self, _button) -> None:
        """Go to another image of the selection."""
        if len(self.selected) > 1:
            self.step(int(np.random.default_rng().integers(1, len(self.selected))))

    def step(self, by: int) -> None:
        """Move `by` images along the selection, and from its end to its beginning."""
        self.index.value = (self.index.value + by) % max(len(self.selected), 1)

    def number(self) -> int:
        """Which image of the split is shown; LookupError if none is."""
        if not len(self.selected):
            raise LookupError("no image passes these filters: choose another class or prediction")
        return int(self.selected[self.index.value])

    def pixels(self) -> np.ndarray:
        """The image shown, uint8 (C, H, W)."""
        return self.data.split(self.split.value).images[self.number()]

    def stored(self, names) -> dict[str, np.ndarray]:
        """name -> rankings of all images, for those estimators that are ranked for the split and unit chosen."""
        found = {name: self.found.get((name, self.unit.value, self.split.value)) for name in names}
        return {name: rankings for name, rankings in found.items() if rankings is not None}

    def caption(self) -> str:
        """'test image 7 (1 of 3 selected): true class cat; predicted dog (wrong)'."""
        split, number, labels = self.split.value, self.number(), self.data.split(self.split.value).labels
        few = len(self.selected) < len(labels)
        text = f"{split} image {number}" + few * f" ({self.index.value + 1} of {len(self.selected)} selected)"
        text += f": true class {self.data.classes[labels[number]]}"
        if split in self.predictions:
            guess = self.predictions[split][number]
            text += f"; predicted {self.data.classes[guess]} ({'correct' if guess == labels[number] else 'wrong'})"
        return html.escape(text)


class Images(Chooser):
    """Images of a study with what each estimator removes or keeps of them.

    names: estimators to choose from; first: those chosen at first. Controls, besides Chooser's: fill, estimators.
    """

    def __init__(self, data: Data, predictions: dict, found: dict, names=None, first=FIRST, **controls: Widget):
        names = in_order({name for name, _, _ in found} if names is None else names)
        fills = [("mean colour", ""), ("imputed from neighbours", "-imputed")]
        fill = Dropdown(options=fills, description="holes", tooltip="what stands in the place of removed inputs")
        estimators = several({name: label(name) for name in names}, "one row each")
        estimators.value = [name for name in first if name in names] or names[:3]
        super().__init__(data, predictions, found, fill=fill, **controls, estimators=estimators)

    def rankings(self) -> dict[str, np.ndarray]:
        """name -> ranking of the image shown, of the estimators chosen; LookupError where there is none."""
        if not self.estimators.value:
            raise LookupError("choose at least one estimator")
        stored = self.stored(self.estimators.value)
        if not stored:
            raise LookupError("the estimators chosen are not ranked for this split and unit: choose others")
        return {name: rankings[self.number()] for name, rankings in stored.items()}

    def draw(self) -> Figure:
        """One row per estimator: image, importance, what is removed and what is kept."""
        pixels, percent = self.pixels(), self.percent.value
        fill = self.data.shown_fill(pixels)
        modes = [mode + self.fill.value for mode in ("remove", "keep")]
        rows = {
            label(name): [pixels, heat(ranking), *(as_seen(pixels, ranking, percent, mode, fill) for mode in modes)]
            for name, ranking in self.rankings().items()
        }
        titles = ["image", "importance", f"top {percent}% removed", f"top {percent}% kept"]
        self.words = f"Rows: {', '.join(rows)}. Columns: {', '.join(titles)}. Holes: {self.fill.label}."
        return sheet(rows, titles)


class TryEstimator(Images):
    """A function's map and degraded images beside known estimators, for any image, with the base model as it is.

    explainer: of the base model. function: as `engine.estimators` describes. found: rankings that exist; others are
    made when they are shown. One more control: ensembles.
    """

    def __init__(self, explainer: Explainer, found: dict, function: Callable, name: str, known: tuple[str, ...]):
        self.explainer, self.function, self.name = explainer, function, name
        self.make = functools.lru_cache(4)(self._make)  # percent and holes may change without new passes
        self.own = {e: f"{name}-{e}" if e else name for e in ENSEMBLES}
        names = {*known, *(other for other, _, _ in found)} - set(self.own.values())
        tip = f"{name} itself, and the noise ensembles around it"
        ensembles = several({e: look.menu for e, look in ENSEMBLES.items()}, tip)
        ensembles.value = [""]
        found = found | dict.fromkeys(itertools.product([name], explainer.study.units, SPLITS))  # any can be made
        super().__init__(explainer.data, explainer.predictions, found, names, known, ensembles=ensembles)

    def rankings(self) -> dict[str, np.ndarray]:
        own, known = [self.own[ensemble] for ensemble in self.ensembles.value], self.estimators.value
        if not own:
            raise LookupError("choose at least one of the ensembles; plain is the function itself")
        there = {name: rankings[self.number()] for name, rankings in self.stored(known).items()}
        for names in filter(None, (own, [name for name in known if name not in there])):
            there |= self.make(tuple(names), self.split.value, self.number(), self.unit.value)
        return {name: there[name] for name in (*own, *known)}

    def _make(self, names: tuple[str, ...], split: str, number: int, unit: str) -> dict[str, np.ndarray]:
        """Rankings of one image; whatever the function raises becomes an InputError of one sentence.

        One thread for a small image's passes: more gain nothing, and wait for each other on a busy machine.
        """
        for name in (name for name in names if variant_of(name) == "recursive"):
            raise LookupError(f"{name} is not ranked for this split and unit, and only `roar run` can: it retrains")
        register(self.name, self.function)  # now: another view may have taken the name since
        _, high, wide = self.data.shape
        with own.told(f"{names[0]} fails"), machine.threads(1 if high * wide <= SMALL else torch.get_num_threads()):
            made = self.explainer.rankings(split, slice(number, number + 1), list(names), unit)
        return {name: ranking[0] for name, ranking in made.items()}
