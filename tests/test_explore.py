"""roarlib.explore: every control changes what is drawn, and missing results are a sentence; no browser."""

import json
import shutil
import time

import numpy as np
import pytest
from ipywidgets import HTML, Button, Output
from test_stats import simulated

from roarlib import explore, params, plots, rankings, remove

ESTIMATORS = ["grad", "grad-sgsq", "ig-var", "random"]
IMAGES = 40


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study on textures that has not run."""
    monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path))
    return params.Study(name="made-up", estimators=ESTIMATORS, units=["value", "pixel"],
                        modes=["remove", "keep"], train_images=100, test_images=IMAGES)


@pytest.fixture
def done(study):
    """The same study with results, and with rankings and predictions of its test images, every 4th wrong."""
    study.folder.mkdir()
    simulated(ESTIMATORS).to_csv(study.folder / "results.csv", index=False)
    rng = np.random.default_rng(0)
    for name in ESTIMATORS:
        for unit, channels in (("value", 3), ("pixel", 1)):
            file = rankings.path(study, name, unit, "test")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rng.integers(0, 100, (IMAGES, channels, 32, 32), np.uint8))
    labels = explore.datasets.load(study).test.labels
    base = study.folder / "01-train" / "base"
    base.mkdir(parents=True)
    np.save(base / "predictions-test.npy", np.where(np.arange(IMAGES) % 4, labels, (labels + 1) % 10))
    return study


def names(view, panel=0):
    return {text.get_text() for text in view.figure.axes[panel].texts}


def controls(view):
    return view.children[0].children


def inside(widget):
    return [widget, *(found for child in getattr(widget, "children", ()) for found in inside(child))]


@pytest.mark.parametrize("make", [explore.curves, explore.images])
def test_controls_are_explained_and_nothing_can_hang(make, done):
    view = make(done)
    assert all(control.description and control.tooltip for control in controls(view))
    assert not any(isinstance(widget, Output) for widget in inside(view))
    assert bytes(view.picture.value[:4]) == b"\x89PNG" and view.message.layout.display == "none"
    assert plots.plt.get_fignums() == []  # nothing is left in pyplot to be shown a second time


@pytest.mark.parametrize("make", [explore.curves, explore.images])
def test_missing_results_are_a_sentence(make, study):
    view = make(study)
    (message,) = view.children
    assert isinstance(message, HTML) and "<code>roar run params/made-up.yaml</code>" in message.value
    assert view.figure is None


def test_curves_follow_every_control(done):
    view = explore.curves(done)
    assert names(view) == {"GRAD", "SG-SQ-GRAD", "VAR-IG", "Random"}
    view.bases.value = ("ig",)
    assert names(view) == {"VAR-IG", "Random"}
    view.bases.value = ("grad", "ig")
    view.estimator.value = "grad"
    assert names(view) == {"GRAD", "Random"}
    view.mode.value = "keep"
    assert "kept" in view.figure.axes[0].get_xlabel()
    view.unit.value = "pixel"
    assert "whole pixels" in view.figure.axes[0].get_title(loc="left")
    view.measure.value = "both"
    assert len(view.figure.axes) == 2
    bands = len(view.figure.axes[1].collections)
    view.interval.value = False
    assert len(view.figure.axes[1].collections) < bands


def test_each_change_gives_a_new_picture(done):
    view = explore.curves(done)
    before = view.picture.value
    view.estimator.value = "ig-var"
    assert view.picture.value != before


def test_a_choice_without_results_is_a_sentence_and_can_be_undone(done):
    table = simulated(ESTIMATORS)
    view = explore.Curves(table[(table.measure != "deletion") | (table.unit == "value")], "made-up")
    view.measure.value, view.unit.value = "deletion", "pixel"
    assert view.figure is None and "roar run" in view.message.value and view.picture.layout.display == "none"
    view.unit.value = "value"
    assert view.figure is not None and view.message.layout.display == "none"
    assert view.picture.layout.display is None


def test_no_base_chosen(done):
    table = simulated(["grad", "ig"])
    view = explore.Curves(table, "made-up")
    view.bases.value = ()
    assert "Choose at least one base" in view.message.value


def test_images_show_what_the_percent_removes_and_keeps(done):
    view = explore.images(done)
    view.unit.value, view.estimators.value, view.percent.value, view.index.value = "pixel", ("grad",), 20, 3
    row = view.figure.axes
    assert [ax.get_title() for ax in row] == ["image", "importance", "top 20% removed", "top 20% kept"]
    assert row[0].get_ylabel() == "GRAD"
    data = explore.datasets.load(done)
    ranking = rankings.load(done, "grad", "pixel", "test")[3]
    fill = np.rint(255 * data.mean).astype(np.uint8)[:, None, None]
    for ax, mode in ((row[2], "remove"), (row[3], "keep")):
        expected = np.where(remove.removed(ranking, 20, mode), fill, data.test.images[3])
        assert (np.asarray(ax.images[0].get_array()) == np.moveaxis(expected, 0, -1)).all()
    view.percent.value = 0
    assert (np.asarray(view.figure.axes[2].images[0].get_array())
            == np.moveaxis(data.test.images[3], 0, -1)).all()


def test_images_have_a_row_an_estimator(done):
    view = explore.images(done)
    assert len(view.figure.axes) == 3 * 4  # grad, grad-sgsq and random at first
    view.estimators.value = tuple(ESTIMATORS)
    assert [ax.get_ylabel() for ax in view.figure.axes[::4]] == ["GRAD", "SG-SQ-GRAD", "VAR-IG", "Random"]
    view.estimators.value = ()
    assert "Choose at least one estimator" in view.message.value


def test_filters_select_images(done):
    view = explore.images(done)
    labels = explore.datasets.load(done).test.labels
    assert view.index.max == IMAGES - 1
    view.index.value = IMAGES - 1
    view.prediction.value = False
    assert view.index.max == IMAGES // 4 - 1 and view.index.value == 0
    caption = view.figure.get_suptitle()
    assert "test image 0 (1 of 10 selected)" in caption and "(wrong)" in caption
    view.class_name.value = int(labels[4])
    assert view.selected.tolist() == [i for i in range(0, IMAGES, 4) if labels[i] == labels[4]]
    view.prediction.value = True
    assert "(correct)" in view.figure.get_suptitle()


def test_an_empty_selection_is_a_sentence(done):
    view = explore.images(done)
    view.predictions["test"] = view.data.test.labels
    view.prediction.value = False
    assert view.figure is None and "No image passes" in view.message.value
    view.surprise.click()  # nowhere to go, and no error


def test_lost_data_are_a_sentence(done, monkeypatch):
    def lost(study):
        raise params.InputError("made-up: missing")

    monkeypatch.setitem(explore.datasets.ARRAYS, "textures", lost)
    shutil.rmtree(explore.datasets.prepared(done))
    assert "Made-up: missing" in explore.images(done).message.value


def test_surprise_goes_elsewhere(done):
    view = explore.images(done)
    for _ in range(5):
        before = view.index.value
        view.surprise.click()
        assert view.index.value != before
    assert isinstance(view.surprise, Button)


def test_images_without_predictions(done):
    for file in (done.folder / "01-train" / "base").iterdir():
        file.unlink()
    view = explore.images(done)
    assert "predicted" not in view.figure.get_suptitle()
    assert view.prediction.disabled


def test_one_change_draws_once(done, monkeypatch):
    view = explore.images(done)
    view.index.value = 5
    drawn = []
    monkeypatch.setattr(view, "draw", lambda original=view.draw: drawn.append(1) or original())
    view.prediction.value = False  # also moves the image slider
    assert len(drawn) == 1


def test_views_are_shown_as_the_last_expression_of_a_cell(done):
    bundle = explore.curves(done)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert json.dumps(bundle["application/vnd.jupyter.widget-view+json"])


def test_redraws_are_quick(done):
    """The aim is 0.2 s of processor time; the bound is loose, since machines differ."""
    for view, control, values in ((explore.curves(done), "unit", ["pixel", "value"] * 4),
                                  (explore.images(done), "percent", range(40, 48))):
        seconds = []
        for value in values:
            started = time.process_time()
            getattr(view, control).value = value
            seconds.append(time.process_time() - started)
        assert np.median(seconds) < 1.0
