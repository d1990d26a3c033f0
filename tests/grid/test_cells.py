import json

import nbformat
import pytest
from conftest import tiny_study

from roarlib.grid import cells as grid, kernel, runner
from roarlib.study import params, results
from roarlib.study.params import InputError


def finish(study, cell, rows=None):
    """Leave rows of a cell as if it had run."""
    folder = results.folder(study, cell.stage, cell.name) / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    for row in cell.rows if rows is None else rows:
        (folder / row).write_text("{}")


def test_a_study_has_a_cell_for_everything_and_no_row_twice():
    study = tiny_study(
        estimators=["paper", "oracle"],
        units=["pixel", "value"],
        modes=["remove", "keep"],
        percents=[10, 50],
        seeds=[0, 1],
    )
    cells = grid.cells(study)
    assert [sum(c.stage == s for c in cells) for s in grid.STAGES] == [1, 4, 4, 2 * (21 + 1)]
    rows = [(c.stage, c.name, row) for c in cells for row in c.rows]
    assert len(set(rows)) == len(rows) and len({c.id for c in cells}) == len(cells)
    assert sum(row.startswith("retrain") for *_, row in rows) == 2 * (21 * 2 * 2 * 2 + 1)
    assert sum(row.startswith("deletion") for *_, row in rows) == 21 * 2 * 2 * 2


def test_needs_come_before_what_needs_them_and_seeds_come_in_turn():
    cells = grid.cells(tiny_study(estimators=["paper"], seeds=[3, 1]))
    place = {cell.id: k for k, cell in enumerate(cells)}
    assert all(place[need] < place[cell.id] for cell in cells for need in cell.needs)
    parts = [cell.part for cell in cells if cell.stage == "04-retrain"]
    assert parts == ["s3"] * 21 + ["s1"] * 21
    assert cells[1].id == "02-attribute/ig"  # the costliest first


def test_percent_zero_alone_needs_no_estimator():
    cells = grid.cells(tiny_study(percents=[0]))
    assert [c.id for c in cells if c.stage == "04-retrain"] == ["04-retrain/clean/s0"]


def test_notebooks_take_the_parameters_that_cells_give():
    import papermill

    for cell in grid.cells(tiny_study()):
        known = papermill.inspect_notebook(params.root() / "notebooks" / f"{cell.stage}.ipynb")
        assert {"study_file", *cell.parameters} == set(known)


def test_a_cell_is_done_when_all_its_rows_are_there(outputs):
    study = tiny_study(percents=[10, 50])
    cell = grid.cells(study)[-1]
    assert grid.missing(study, cell) == list(cell.rows)
    finish(study, cell, cell.rows[:1])
    assert grid.missing(study, cell) == list(cell.rows[1:])
    finish(study, cell)
    assert not grid.missing(study, cell)
    more = grid.cells(tiny_study(percents=[10, 50, 90]))[-1]  # a longer list keeps what is done
    assert len(grid.missing(study, more)) == 1


def test_select_takes_what_is_needed_along():
    cells = grid.cells(tiny_study())
    chosen = {c.id for c in grid.select(cells, "04-retrain/grad/*")}
    assert chosen == {"04-retrain/grad/s0", "02-attribute/grad", "01-train/base"}
    with pytest.raises(InputError, match="no cell is called so"):
        grid.select(cells, "05*")


@pytest.fixture
def fake(monkeypatch, outputs):
    """Replaces the kernel: a cell leaves its rows at once, or fails if its id is in `fail`."""
    ran, fail = [], {}

    def execute(source, target, parameters, *, threads=None, timeout=None, env=None):
        study = params.load(parameters["study_file"])
        name = f"{source.stem}/{target.parent.name}"
        ran.append(name)
        if name in fail:
            raise kernel.NotebookFailed(target, fail[name])
        for cell in grid.cells(study):
            folder = results.folder(study, cell.stage, cell.name)
            if source.stem == cell.stage and target == folder / f"{cell.part}.ipynb":
                finish(study, cell)

    monkeypatch.setattr(kernel, "execute", execute)
    return ran, fail


def test_a_run_does_everything_once_and_a_second_run_nothing(fake):
    ran, _ = fake
    study = tiny_study(seeds=[0, 1])
    assert not any(o.error for o in runner.run(study))
    assert len(ran) == len(grid.cells(study)) == 1 + 2 + 2 + 6
    assert runner.run(study) == [] and len(ran) == 11


def test_one_bad_cell_does_not_stop_the_others_and_is_run_again(fake):
    ran, fail = fake
    fail["02-attribute/grad"] = "ValueError: boom"
    heard = []
    outcomes = {o.cell.id: o for o in runner.run(tiny_study(), report=heard.append)}
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
    assert not any(o.error for o in runner.run(tiny_study()))
    assert sorted(ran) == ["02-attribute/grad", "03-degrade/grad", "04-retrain/grad"]


def test_a_notebook_that_ends_without_its_rows_has_failed(monkeypatch, outputs):
    monkeypatch.setattr(kernel, "execute", lambda *a, **k: None)
    outcome = next(o for o in runner.run(tiny_study()) if o.cell.id == "01-train/base")
    assert outcome.error.startswith("ended without 1 of its rows, base_clean")


def test_a_failing_notebook_keeps_its_traceback_and_its_finished_rows(outputs):
    """For real, through papermill: the third retraining fails, two rows stay, the next run does the third alone."""
    study = tiny_study(estimators=["random"], percents=[10, 50, 90])
    good = [o for o in runner.run(study, "02-attribute/controls") if not o.error]
    assert len(good) == 2
    ranking = next((outputs / "tiny" / "02-attribute" / "controls").glob("*train.npy"))
    whole = ranking.read_bytes()
    ranking.write_bytes(whole[:1000])
    outcome = next(o for o in runner.run(study, "04-retrain/random/*") if o.error)
    assert outcome.error.startswith("ValueError") and outcome.notebook.is_file()
    cells = nbformat.read(outcome.notebook, 4).cells
    assert any(out.output_type == "error" for c in cells if c.cell_type == "code" for out in c.outputs)
    ranking.write_bytes(whole)
    row = outputs / "tiny" / "04-retrain" / "random" / "rows" / "retrain_random_pixel_remove_p10_s0.json"
    assert not any(o.error for o in runner.run(study, "04-retrain/random/*"))
    before = json.loads(row.read_text())
    row.with_name("retrain_random_pixel_remove_p90_s0.json").unlink()
    assert len(runner.run(study, "04-retrain/random/*")) == 1 and json.loads(row.read_text()) == before


def test_used_rankings_go_and_come_again_when_they_are_needed(fake, outputs):
    from roarlib.engine import rank as rankings

    ran, _ = fake
    study = tiny_study(rankings="recompute", estimators=["grad", "gb", "random"])
    cells = grid.cells(study)
    place = {cell.id: k for k, cell in enumerate(cells)}
    assert place["04-retrain/grad/s0"] < place["02-attribute/gb"]  # group by group, so that few are there at a time
    assert sorted(c.id for c in cells) == sorted(c.id for c in grid.cells(tiny_study(estimators=study.estimators)))
    files = [rankings.path(study, e, "pixel", s) for e in study.estimators for s in ("train", "test")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    runner.run(study, only="04-retrain/grad/*")
    assert all(file.is_file() for file in files)  # its deletion scores still wait for them
    runner.run(study)
    assert [file.is_file() for file in files] == [False, True] * 3  # those of test images stay for the analyses
    assert grid.to_do(study, grid.cells(study)) == [] and runner.run(study) == []
    more = study.model_copy(update={"seeds": [0, 1]})
    todo = {cell.id for cell in grid.to_do(more, grid.cells(more))}
    assert {"02-attribute/gb", "04-retrain/gb/s1"} <= todo and "03-degrade/gb" not in todo
    assert "01-train/base" not in todo
