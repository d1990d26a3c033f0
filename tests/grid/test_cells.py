import json
from datetime import UTC, datetime, timedelta

import nbformat
import papermill
import pytest
from conftest import finish, tiny_study

from roarlib.grid import kernel, runner, status
from roarlib.grid.cells import Grid
from roarlib.study import params, rankings, results
from roarlib.study.files import root
from roarlib.study.params import InputError
from roarlib.study.results import STAGES, Key


def run(study, only=None, **more):
    return runner.Run(study).run(only, **more)


def test_rows_of_a_clock_ahead_of_ours_do_not_count_for_the_pace(outputs):
    study, now = tiny_study(seeds=[0, 1, 2]), datetime.now(UTC)
    for seed, minutes in ((0, 4), (1, 2), (2, -30)):
        key = Key("retrain", "grad", "pixel", "remove", 50, seed)
        results.write(study, key, 0.5)
        file = results.row_file(study, key)
        row = json.loads(file.read_text()) | {"finished": (now - timedelta(minutes=minutes)).isoformat()}
        file.write_text(json.dumps(row))
    assert 0.3 < status.rate(study) <= 0.5  # two in four minutes


def test_a_study_has_a_cell_for_everything_and_no_row_twice():
    study = tiny_study(
        estimators=["paper", "oracle"],
        units=["pixel", "value"],
        modes=["remove", "keep"],
        percents=[10, 50],
        seeds=[0, 1],
    )
    cells = Grid(study).cells
    assert [sum(c.stage == s for c in cells) for s in STAGES.values()] == [1, 4, 4, 2 * (21 + 1), 0]
    rows = [row for cell in cells for row in cell.rows]
    files = {results.row_file(study, row) for row in rows}
    assert len(set(rows)) == len(files) == len(rows) and len({c.id for c in cells}) == len(cells)
    assert all(row.cell == cell.name for cell in cells for row in cell.rows)
    assert sum(row.measure == "retrain" for row in rows) == 2 * (21 * 2 * 2 * 2 + 1)
    assert sum(row.measure == "deletion" for row in rows) == 21 * 2 * 2 * 2


def test_a_check_with_random_weights_has_cells_where_it_is_asked_for():
    names = ["grad", "grad-mix25", "ig-recursive", "random"]
    grid = Grid(tiny_study(estimators=names, sanity_images=20, units=["pixel", "value"]))
    asked = [cell for cell in grid.cells if cell.measure == "sanity"]
    assert [cell.id for cell in asked] == ["05-randomise/grad", "05-randomise/controls"]  # of models at hand alone
    assert (
        asked[0].parameters == {"estimators": ["grad"]} and len(asked[0].rows) == 2 * 6 * 2
    )  # units, depths, percents
    assert asked[0].needs == ("01-train/base", "02-attribute/grad")
    assert status.counts(grid, grid.cells).count("05-randomise 0/2") == 1
    assert "05-randomise" not in status.counts(Grid(tiny_study()), Grid(tiny_study()).cells)


def test_needs_come_before_what_needs_them_and_seeds_come_in_turn():
    cells = Grid(tiny_study(estimators=["paper"], seeds=[3, 1])).cells
    place = {cell.id: k for k, cell in enumerate(cells)}
    assert all(place[need] < place[cell.id] for cell in cells for need in cell.needs)
    parts = [cell.part for cell in cells if cell.stage == "04-retrain"]
    assert parts == ["s3"] * 21 + ["s1"] * 21
    assert cells[1].id == "02-attribute/ig"  # the costliest first


def test_percent_zero_alone_needs_no_estimator():
    cells = Grid(tiny_study(percents=[0])).cells
    assert [c.id for c in cells if c.stage == "04-retrain"] == ["04-retrain/clean/s0"]


def test_the_untouched_retraining_of_the_base_models_seed_waits_for_it(outputs):
    """Which leaves its row; a base model that is there, brought, or of another seed leaves none."""

    def needs(**more):
        return {c.id: c.needs for c in Grid(tiny_study(seeds=[0, 1], **more)).cells if "clean" in c.id}

    assert needs() == {"04-retrain/clean/s0": ("01-train/base",), "04-retrain/clean/s1": ()}
    each = needs(base_models="each-seed")
    assert each == {f"04-retrain/clean/s{k}": (f"01-train/base/s{k}",) for k in (0, 1)}
    there = needs(rankings="recompute")
    assert there == {"04-retrain/clean/s0": ("01-train/base",), "04-retrain/clean/s1": ()}
    assert set(needs(base_weights="mine.pt").values()) == set(needs(base_seed=7).values()) == {()}
    study = tiny_study(seeds=[0, 1])
    finish(study, Grid(study).cells[0])
    assert set(needs().values()) == {()}


def test_notebooks_take_the_parameters_that_cells_give():
    each = tiny_study(base_models="each-seed", seeds=[0, 1], sanity_images=9)
    for cell in Grid(each).cells:
        known = papermill.inspect_notebook(root() / "notebooks" / f"{cell.stage}.ipynb")
        assert {"study_file", *cell.parameters} == set(known)


def test_every_seed_has_its_own_base_model_and_rankings_and_comes_whole():
    study = tiny_study(base_models="each-seed", seeds=[3, 5], base_seed=3, estimators=["grad", "random"])
    cells = Grid(study).cells
    half = len(cells) // 2
    assert all(
        row.seed == seed for seed, part in ((3, cells[:half]), (5, cells[half:])) for c in part for row in c.rows
    )
    assert [c.id for c in cells[half:]] == [
        "01-train/base/s5",
        "02-attribute/grad/s5",
        "02-attribute/controls/s5",
        "03-degrade/grad/s5",
        "03-degrade/controls/s5",
        *(f"04-retrain/{name}/s5" for name in ("clean", "grad", "random")),
    ]
    by_id = {cell.id: cell for cell in cells}
    assert by_id["04-retrain/grad/s5"].needs == ("02-attribute/grad/s5",)
    assert by_id["02-attribute/grad/s5"].needs == ("01-train/base/s5",)
    files = {file.name for cell in cells for file in Grid(study).files_of(cell)}
    assert {"model-b3.safetensors", "model-b5.safetensors", "grad-pixel-train-b5.npy"} <= files
    with pytest.raises(ValueError, match="base_seed: 0 is none of the seeds"):
        tiny_study(base_models="each-seed", seeds=[3, 5])


def test_a_cell_is_done_when_all_its_rows_are_there(outputs):
    study = tiny_study(percents=[10, 50])
    grid = Grid(study)
    cell = grid.cells[-1]
    assert grid.missing(cell) == list(cell.rows)
    finish(study, cell, cell.rows[:1])
    assert grid.missing(cell) == list(cell.rows[1:])
    finish(study, cell)
    assert not grid.missing(cell)
    more = Grid(tiny_study(percents=[10, 50, 90])).cells[-1]  # a longer list keeps what is done
    assert len(grid.missing(more)) == 1


def test_select_takes_what_is_needed_along():
    grid = Grid(tiny_study())
    chosen = {c.id for c in grid.select("04-retrain/grad/*")}
    assert chosen == {"04-retrain/grad/s0", "02-attribute/grad", "01-train/base"}
    with pytest.raises(InputError, match="no cell has such a name"):
        grid.select("05*")


@pytest.fixture
def fake(monkeypatch, outputs):
    """Replaces the kernel: a cell leaves its rows at once, or fails if its name is in `fail`."""
    ran, fail = [], {}

    def execute(source, target, parameters, *, threads=None, timeout=None, env=None):
        study = params.load(parameters["study_file"])
        grid, name = Grid(study), f"{source.stem}/{target.parent.name}"
        ran.append(name)
        if name in fail:
            raise kernel.NotebookFailed(target, fail[name])
        for cell in grid.cells:
            if target == grid.notebook(cell):
                finish(study, cell)

    monkeypatch.setattr(kernel, "execute", execute)
    return ran, fail


def test_a_run_does_everything_once_and_a_second_run_nothing(fake):
    ran, _ = fake
    study = tiny_study(seeds=[0, 1])
    assert not any(o.error for o in run(study))
    assert len(ran) == len(Grid(study).cells) == 1 + 2 + 2 + 6
    assert run(study) == [] and len(ran) == 11


def test_one_bad_cell_does_not_stop_the_others_and_is_run_again(fake):
    ran, fail = fake
    fail["02-attribute/grad"] = "ValueError: boom"
    heard = []
    outcomes = {o.cell.id: o for o in run(tiny_study(), report=heard.append)}
    assert outcomes["02-attribute/grad"].error == "ValueError: boom"
    assert str(outcomes["02-attribute/grad"].notebook).endswith("02-attribute/grad/notebook.ipynb")
    assert outcomes["04-retrain/grad/s0"].error == "not run: it needs 02-attribute/grad"
    assert {o.cell.id for o in outcomes.values() if not o.error} == {
        "01-train/base",
        "02-attribute/controls",
        "03-degrade/controls",
        "04-retrain/random/s0",
        "04-retrain/clean/s0",
    }
    assert len(heard) == len(outcomes)
    fail.clear()
    ran.clear()
    assert not any(o.error for o in run(tiny_study()))
    assert sorted(ran) == ["02-attribute/grad", "03-degrade/grad", "04-retrain/grad"]


def test_a_notebook_that_ends_without_its_rows_has_failed(monkeypatch, outputs):
    monkeypatch.setattr(kernel, "execute", lambda *a, **k: None)
    outcome = next(o for o in run(tiny_study()) if o.cell.id == "01-train/base")
    assert outcome.error.startswith("ended without 1 of its rows, base_clean")


def test_a_failing_notebook_keeps_its_traceback_and_its_finished_rows(outputs):
    """For real, through papermill: the third retraining fails, two rows stay, the next run does the third alone."""
    study = tiny_study(estimators=["random"], percents=[10, 50, 90])
    good = [o for o in run(study, "02-attribute/controls") if not o.error]
    assert len(good) == 2
    ranking = rankings.path(study, "random", "pixel", "train")
    whole = ranking.read_bytes()
    ranking.write_bytes(whole[:1000])
    outcome = next(o for o in run(study, "04-retrain/random/*") if o.error)
    assert outcome.error.startswith("ValueError") and outcome.notebook.is_file()
    cells = nbformat.read(outcome.notebook, 4).cells
    assert any(out.output_type == "error" for c in cells if c.cell_type == "code" for out in c.outputs)
    ranking.write_bytes(whole)
    assert not any(o.error for o in run(study, "04-retrain/random/*"))
    first, last = (
        results.row_file(study, Key("retrain", "random", "pixel", "remove", percent)) for percent in (10, 90)
    )
    before = json.loads(first.read_text())
    last.unlink()
    assert len(run(study, "04-retrain/random/*")) == 1 and json.loads(first.read_text()) == before


def test_used_rankings_go_and_come_again_when_they_are_needed(fake):
    study = tiny_study(rankings="recompute", estimators=["grad", "gb", "random"])
    grid = Grid(study)
    place = {cell.id: k for k, cell in enumerate(grid.cells)}
    assert place["04-retrain/grad/s0"] < place["02-attribute/gb"]  # group by group, so that few are there at a time
    assert sorted(place) == sorted(c.id for c in Grid(tiny_study(estimators=study.estimators)).cells)
    files = [rankings.path(study, e, "pixel", s) for e in study.estimators for s in ("train", "test")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    run(study, "04-retrain/grad/*")
    assert all(file.is_file() for file in files)  # its deletion scores still wait for them
    run(study)
    assert [file.is_file() for file in files] == [False, True] * 3  # those of test images stay for the analyses
    assert grid.to_do(grid.cells) == [] and run(study) == []
    more = Grid(study.model_copy(update={"seeds": [0, 1]}))
    todo = {cell.id for cell in more.to_do(more.cells)}
    assert {"02-attribute/gb", "04-retrain/gb/s1"} <= todo and "03-degrade/gb" not in todo
    assert "01-train/base" not in todo
