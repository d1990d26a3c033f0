"""roarlib.views.report: a study that lacks much still has a page, and an analysis that fails costs only itself."""

import itertools
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from conftest import ROAR, simulated, tiny_study

from roarlib.answers import verdicts
from roarlib.data import textures
from roarlib.engine import models
from roarlib.study import params, results
from roarlib.study.params import InputError
from roarlib.views import report


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(environment, YAML, what `plan` and `run` said) of a study without Random, of grey arrays, weights and maps."""
    folder = tmp_path_factory.mktemp("alone")
    drawn = {
        part: textures.make(count, number) for number, (part, count) in enumerate({"train": 100, "test": 50}.items())
    }
    grey = {part: images.mean(1, keepdims=True).astype(np.uint8) for part, (images, *_) in drawn.items()}
    labels = {f"{part}_labels": found[1] for part, found in drawn.items()}
    np.savez(folder / "grey.npz", **labels, **{f"{part}_images": images for part, images in grey.items()})
    torch.save(models.build("resnet-tiny", 10, (1, 32, 32)).state_dict(), folder / "net.pt")
    (folder / "mine").mkdir()
    for part, images in grey.items():
        np.save(folder / "mine" / f"{part}.npy", images / 255)
    brought = dict(dataset="npz:grey.npz", base_weights="net.pt", train_images=0, test_images=0)
    study = tiny_study(name="alone", estimators=["grad", "gb-sgsq", "maps:mine"], **brought)
    file = folder / "alone.yaml"
    file.write_text(yaml.safe_dump(study.model_dump()))
    environment = os.environ | {"ROAR_OUTPUTS": str(folder / "outputs")}
    return (
        environment,
        file,
        "".join(call(environment, *words, file).stderr for words in (["plan"], ["run", "--anyway"])),
    )


def call(environment, *words):
    done = subprocess.run([ROAR, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_without_random_it_says_what_is_missing_and_shows_the_rest(alone):
    environment, file, said = alone
    assert said.count("note: `random` is not among the estimators; without it no verdict is possible") == 2
    printed = call(environment, "report", file).stdout
    assert "LEFT OUT" not in printed and "SG-SQ-GB" in printed and "maps:mine" in printed
    page = (file.parent / "outputs" / "alone" / "report.html").read_text()
    for text in (printed, page):
        assert "The network explained was brought (net.pt): " in text and "a difference of " in text
    assert "note: maps:mine has no images.csv" in said
    for text in (printed, page):
        assert "No estimator shares its seeds with the reference" in text
        assert "One base model: intervals hold for this network only." in text
    assert "each accuracy is good to ±" in page and "no better than guessing" in page  # after one epoch on 100 images


def test_an_analysis_that_fails_is_left_out_and_named(alone, monkeypatch):
    environment, file, _ = alone
    monkeypatch.setenv("ROAR_OUTPUTS", environment["ROAR_OUTPUTS"])

    def failing(study, file, name):
        raise InputError(f"{name} failed: for a test")

    monkeypatch.setattr(report, "_execute", failing)
    study = params.load(file)
    assert report.render(study).count("LEFT OUT: ") == len(report.ANALYSES) - 1  # too few estimators for the paper's
    assert "10-accuracy-curves failed: for a test" in (study.folder / "report.html").read_text()


def test_a_report_is_of_the_study_that_was_asked_for(outputs, monkeypatch):
    """Of results.csv alone, as copied from a cluster, where the project has a study of that name too."""
    study, asked = tiny_study(name="demo"), []
    study.folder.mkdir(parents=True)
    simulated(["grad", "random"]).assign(study="demo").to_csv(study.folder / "results.csv", index=False)
    monkeypatch.setattr(report, "_execute", lambda study, file, name: asked.append(file))
    monkeypatch.setattr(report.page, "shows", lambda notebook: False)
    monkeypatch.setattr(report.page, "html", lambda *parts: "")
    monkeypatch.setattr(report, "_head", lambda *parts: {"doubts": []})
    monkeypatch.setattr(report, "_how", lambda study: {})
    report.render(study)
    assert {params.load(file) == study for file in asked} == {True}


def rows():
    made = dict(hardware="2 cores", device="cpu", precision="float32", torch="2.14.1", roarlib="0.1.0", commit="abc")
    found = pd.DataFrame([
        dict(measure="base", seconds=10.0, finished="2026-01-01T00:00:10+00:00"),
        dict(measure="ranking", seconds=4.0, finished="2026-01-01T00:01:00+00:00"),
        dict(measure="retrain", seconds=20.0, finished="2026-01-01T01:00:00+00:00"),
        dict(measure="retrain", seconds=40.0, finished="2026-01-01T02:00:00+00:00"),
        dict(measure="retrain", seconds=90.0, finished="2026-01-01T03:00:00+00:00"),
    ])  # fmt: skip
    found = found.assign(**made)
    found.loc[4, "commit"] = ""
    return found


def test_every_parameter_in_the_order_of_the_file_with_what_differs_marked():
    found = report.parameters(tiny_study(percents=[50], estimators=["grad", "random"], epochs=4, drop_epochs=[3]))
    assert found.parameter.tolist() == list(params.Study.model_fields)
    found = found.set_index("parameter")
    assert found.loc["epochs"].tolist() == ["4", "8", "differs"]
    assert found.loc["momentum"].tolist() == ["0.9", "0.9", ""]
    assert found.loc["estimators"].tolist() == ["[grad, random]", "–", ""]
    assert found.loc["data_dir"].tolist() == ["null", "null", ""] and found.value["drop_epochs"] == "[3]"
    assert found.loc["percents"].tolist() == ["[50]", "[10, 30, 50, 70, 90]", "differs"]


def test_cost_by_hand():
    found = report.cost(rows()).set_index("measurement")
    assert found.index.tolist() == ["retraining", "base model", "ranking"]
    assert found.loc["retraining"].tolist() == [3, 40, 150]
    assert report.hours(rows()) == pytest.approx((164 / 3600, 3))  # from 00:00:00, when the base model began


def test_machines_are_told_apart_and_what_is_not_known_is_a_dash():
    found = report.machines(rows())
    assert found[["commit", "rows", "first", "last"]].values.tolist() == [
        ["abc", 4, "2026-01-01 00:00", "2026-01-01 02:00"],
        ["–", 1, "2026-01-01 03:00", "2026-01-01 03:00"],
    ]
    assert (found.python == "–").all() and (found.torch == "2.14.1").all()
    assert (report.machines(rows().assign(python="3.11.7")).python == "3.11.7").all()


def test_where_labels_are_explained_the_verdicts_are_doubted():
    table = simulated(["grad", "random"]).assign(n_classes=10)
    found = verdicts.verdicts(table, "pixel", "remove")
    assert report.doubts(tiny_study(), table, found) == []
    (said,) = report.doubts(tiny_study(target="label"), table, found)
    assert said.startswith("Test images are masked by explanations of their true label (`target: label`)")


def test_rows_that_are_not_listed_are_named_and_do_not_count(outputs):
    study = tiny_study(estimators=["grad", "random", "gb"], percents=[50, 90], seeds=[0, 13])
    for estimator, percent, seed in itertools.product(study.estimators, study.percents, study.seeds):
        results.write(study, results.Key("retrain", estimator, "pixel", "remove", percent, seed), 0.5)
    found = verdicts.verdicts(results.table(study), "pixel", "remove")
    assert report.doubts(study, results.table(study), found) == []
    for fewer, said, rows in (
        (tiny_study(estimators=study.estimators, percents=[90], seeds=[0, 13]), "at t = 50", 6),
        (tiny_study(estimators=study.estimators, percents=[50, 90], seeds=[13]), "with seed 0", 6),
        (tiny_study(estimators=["grad", "random"], percents=[50, 90], seeds=[0, 13]), "of GB", 8),
        (tiny_study(estimators=study.estimators[:2], percents=[50, 90], seeds="auto"), "with seed 13 or of GB", 4),
        (tiny_study(estimators=["random"], percents=[90], seeds=[0]), "at t = 50 or with seed 13 or of GRAD, GB", 1),
    ):
        wanted = f"Left out, as the study does not list them: retrainings {said}."
        assert report.doubts(fewer, results.table(fewer), found)[0] == wanted and len(results.table(fewer)) == rows


def test_looks_do_not_silence_what_blurred_copies_say(outputs):
    table = simulated(
        ["grad", "grad-blur", "random", "random-blur"], percents=(50,), modes=("remove",), units=("pixel",)
    )
    study = tiny_study(estimators=["grad", "grad-blur", "random", "random-blur"], seeds="auto")
    found = verdicts.verdicts(table, "pixel", "remove")
    late, beside = report.doubts(study, table, found)
    assert late.startswith("No verdict yet: the first look waits for 3 seeds of GRAD, ")  # nothing has run there
    assert (
        beside.startswith("Blurred estimators against blurred Random, so that holes are equally solid. With 3 seeds")
        and "This is one test of all seeds" in beside
    )


def test_how_it_was_made_is_told_in_readable_numbers(monkeypatch):
    monkeypatch.setattr(results, "known", lambda study: rows().assign(seconds=[10.0, 4.0, 20.0, 40.0, 9000.04]))
    told = report._how(tiny_study())
    cells = [cell.text for cell in BeautifulSoup(told["cost"], "html.parser").select("td")]
    assert cells[:4] == ["retraining", "3", "40.0", "9,060.0"] and told["hours"][0] == pytest.approx(9074.04 / 3600)
