import sys

import numpy as np
import pytest
import torch
from conftest import random_data, tiny_study

from roarlib.data import datasets
from roarlib.engine import recursive, store, train
from roarlib.engine.rank import Explainer
from roarlib.grid.cells import Grid
from roarlib.study import rankings
from roarlib.study.params import InputError


def prepared(**changes):
    """A study with a base model and the plain ranking, and what explains it."""
    study = tiny_study(estimators=["grad-squared", "grad-squared-recursive"], **changes)
    found = datasets.load(study)
    model = train.train(study, found, 0)
    explainer = Explainer(study, found, model, train.save_base(study, found, model))
    store.make(explainer, ["grad-squared"])
    return study, explainer


def test_the_first_step_is_the_plain_ranking_and_later_ones_another(outputs):
    study, explainer = prepared(units=["pixel", "value"], recursive_steps=[20, 40])
    told = []
    cost = recursive.make(explainer, ["grad-squared-recursive"], lambda *seen: told.append(seen))
    for unit in study.units:
        for split in datasets.SPLITS:
            plain, again = (rankings.load(study, e, unit, split) for e in study.estimators)
            for percent in (10, 20, 40, 50, 99):
                assert (rankings.counts(again, percent) == percent * again[0].size // 100).all()
            assert np.array_equal(plain < 20, again < 20)  # explained by the same model, on the same images
            assert not np.array_equal(plain < 40, again < 40)
    total = 2 * 3 * (len(explainer.data.train) + len(explainer.data.test))
    assert told[-1] == (total, total) and cost["images_per_second"] > 0
    assert not list(outputs.rglob(".*part"))


def test_later_steps_explain_a_model_that_was_trained_without_what_is_gone(outputs, monkeypatch):
    study, explainer = prepared(recursive_steps=[30, 60])
    trained, made, explained, train_one, explain = [], [explainer.model], [], train.train, Explainer.scores

    def spy(study, data, seed, ranking, percent):
        trained.append((seed, percent, rankings.counts(ranking, percent).tolist()))
        made.append(train_one(study, data, seed, ranking, percent))
        return made[-1]

    def watch(self, split, index, names, gone, percent):
        explained.append((tuple(names), percent, gone is None, made.index(self.model)))
        return explain(self, split, index, names, gone, percent)

    monkeypatch.setattr(train, "train", spy)
    monkeypatch.setattr(Explainer, "scores", watch)
    recursive.make(explainer, ["grad-squared-recursive"])
    units = explainer.data.train.masks[0].size
    assert trained == [(0, p, [p * units // 100] * len(explainer.data.train)) for p in (30, 60)]
    assert set(explained) == {
        (("grad-squared",), 0, True, 0),
        (("grad-squared",), 30, False, 1),
        (("grad-squared",), 60, False, 2),
    }


def test_a_second_call_makes_nothing_anew(outputs, monkeypatch):
    _, explainer = prepared(recursive_steps=[50])
    recursive.make(explainer, ["grad-squared-recursive"])
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained again"))
    recursive.make(explainer, ["grad-squared-recursive"])


def test_scores_that_are_no_numbers_are_refused(outputs, monkeypatch):
    _, explainer = prepared(recursive_steps=[50])
    nan = {"grad-squared": torch.full((64, *explainer.data.shape), float("nan"))}
    monkeypatch.setattr(explainer, "scores", lambda *_: nan)
    with pytest.raises(InputError, match="not finite"):
        recursive.make(explainer, ["grad-squared-recursive"])


@pytest.mark.parametrize("steps", [[30, 10], [10, 10], [0], [100]])
def test_steps_must_rise_within_the_image(steps):
    with pytest.raises(ValueError):
        tiny_study(recursive_steps=steps)


def test_it_is_a_cell_of_its_own():
    study = tiny_study(estimators=["grad", "grad-recursive", "grad-blur", "random"])
    made = {c.name: c.parameters["estimators"] for c in Grid(study).cells if c.stage == "02-attribute"}
    assert made == {
        "02-attribute/grad": ["grad", "grad-blur"],
        "02-attribute/grad-recursive": ["grad-recursive"],
        "02-attribute/controls": ["random"],
    }


def test_a_function_without_a_ranking_is_refused_and_an_edit_ranks_all_units_anew(outputs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(body):
        (tmp_path / "mine_again.py").write_text(f"def f(model, images, targets):\n    return {body}\n")
        sys.modules.pop("mine_again", None)

    write("0 * images")
    study = tiny_study(estimators=["mine_again:f-recursive"], recursive_steps=[50], units=["pixel", "value"])
    found = random_data()
    model = train.train(study, found, 0)
    explainer = Explainer(study, found, model, train.save_base(study, found, model))
    with pytest.raises(InputError, match="gives every input of an image the same score"):
        recursive.make(explainer, study.estimators)
    write("images")
    first = recursive.make(explainer, study.estimators)
    assert first["constant"] == {("mine_again:f-recursive", unit): 0 for unit in study.units}
    before = {unit: np.array(rankings.load(study, study.estimators[0], unit, "train")) for unit in study.units}
    write("-images")
    recursive.make(explainer, study.estimators)
    for unit in study.units:
        assert (before[unit] != rankings.load(study, study.estimators[0], unit, "train")).mean() > 0.5
    sys.modules.pop("mine_again")
