import fcntl
import queue
import threading
import time
from contextlib import suppress

import psutil
import pytest
import torch
import yaml
from conftest import tiny_study
from test_grid import finish

from roarlib.grid import cluster, cells as grid, kernel, runner
from roarlib.study import machine as device, params, results
from roarlib.study.machine import room
from roarlib.study.params import InputError


def test_a_claimed_cell_is_waited_for_and_not_run_twice(outputs, monkeypatch):
    study, ran = tiny_study(), []
    file, cell = params.save(study), grid.cells(study)[0]
    monkeypatch.setattr(kernel, "execute", lambda *a, **k: ran.append(1))
    claim = grid.claim_file(study, cell)
    claim.parent.mkdir(parents=True)
    with claim.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as another process would
        assert grid.state(study, cell) == "running"
        found = []
        thread = threading.Thread(target=lambda: found.append(runner.execute(file, cell, [], 1)))
        thread.start()
        time.sleep(1)
        assert thread.is_alive() and not ran
        growing = results.folder(study, cell.stage, cell.name) / f"{cell.part}.part.ipynb"
        growing.parent.mkdir(parents=True, exist_ok=True)
        growing.touch()  # its rows come before the end of its notebook
        finish(study, cell)
        thread.join(5)
    assert found[0].error == "" and not ran and grid.state(study, cell) == "done"
    assert growing.exists()  # the other process is about to give it its name


def test_a_claim_whose_holder_died_is_taken_over(outputs, monkeypatch):
    study = tiny_study()
    file, cell = params.save(study), grid.cells(study)[0]
    monkeypatch.setattr(kernel, "execute", lambda *a, **k: finish(study, cell))
    grid.claim_file(study, cell).parent.mkdir(parents=True)
    grid.claim_file(study, cell).write_text("elsewhere 12345\n")  # nobody holds its lock
    assert runner.execute(file, cell, [], 1).error == "" and not grid.missing(study, cell)
    left = results.folder(study, cell.stage, cell.name) / f"{cell.part}.part.ipynb"
    left.touch()  # of one that was killed when its rows were all there
    assert runner.execute(file, cell, [], 1).error == "" and not left.exists()


def test_every_cell_has_a_gpu_of_its_own_and_gives_it_back(monkeypatch):
    monkeypatch.setattr(cluster, "GPUS", queue.Queue())
    for number in ("2", "5"):
        cluster.GPUS.put(number)
    with cluster.gpu() as one, cluster.gpu() as two:
        assert {one["CUDA_VISIBLE_DEVICES"], two["CUDA_VISIBLE_DEVICES"]} == {"2", "5"} and cluster.GPUS.empty()
    with suppress(ValueError), cluster.gpu():
        raise ValueError
    assert cluster.GPUS.qsize() == 2


def test_cells_at_a_time_follow_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(cluster.results, "cores", lambda: 8)
    assert cluster.machine(tiny_study()) == (8, 1) and cluster.machine(tiny_study(workers=3)) == (3, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert cluster.machine(tiny_study(device="auto")) == (4, 2)
    assert cluster.machine(tiny_study(device="cuda:1")) == (1, 8)
    assert cluster.gpus_of(tiny_study(device="cuda")) == ["0", "1", "2", "3"] and not cluster.gpus_of(tiny_study())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert cluster.gpus_of(tiny_study(device="auto")) == ["3", "7"] and not cluster.gpus_of(tiny_study(device="cuda:1"))


@pytest.mark.parametrize(
    "text, says",
    [
        ("job: 3", "unknown key 'job'; did you mean 'jobs'?"),
        ("memory: 4GB", "the key 'jobs' is missing"),
        ("jobs: 0", "jobs = 0"),
        ("- jobs", "not readable as YAML"),
        ("jobs: [", "not readable as YAML"),
        ("jobs: !!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_a_bad_cluster_file_is_one_line(tmp_path, text, says):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(InputError, match="cluster.yaml") as error:
        cluster.slurm_settings(tmp_path / "cluster.yaml")
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        cluster.slurm_settings(tmp_path / "nothing.yaml")


def test_slurm_jobs_ask_for_what_the_file_says(tmp_path, outputs, monkeypatch):
    jobqueue = pytest.importorskip("dask_jobqueue", reason="SLURM SCRIPT NOT TESTED: dask-jobqueue is not installed")
    made = {}
    monkeypatch.setattr(jobqueue, "SLURMCluster", lambda **options: made.update(options))
    values = dict(jobs=4, queue="gpu", account="me", gpus=1, cores=8, memory="30GB", walltime="01:00:00",
                  directives=["--constraint=h100"], prologue=["module load cuda"])  # fmt: skip
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(values))
    cluster._slurm_cluster(cluster.slurm_settings(tmp_path / "cluster.yaml"))
    assert made["job_extra_directives"] == ["--constraint=h100", "--gres=gpu:1"] and made["job_cpu"] == 8
    assert made["job_script_prologue"] == [f"export ROAR_OUTPUTS={outputs.resolve()}", "module load cuda"]
    assert (made["queue"], made["account"], made["memory"], made["cores"]) == ("gpu", "me", "30GB", 1)
    assert made["scheduler_options"]["dashboard_address"].startswith("127.0.0.1")


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", ".hidden", "A", "a b", "a\n", ""])
def test_no_name_leaves_the_outputs_folder(name):
    with pytest.raises(ValueError):
        tiny_study(name=name)


@pytest.mark.parametrize("name", ["../x:f", "a/b:f", "mine:../f", "captum:../../x", "mine:f/g", "mine:f-sg/.."])
def test_no_estimator_is_a_path(name):
    with pytest.raises(ValueError):
        tiny_study(estimators=[name])


def test_a_cell_is_due_while_it_owes_rows_or_rankings_that_others_need(outputs):
    study = tiny_study(rankings="recompute", estimators=["grad"])
    cells = {cell.id: cell for cell in grid.cells(study)}
    attribute = cells["02-attribute/grad"]
    assert grid.due(study, attribute)
    finish(study, attribute)
    assert grid.due(study, attribute)  # its rankings are gone, and retrainings wait for them
    finish(study, cells["03-degrade/grad"])
    finish(study, cells["04-retrain/grad/s0"])
    assert not grid.due(study, attribute)  # used and deleted: not made again for nobody


def test_a_run_keeps_its_own_lists_and_knows_of_others(outputs):
    one, two = tiny_study(units=["pixel", "value"]), tiny_study(units=["pixel"])
    with runner._present(one) as (file, alone):
        assert alone()
        with runner._present(two) as (other, _):
            assert not alone()
            assert params.load(file).units == ["pixel", "value"] and params.load(other).units == ["pixel"]
        assert alone()


def test_room_is_shared_by_the_cells_at_a_time(monkeypatch):
    cpu = torch.device("cpu")
    free = lambda: type("Memory", (), {"available": 12 * 10**9})  # noqa: E731
    monkeypatch.setattr(device.psutil, "virtual_memory", free)
    monkeypatch.setattr(device, "_allowed", lambda: [])
    assert room(tiny_study(workers=2), cpu) == 2 * 10**9 and room(tiny_study(memory_gb=7), cpu) == 7 * 10**9
    monkeypatch.setattr(device, "_allowed", lambda: [3 * 10**9])  # a job's limit
    assert room(tiny_study(workers=1), cpu) == 10**9


def test_a_local_run_listens_on_loopback_alone(outputs):
    before = {c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"}
    with cluster.client(tiny_study(), 2, None, None):
        found = {c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"} - before
    assert found and all(address.ip == "127.0.0.1" for address in found)
