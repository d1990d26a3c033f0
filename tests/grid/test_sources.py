"""Results of two versions of a user's function or model are never mixed, neither on disk nor in a table."""

import json
import os
import sys

import pandas as pd
import pytest
from conftest import tiny_study

from roarlib.answers import verdicts
from roarlib.grid.cells import Grid
from roarlib.study import results
from roarlib.study.params import InputError
from roarlib.study.results import Key
from roarlib.views import report

CODE = """
FACTOR = 2

def edges(model, images, targets):
    return FACTOR * images

def net(classes, channels):
    pass
"""


@pytest.fixture
def write(tmp_path, monkeypatch, outputs):
    """Writes the module `mine_two`, as an editor and a new process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(factor=2):
        (tmp_path / "mine_two.py").write_text(CODE.replace("= 2", f"= {factor}"))
        sys.modules.pop("mine_two", None)

    write()
    yield write
    sys.modules.pop("mine_two", None)


def leave(study, estimator="mine_two:edges", seeds=(0,), accuracy=0.5):
    for seed in seeds:
        results.write(study, Key("retrain", estimator, "pixel", "remove", 50, seed), accuracy)


@pytest.mark.parametrize("name", ["mine_two:edges", "mine_two:edges-sgsq", "mine_two:edges-recursive"])
def test_a_changed_function_with_results_is_an_error(write, name):
    study = tiny_study(estimators=[name, "random"])
    results.check_sources(study)
    leave(study, name)
    results.check_sources(study)
    write(3)
    with pytest.raises(
        InputError, match=r"mine_two:edges is not what it was .* its cells, 0\?-\*/mine_two.edges and 0\?-"
    ):
        results.check_sources(study)
    results.check_sources(tiny_study(name="other", estimators=["grad"]))
    write(2)
    results.check_sources(study)


def test_a_changed_model_with_results_is_an_error(write):
    study = tiny_study(model="mine_two:net")
    leave(study, "clean")
    results.check_sources(study)
    write(3)
    with pytest.raises(InputError, match="mine_two:net is not what it was .* delete the study's folder"):
        results.check_sources(study)


def test_deleted_rows_of_an_old_function_do_not_come_back_from_the_table(write):
    study = tiny_study(estimators=["mine_two:edges", "random"], seeds=[0, 1])
    leave(study, seeds=(0, 1), accuracy=0.25)
    leave(study, "random", seeds=(0, 1))
    results.collect(study)
    write(3)
    for file in (study.folder / "04-retrain").glob("mine_two.edges/rows/*"):
        file.unlink()
    results.check_sources(study)
    owed = [row for cell in Grid(study).cells for row in Grid(study).missing(cell) if row.measure == "retrain"]
    assert {row.seed for row in owed if row.estimator == "mine_two:edges"} == {0, 1}
    assert not [row for row in owed if row.estimator == "random"]
    leave(study, seeds=(0,), accuracy=0.75)
    table = results.table(study)
    assert table[table.estimator == "mine_two:edges"].accuracy.tolist() == [0.75]
    assert sorted(table[table.estimator == "random"].seed) == [0, 1]


def test_a_published_estimator_whose_function_has_changed_is_left_out_aloud_and_not_lost(write):
    study = tiny_study(estimators=["mine_two:edges", "random"], seeds=[0, 1], percents=[50])
    for name in ("clean", "mine_two:edges", "random"):
        leave(study, name, seeds=(0, 1))
    file = results.collect(study)
    for row in study.folder.glob("04-retrain/*/rows/*"):
        row.unlink()
    write(3)
    results._keys.cache_clear()
    table = results.table(study)
    assert set(table.estimator) == {"clean", "random"}
    found = verdicts.verdicts(table, "pixel", "remove")
    assert report.doubts(study, table, found)[0].endswith("made them: 2 rows of mine_two:edges.")
    results.collect(study)
    assert file.read_text().count("mine_two:edges") == 2
    leave(study, seeds=(1,), accuracy=0.75)
    results.collect(study)  # the new version has a row: the two are never mixed
    assert pd.read_csv(file).query("estimator == 'mine_two:edges'").accuracy.tolist() == [0.75]


@pytest.mark.parametrize(
    "key, value, what", [("data", "b", "data sets .data: a, b"), ("source", "b", "versions behind")]
)
def test_results_of_two_machines_that_do_not_belong_together_are_an_error(write, key, value, what):
    study = tiny_study(seeds=[0, 1])
    for seed in (0, 1):
        results.write(study, Key("retrain", "random", "pixel", "remove", 50, seed), 0.5, data="a")
    assert len(results.table(study)) == 2
    file = study.folder / "04-retrain/random/rows/retrain_random_pixel_remove_p50_s1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(InputError, match=what):
        results.table(study)


@pytest.mark.parametrize("estimator", ["mine_two:edges", "grad", "random"])
def test_a_row_says_what_its_ranking_was_made_with(write, estimator):
    """The function is edited, or the network made anew, between the ranking and its retrainings."""
    study = tiny_study(estimators=[estimator, "random"], seeds=[0, 1, 2])
    key = Key("ranking", estimator, "pixel")
    base = results.base_file(study, "model.safetensors")
    base.parent.mkdir(parents=True)
    base.write_bytes(b"one")
    results.write(study, key)
    leave(study, estimator)
    write(3)
    if estimator == "mine_two:edges":
        with pytest.raises(InputError, match="edges: its function, maps or options changed after its ranking was made"):
            leave(study, estimator, seeds=(1,))
        write(2)
    leave(study, estimator, seeds=(1,))
    base.write_bytes(b"two")
    os.utime(base, ns=(1, 1))
    if estimator != "random":
        with pytest.raises(InputError, match=f"{estimator}: the network that it explains changed .*02-attribute/"):
            leave(study, estimator, seeds=(2,))
        results.write(study, key)  # ranked anew
    leave(study, estimator, seeds=(2,))
    assert len(results.table(study)) == 3
    file = results.row_file(study, key)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "b"}))  # of another machine
    with pytest.raises(InputError, match="versions behind"):
        results.table(study)


def test_a_clone_without_the_users_file_keeps_the_published_rows(write, tmp_path):
    study = tiny_study(estimators=["mine_two:edges", "random"])
    leave(study)
    results.collect(study)
    for file in study.folder.glob("04-retrain/*/rows/*"):
        file.unlink()
    (tmp_path / "mine_two.py").unlink()
    sys.modules.pop("mine_two")
    assert results.table(study).accuracy.tolist() == [0.5]
    assert Key("retrain", "mine_two:edges", "pixel", "remove", 50, 0) in results.published(study)


def test_a_published_study_can_be_continued(outputs):
    """Rows of results.csv count as done; what new rows need is made again, and nothing else."""
    study = tiny_study(seeds=[0, 1], percents=[50])
    for cell in Grid(study).cells:
        for key in cell.rows:
            results.write(study, key, None if key.measure == "ranking" else 0.5)
    results.collect(study)
    for file in study.folder.glob("*/*/rows/*"):
        file.unlink()
    grid = Grid(study)
    assert grid.to_do(grid.cells) == []
    more = Grid(tiny_study(seeds=[0, 1, 2], percents=[50]))
    todo = [cell.id for cell in more.to_do(more.cells)]
    again = ["01-train/base", "02-attribute/grad", "02-attribute/controls"]
    assert todo == again + [f"04-retrain/{name}/s2" for name in ("clean", "grad", "random")]
    new = Grid(tiny_study(seeds=[0, 1], percents=[50], estimators=["grad", "random", "sobel"]))
    todo = [cell.id for cell in new.to_do(new.cells)]
    assert todo == [
        "01-train/base",
        "02-attribute/controls",
        "03-degrade/controls",
        "04-retrain/sobel/s0",
        "04-retrain/sobel/s1",
    ]


def with_options(options, *names):
    options = {"mine_two:edges": options} if options else {}
    return tiny_study(estimators=[*(names or ["mine_two:edges-sgsq"]), "random"], estimator_options=options)


def test_other_options_are_another_version(write):
    leave(with_options({"steps": 20}), "mine_two:edges-sgsq")
    results.check_sources(with_options({"steps": 20}))
    results.check_sources(with_options({"steps": 20}, "mine_two:edges-blur"))
    results.check_sources(with_options({}, "grad"))  # taken out, options and all
    for other in ({"steps": 30}, {"steps": 20, "more": 1}, {}):
        with pytest.raises(InputError, match=r'mine_two:edges is not what it was .* \S+ \{"steps": 20\} then'):
            results.check_sources(with_options(other))


def test_published_rows_by_other_options_are_made_anew(write):
    study = with_options({"steps": 20})
    leave(study, "mine_two:edges-sgsq")
    results.collect(study)
    for file in (study.folder / "04-retrain").glob("*/rows/*"):
        file.unlink()
    key = Key("retrain", "mine_two:edges-sgsq", "pixel", "remove", 50, 0)
    assert results.has(study, key) and not results.has(with_options({"steps": 30}), key)


def test_published_rows_by_another_model_go_whether_listed_or_not(write):
    listed = tiny_study(model="mine_two:net", estimators=["grad", "sobel", "random"])
    for name in ("sobel", "mine_two:edges"):
        leave(with_options({"steps": 2}).model_copy(update={"model": "mine_two:net"}), name)
    results.collect(listed)
    for file in (listed.folder / "04-retrain").glob("*/rows/*"):
        file.unlink()
    keys = [Key("retrain", name, "pixel", "remove", 50, 0) for name in ("sobel", "mine_two:edges")]
    fewer = listed.model_copy(update={"estimators": ["grad", "random"]})
    assert all(results.has(fewer, key) for key in keys)
    write(3)
    results._keys.cache_clear()  # as in a new process
    assert not any(results.has(study, key) for study in (listed, fewer) for key in keys)


def test_rows_that_name_no_source_are_taken_as_they_are(write):
    study = tiny_study(estimators=["mine_two:edges", "grad"])
    leave(study)
    leave(study, "mine_two:edges", seeds=(1,))
    for file in (study.folder / "04-retrain/mine_two.edges/rows").glob("*s1.json"):
        file.write_text(file.read_text().replace('"source"', '"none"'))
    results.check_sources(study)
    results.collect(study)
    results._keys.cache_clear()
    assert {key.seed for key in results.published(study)} == {0, 1}
    results.check_sources(tiny_study(estimators=["grad"]))
