"""Interactive views for notebooks: stored curves and images, two estimators compared, a new one tried.

Apart from `study` and `table`, each function returns a widget to end a cell with; where results are missing, it is a
sentence that says what to run. No later cell may depend on what is chosen in it. A study may be the path of its YAML.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display
from ipywidgets import HTML, Dropdown, HBox

from roarlib.answers.across import load
from roarlib.data import datasets
from roarlib.engine import train
from roarlib.engine.rank import Explainer
from roarlib.study import files, params, rankings, results
from roarlib.study.names import in_order
from roarlib.views.across import Across
from roarlib.views.compare import Compare
from roarlib.views.curves import Curves
from roarlib.views.images import FIRST, Images, TryEstimator
from roarlib.views.view import RUN, View

Studied = params.Study | str | Path
CHOSEN: dict[str, str] = {}  # the file of what was chosen in the menu of `study`, in this process


class NothingYet(LookupError):
    """There are no results to look at; notebooks show the sentence without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def study(file: str = "") -> params.Study:
    """The study that an analysis shows: that of the YAML `file`, else the choice in a menu, initially the newest.

    The menu is displayed; a choice takes effect when the notebook is run again. NothingYet if no study has results.
    """
    if file:
        return params.load(file)
    paths = files.studies()
    names = [path.parent.name for path in paths]
    places = [f" in {path.parent.parent}" if names.count(path.parent.name) > 1 else "" for path in paths]
    there = [(name + place, str(path)) for name, place, path in zip(names, places, paths, strict=True)]
    if not there:
        raise NothingYet("There is no study with results yet. `make study` runs the demo, in some minutes.")
    file = CHOSEN.get("study", "")
    menu = Dropdown(options=there, value=file if Path(file) in paths else there[0][1], description="study")
    hint = HTML("Another choice shows once the notebook runs again: Run, Run All Cells.")
    menu.observe(lambda change: CHOSEN.update(study=change.new), "value")
    if not os.environ.get("ROAR_HEADLESS"):
        display(HBox([menu, hint]))
    return params.load(menu.value)


def table(study: Studied) -> pd.DataFrame:
    """The accuracies of a study (`results.table`); NothingYet before the first retraining."""
    study = _study(study)
    found = results.table(study)
    if not (found.measure == "retrain").any():
        raise NothingYet(f"There are no retrainings of {study.name} yet: {RUN}.")
    return found


def curves(study: Studied, *more: Studied) -> Curves:
    """Interactive accuracy curves of a study; of several studies, with a further control to choose one."""
    return Curves({name: table for name, (table, _) in load((study, *more)).items()})


def across(*studies: Studied) -> Across:
    """Several studies side by side (if none is named, all with results): differences from Random, and mean ranks."""
    return Across(load(studies or files.studies()))


def images(study: Studied) -> View:
    """Images of a study and what estimators remove from them."""
    return _of_rankings(study, Images)


def compare(study: Studied, a: str | None = None, b: str | None = None) -> View:
    """Two estimators of a study, image by image: importance, where the removed sets differ, overlap over t.

    a, b: names; by default the first two that are ranked, with GRAD, SG-SQ-GRAD and Random before all others.
    """

    def make(data, predictions, found):
        names = in_order({name for name, _, _ in found})
        for name in {a, b} - {None, *names}:
            return View(f"there is no ranking by {name} yet: put it in its estimators and {RUN}")
        rest = [name for name in (*FIRST, *names) if name in names and name not in (a, b)]
        first = a or next(iter(rest), b)
        return Compare(data, predictions, found, first, b or next((name for name in rest if name != first), first))

    return _of_rankings(study, make)


def try_estimator(study: Studied, fn: Callable, name: str = "mine", known: tuple[str, ...] = FIRST) -> View:
    """Try a function `(model, images, targets) -> scores` at once on any image, beside known estimators.

    It needs the base model, but no rankings or retraining; `engine.estimators` specifies arguments and result.
    name: lower-case letters, digits and _. Errors are shown as a sentence in the view.
    """
    study = _study(study)
    try:
        if not callable(fn):
            raise params.InputError(f"{name} must be a function of model, images and targets, not {fn!r}")
        if not results.base_file(study, "model.safetensors").is_file():
            raise LookupError(f"there is no base model of {study.name} to explain yet: {RUN}")
        data = datasets.load(study)
        return TryEstimator(Explainer(study, data, *train.load_base(study, data)), _found(study), fn, name, known)
    except (LookupError, ValueError) as problem:  # InputError is a ValueError
        return View(str(problem.args[0]))


def _study(study: Studied) -> params.Study:
    return study if isinstance(study, params.Study) else params.load(study)


def _of_rankings(study: Studied, make: Callable) -> View:
    """A view of data, predictions and rankings; a sentence where rankings or images are missing."""
    study = _study(study)
    found = _found(study)
    if not found:
        return View(f"there are no rankings of {study.name} yet: {RUN}")
    files = {split: results.base_file(study, f"predictions-{split}.npy") for split in datasets.SPLITS}
    predictions = {split: np.load(file, allow_pickle=False) for split, file in files.items() if file.is_file()}
    try:
        return make(datasets.load(study), predictions, found)
    except params.InputError as problem:  # the rankings are there, but the images are not
        return View(str(problem))


def _found(study: params.Study) -> dict:
    """The rankings that exist, memory-mapped: (estimator, unit, split) -> uint8 (N, C or 1, H, W)."""
    where = list(itertools.product(study.units, datasets.SPLITS))
    keys = [(name, unit, split) for unit, split in where for name in rankings.ready(study, unit, split)]
    return {key: rankings.load(study, *key) for key in keys}
