import numpy as np
import pytest
import torch
from conftest import tiny_study

from roarlib.data import datasets as data
from roarlib.study import params
from roarlib.engine import rank as rankings, recursive, remove, train


def prepared(**changes):
    study = tiny_study(estimators=["grad-squared", "grad-squared-recursive"], **changes)
    found = data.load(study)
    model = train.train(study, found, 0)
    predictions = train.save_base(study, found, model)
    rankings.make(study, found, model, predictions, ["grad-squared"])
    return study, found, model, predictions


def test_the_first_step_is_the_plain_ranking_and_later_ones_another(outputs):
    study, found, model, predictions = prepared(units=["pixel", "value"], recursive_steps=[20, 40])
    told = []
    cost = recursive.make(study, found, model, predictions, ["grad-squared-recursive"], lambda *seen: told.append(seen))
    for unit in study.units:
        for split in data.SPLITS:
            plain, again = (rankings.load(study, e, unit, split) for e in study.estimators)
            for percent in (10, 20, 40, 50, 99):
                assert (remove.counts(again, percent) == percent * again[0].size // 100).all()
            assert np.array_equal(plain < 20, again < 20)  # explained by the same model, on the same images
            assert not np.array_equal(plain < 40, again < 40)
    total = 2 * 3 * (len(found.train) + len(found.test))
    assert told[-1] == (total, total) and cost["images_per_second"] > 0
    assert not list(outputs.rglob(".*part"))


def test_later_steps_explain_a_model_that_was_trained_without_what_is_gone(outputs, monkeypatch):
    study, found, model, predictions = prepared(recursive_steps=[30, 60])
    trained, explained, real, real_explain = [], [], train.train, rankings.explain_stored

    def spy(study, data, seed, ranking, percent):
        trained.append((seed, percent, remove.counts(ranking, percent).tolist()))
        return real(study, data, seed, ranking, percent)

    def watch(study, data, model, part, classes, names, index, device, batch, ranking, percent):
        explained.append((names, percent, ranking is None))
        return real_explain(study, data, model, part, classes, names, index, device, batch, ranking, percent)

    monkeypatch.setattr(train, "train", spy)
    monkeypatch.setattr(rankings, "explain_stored", watch)
    recursive.make(study, found, model, predictions, ["grad-squared-recursive"])
    units = found.train.masks[0].size
    assert trained == [(0, p, [p * units // 100] * len(found.train)) for p in (30, 60)]
    assert {(tuple(n), p, none) for n, p, none in explained} == {
        (("grad-squared",), 0, True),
        (("grad-squared",), 30, False),
        (("grad-squared",), 60, False),
    }


def test_a_second_call_makes_nothing_anew(outputs, monkeypatch):
    study, found, model, predictions = prepared(recursive_steps=[50])
    recursive.make(study, found, model, predictions, ["grad-squared-recursive"])
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained again"))
    recursive.make(study, found, model, predictions, ["grad-squared-recursive"])


def test_scores_that_are_no_numbers_are_refused(outputs, monkeypatch):
    study, found, model, predictions = prepared(recursive_steps=[50])
    nan = {"grad-squared": torch.full((64, *found.shape), float("nan"))}
    monkeypatch.setattr(rankings, "explain_stored", lambda *_: nan)
    with pytest.raises(params.InputError, match="not finite"):
        recursive.make(study, found, model, predictions, ["grad-squared-recursive"])


@pytest.mark.parametrize("steps", [[30, 10], [10, 10], [0], [100]])
def test_steps_must_rise_within_the_image(steps):
    with pytest.raises(ValueError):
        tiny_study(recursive_steps=steps)


def test_it_is_a_cell_of_its_own():
    from roarlib.grid import cells as grid

    study = tiny_study(estimators=["grad", "grad-recursive", "grad-blur", "random"])
    made = {c.name: c.parameters["estimators"] for c in grid.cells(study) if c.stage == "02-attribute"}
    assert made == {"grad": ["grad", "grad-blur"], "grad-recursive": ["grad-recursive"], "controls": ["random"]}
