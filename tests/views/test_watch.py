import time

import pytest
import yaml
from conftest import finish, tiny_study

from roarlib.grid import runner, status
from roarlib.grid.cells import Grid
from roarlib.study import results
from roarlib.study.results import Key
from roarlib.views import watch


@pytest.fixture
def file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_study(epochs=3).model_dump()))
    return tmp_path / "tiny.yaml"


def settled(view, seconds=1200):
    end = time.monotonic() + seconds
    while view.watching.value:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_state_of_every_cell_is_read_from_the_files(file):
    study = tiny_study()
    grid = Grid(study)
    cells = {cell.id: cell for cell in grid.cells}
    finish(study, cells["01-train/base"])
    note = grid.error_file(cells["02-attribute/grad"])
    note.parent.mkdir(parents=True)
    note.write_text("ValueError: <boom>")
    with runner.claim(grid, cells["02-attribute/controls"]):
        table = status.table(grid)
        assert table.loc["02-attribute"].tolist() == [0, 1, 1, 0] and table.loc["01-train"].tolist() == [1, 0, 0, 0]
        assert "02-attribute/grad: ValueError: <boom> (see " in status.text(grid)
    assert status.table(grid).loc["02-attribute", "running"] == 0
    view = watch.Run(file)
    assert (view.bar.value, view.bar.max) == (1, 8) and "&lt;boom&gt;" in view.shown.value
    assert all(control.tooltip for control in (view.begin, view.stop, view.watching, view.bar))


def test_a_run_is_started_watched_and_ends(file, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.3)
    view = watch.Run(file)
    assert view.curves.figure is None and "no results of tiny yet" in view.curves.message.value
    view.begin.click()
    assert view.watching.value
    settled(view)
    assert view.process.returncode == 0, view.printed.read_text()
    assert view.bar.value == view.bar.max == 8 and "retrainings 3 of 3" in view.shown.value
    assert not view.begin.disabled and view.stop.disabled
    assert view.children[-1] is view.curves and ">GRAD<" in view.curves.picture.value
    view.curves.interval.value, before = False, view.curves.figure
    view.look()
    assert view.curves.figure is not before  # by the choice
    before = view.curves.figure
    view.look()
    assert view.curves.figure is before  # nothing is new
    results.row_file(view.study, Key("retrain", "random", "pixel", "remove", 50)).unlink()
    view.look()
    assert view.curves.figure is not before and view.curves.interval.value is False


def test_a_run_can_be_stopped(file, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.3)
    view = watch.Run(file)
    view.begin.click()
    time.sleep(2)
    view.interrupt()
    settled(view)
    assert view.process.returncode == 143 or "ended with status" in view.shown.value
