"""The smoke study's rows and rankings are to the bit what they were when the golden values were made."""

import csv
import importlib.util
import json

import pytest
from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
KNOWN = json.loads((GOLDEN / "smoke-rankings.json").read_text())


def known_rows():
    with (GOLDEN / "smoke-rows.csv").open() as file:
        return {row["row"]: float(row["accuracy"]) if row["accuracy"] else None for row in csv.DictReader(file)}


def test_the_smoke_study_has_the_very_same_rows(smoke):
    _, folder, _ = smoke
    assert list(golden.rows(folder)) == list(known_rows())


def test_rankings_that_rest_on_no_model_are_the_same_anywhere(smoke):
    _, folder, _ = smoke
    assert golden.digests(folder, list(KNOWN["anywhere"])) == KNOWN["anywhere"]


def test_accuracies_and_rankings_are_the_same_on_this_machine(smoke):
    if golden.machine() != KNOWN["machine"]:
        pytest.skip("GOLDEN VALUES ARE OF ANOTHER PROCESSOR OR TORCH: accuracies and rankings not compared")
    _, folder, _ = smoke
    assert golden.rows(folder) == known_rows()
    assert golden.digests(folder, list(KNOWN["here"])) == KNOWN["here"]
