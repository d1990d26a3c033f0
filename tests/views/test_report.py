"""roarlib.report: a study that lacks much still has a page, and an analysis that fails costs only itself."""

import os
import subprocess

import pytest
import yaml
from conftest import ROAR, tiny_study

from roarlib.study import params
from roarlib.views import report
from roarlib.study.params import InputError


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(environment, YAML, what `plan` and `run` said) of a study of two estimators, without Random."""
    folder = tmp_path_factory.mktemp("alone")
    file = folder / "alone.yaml"
    file.write_text(yaml.safe_dump(tiny_study(name="alone", estimators=["grad", "gb-sgsq"]).model_dump()))
    environment = os.environ | {"ROAR_OUTPUTS": str(folder / "outputs")}
    return environment, file, "".join(call(environment, word, file).stderr for word in ("plan", "run"))


def call(environment, word, file):
    done = subprocess.run([ROAR, word, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_without_random_it_says_what_is_missing_and_shows_the_rest(alone):
    environment, file, said = alone
    assert said.count("note: `random` is not among the estimators; without it no verdict is possible") == 2
    printed = call(environment, "report", file).stdout
    assert "LEFT OUT" not in printed and "SG-SQ-GB" in printed
    page = (file.parent / "outputs" / "alone" / "report.html").read_text()
    assert "No estimator shares its seeds with the reference" in page
    assert "one accuracy is good to ±" in page and "no better than chance" in page  # after one epoch on 100 images


def test_an_analysis_that_fails_is_left_out_and_named(alone, monkeypatch):
    environment, file, _ = alone
    monkeypatch.setenv("ROAR_OUTPUTS", environment["ROAR_OUTPUTS"])

    def failing(study, file, name):
        raise InputError(f"{name} failed: for a test")

    monkeypatch.setattr(report, "_execute", failing)
    study = params.load(file)
    assert report.render(study).count("LEFT OUT: ") == len(report.ANALYSES)
    assert "10-accuracy-curves failed: for a test" in (study.folder / "report.html").read_text()
