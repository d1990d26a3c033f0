"""`seeds: auto` through the runner: rounds of cells, one a look, whoever runs them and however often it is stopped."""

import json
import threading

import pytest
from conftest import tiny_study
from distributed import LocalCluster

from roarlib.grid import cluster, kernel, runner, status
from roarlib.grid.cells import Grid
from roarlib.study import params, results
from roarlib.study.files import write_atomically

SHIFT = {"gb": -0.2, "grad": 0.0, "ig": 0.0, "random": 0.0, "clean": 0.3}


def study(**changes):
    return tiny_study(**dict(estimators=["gb", "grad", "ig", "random"], seeds="auto", seeds_max=8) | changes)


@pytest.fixture
def fake(monkeypatch, outputs):
    """Replaces the kernel by rows at once: gb is told after 3 seeds, grad (equal) after 5, ig never; see `fail`."""
    ran, fail, lock = [], set(), threading.Lock()
    grids = {models: Grid(study(seeds=list(range(8)), base_models=models)) for models in ("one", "each-seed")}
    by_notebook = {models: {grid.notebook(cell): cell for cell in grid.cells} for models, grid in grids.items()}

    def execute(source, target, parameters, *, threads=None, timeout=None, env=None):
        found = params.load(parameters["study_file"])
        every, cell = grids[found.base_models], by_notebook[found.base_models][target]
        with lock:
            ran.append(cell.id)
        if cell.id in fail:
            raise kernel.NotebookFailed(target, "ValueError: boom")
        for file in every.files_of(cell):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        for key in cell.rows:
            file = results.row_file(found, key)
            spread = {"ig": 0.2, "gb": 1e-6, "grad": 0.004 * (key.seed < 3)}.get(key.estimator, 0)
            more = {
                "accuracy": 0.5 + SHIFT[key.estimator] + spread * (-1) ** key.seed,
                "seconds": 36.0,
                "n_classes": 10,
                "precision": "float32",
            }
            write_atomically(file, json.dumps({"study": found.name, "cell": key.cell, **key._asdict(), **more}))

    monkeypatch.setattr(kernel, "execute", execute)
    return ran, fail


def seeds(ran):
    return {name: sum(cell.startswith(f"04-retrain/{name}/") for cell in ran) for name in SHIFT}


def test_rounds_follow_the_looks_and_a_second_run_does_nothing(fake):
    ran, said = fake[0], []
    outcomes = runner.Run(study(), say=said.append).run()
    assert not any(o.error for o in outcomes) and len(set(ran)) == len(ran) == len(outcomes)
    assert seeds(ran) == {"gb": 3, "grad": 5, "ig": 8, "random": 8, "clean": 8}
    lines = [line.partition(";")[0] for line in said if "after" in line]
    assert lines == [
        "tiny: after 3 seeds: 1 better, 0 worse, 0 equal, 2 open",
        "tiny: after 5 seeds: 1 better, 0 worse, 1 equal, 1 open",
        "tiny: after 8 seeds: 1 better, 0 worse, 1 equal, 1 open",
    ]
    assert all(line in status.text(Grid(study())) for line in lines)
    before = list(ran)
    assert runner.Run(study()).run() == [] and ran == before


def test_each_seed_may_have_its_own_network_and_what_is_told_is_ranked_for_no_more(fake):
    ran = fake[0]
    assert not any(o.error for o in runner.Run(study(base_models="each-seed")).run())
    assert seeds(ran) == {"gb": 3, "grad": 5, "ig": 8, "random": 8, "clean": 8} and len(set(ran)) == len(ran)
    ranked = {g: sum(c.startswith(f"02-attribute/{g}/") for c in ran) for g in ("gb", "grad", "ig", "controls")}
    assert ranked == {"gb": 3, "grad": 5, "ig": 8, "controls": 8} and "01-train/base/s7" in ran
    before = list(ran)
    assert runner.Run(study(base_models="each-seed")).run() == [] and ran == before


def test_a_run_that_was_stopped_goes_on_with_the_same_plan(fake):
    ran, fail = fake
    fail.add("04-retrain/ig/s4")
    assert [o.cell.id for o in runner.Run(study()).run() if o.error] == ["04-retrain/ig/s4"]
    assert seeds(ran) == {"gb": 3, "grad": 5, "ig": 5, "random": 5, "clean": 5}  # no look without all of its rows
    fail.clear()
    ran.clear()
    assert not any(o.error for o in runner.Run(study()).run())
    assert ran[0] == "04-retrain/ig/s4" and seeds(ran) == {"gb": 0, "grad": 0, "ig": 4, "random": 3, "clean": 3}


def test_a_run_that_comes_later_plans_the_same(fake):
    ran, found = fake[0], []
    options = dict(processes=False, dashboard_address=cluster.LOOPBACK, worker_dashboard_address=cluster.LOOPBACK)
    with LocalCluster(n_workers=1, threads_per_worker=3, protocol="tcp", host="127.0.0.1", **options) as made:
        second = threading.Thread(target=lambda: found.extend(runner.Run(study(), made.scheduler_address).run()))
        say = lambda line: None if second.ident else second.start()  # noqa: E731
        found += runner.Run(study(), made.scheduler_address, say=say).run()  # the second begins at the first look
        second.join()
    assert not any(o.error for o in found) and len(ran) == len(set(ran))
    assert seeds(ran) == {"gb": 3, "grad": 5, "ig": 8, "random": 8, "clean": 8}


def test_rankings_that_were_deleted_are_made_again_for_the_next_look(fake):
    ran = fake[0]
    runner.Run(study(rankings="recompute", seeds_max=5)).run()
    assert ran.count("02-attribute/ig") == 2 and ran.count("02-attribute/gb") == 1  # gb is told by the first look
