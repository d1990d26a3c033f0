import fcntl
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import dask
import psutil
import pytest
import torch
import yaml
from conftest import finish, tiny_study
from distributed import LocalCluster

from roarlib.grid import cluster, kernel, runner
from roarlib.grid.cells import Grid
from roarlib.study import machine, params
from roarlib.study.params import InputError


def test_a_claimed_cell_is_waited_for_and_not_run_twice(outputs, monkeypatch):
    study, ran = tiny_study(), []
    grid, job = Grid(study), runner.Job(params.save(study), 1)
    cell = grid.cells[0]
    monkeypatch.setattr(kernel, "execute", lambda *a, **k: ran.append(1))
    claim = grid.claim_file(cell)
    claim.parent.mkdir(parents=True)
    with claim.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as another process would
        assert grid.state(cell) == "running"
        found = []
        thread = threading.Thread(target=lambda: found.append(runner.execute(job, cell, [])))
        thread.start()
        time.sleep(1)
        assert thread.is_alive() and not ran
        growing = grid.notebook(cell).with_suffix(".part.ipynb")
        growing.parent.mkdir(parents=True, exist_ok=True)
        growing.touch()  # its rows come before the end of its notebook
        finish(study, cell)
        thread.join(5)
    assert found[0].error == "" and not ran and grid.state(cell) == "done"
    assert growing.exists()  # the other process is about to give it its name


def test_a_claim_whose_holder_died_is_taken_over(outputs, monkeypatch):
    study = tiny_study()
    grid, job = Grid(study), runner.Job(params.save(study), 1)
    cell = grid.cells[0]
    monkeypatch.setattr(kernel, "execute", lambda *a, **k: finish(study, cell))
    grid.claim_file(cell).parent.mkdir(parents=True)
    grid.claim_file(cell).write_text("elsewhere 12345\n")  # nobody holds its lock
    assert runner.execute(job, cell, []).error == "" and not grid.missing(cell)
    left = grid.notebook(cell).with_suffix(".part.ipynb")
    left.touch()  # of one that was killed when its rows were all there
    assert runner.execute(job, cell, []).error == "" and not left.exists()


def test_two_local_workers_get_different_gpus(monkeypatch, outputs):
    """Every cell has a GPU that no other cell has at the time, and one that fails gives it back."""
    monkeypatch.setattr(cluster, "gpus_of", lambda study: ["2", "5"])
    monkeypatch.setattr(cluster, "machine", lambda study: (2, 1))
    study, lock, busy, seen = tiny_study(seeds=[0, 1]), threading.Lock(), [], []
    grid = Grid(study)

    def execute(source, target, parameters, *, threads, timeout, env):
        gpu = env["CUDA_VISIBLE_DEVICES"]
        with lock:
            busy.append(gpu)
            seen.append(sorted(busy))
        time.sleep(0.2)
        with lock:
            busy.remove(gpu)
        if source.stem == "03-degrade":
            raise kernel.NotebookFailed(target, "ValueError: boom")
        finish(study, next(cell for cell in grid.cells if grid.notebook(cell) == target))

    monkeypatch.setattr(kernel, "execute", execute)
    outcomes = runner.Run(study).run()
    assert {o.cell.stage for o in outcomes if o.error} == {"03-degrade"} and len(seen) == len(grid.cells)
    assert {gpu for at_once in seen for gpu in at_once} == {"2", "5"} and ["2", "5"] in seen
    assert all(len(set(at_once)) == len(at_once) for at_once in seen)


def test_cells_at_a_time_follow_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    assert cluster.machine(tiny_study()) == (8, 1) and cluster.machine(tiny_study(workers=3)) == (3, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.machine(tiny_study(device="auto")) == (4, 2)
    assert cluster.machine(tiny_study(device="cuda:1")) == (1, 8)
    assert cluster.gpus_of(tiny_study(device="cuda")) == ["0", "1", "2", "3"] and not cluster.gpus_of(tiny_study())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert cluster.gpus_of(tiny_study(device="auto")) == ["3", "7"] and not cluster.gpus_of(tiny_study(device="cuda:1"))


JOBQUEUE = "SLURM SETTINGS NOT TESTED: dask-jobqueue is not installed"


@pytest.mark.parametrize(
    "text, says",
    [
        ("job: 3", "unknown key 'job'; known are jobs and dask-jobqueue's: "),
        ("jobs: 2\ngpus: 1", "unknown key 'gpus'"),
        ("memory: 4GB", "jobs, the number of jobs at a time, must be a whole number from 1"),
        ("jobs: 0", "must be a whole number from 1"),
        ("jobs: many", "must be a whole number from 1"),
        ("jobs: 2\njob-script-prologue: module load cuda", "job-script-prologue = 'module load cuda': must be a list"),
        ("jobs: 2\nscheduler-options: 127.0.0.1", "scheduler-options = '127.0.0.1': must be a dict"),
        ("- jobs", "not readable as YAML"),
        ("jobs: [", "not readable as YAML"),
        ("jobs: !!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_a_bad_cluster_file_is_one_line(tmp_path, text, says):
    pytest.importorskip("dask_jobqueue", reason=JOBQUEUE)
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(InputError, match="cluster.yaml") as error:
        cluster.slurm_settings(tmp_path / "cluster.yaml")
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        cluster.slurm_settings(tmp_path / "nothing.yaml")


def test_slurm_jobs_ask_for_what_the_file_says(tmp_path, outputs):
    """The script that sbatch would get, of dask-jobqueue itself."""
    jobqueue = pytest.importorskip("dask_jobqueue", reason=JOBQUEUE)
    values = {
        "jobs": 4,
        "queue": "gpu",
        "account": "me",
        "cores": 8,
        "memory": "30GB",
        "walltime": "01:00:00",
        "job-extra-directives": ["--constraint=h100", "--gres=gpu:1"],
        "job-script-prologue": ["module load cuda"],
        "scheduler-options": {"host": "127.0.0.1"},
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(values))
    settings = cluster.slurm_settings(tmp_path / "cluster.yaml")
    assert settings.pop("jobs") == 4
    assert settings["scheduler_options"] == {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with jobqueue.SLURMCluster(**settings) as made:
        script, address = made.job_script().splitlines(), made.scheduler_address
    asked = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert {"-p gpu", "-A me", "--cpus-per-task=8", "-t 01:00:00", "--constraint=h100", "--gres=gpu:1"} <= asked
    assert any(line.startswith("--mem=") for line in asked) and address.startswith("tcp://127.0.0.1:")
    exports = script.index(f"export ROAR_OUTPUTS={outputs.resolve()}")
    assert exports < script.index("module load cuda") < len(script) - 1
    worker = next(line for line in script if "dask_worker" in line)
    assert "--nthreads 1 " in worker and "--no-nanny" in worker and "--dashboard-address 127.0.0.1:0" in worker


def test_slurm_settings_have_defaults_and_take_any_key_of_dask_jobqueue(tmp_path, outputs):
    pytest.importorskip("dask_jobqueue", reason=JOBQUEUE)
    file = tmp_path / "cluster.yaml"
    file.write_text("jobs: 2")
    plain = cluster.slurm_settings(file)
    assert (plain["memory"], plain["walltime"], plain["job_cpu"]) == ("16GB", "04:00:00", 1)
    assert plain["log_directory"] == str(outputs / "_slurm")
    file.write_text("jobs: 2\njob-cpu: 6\nworker-extra-args: [--death-timeout, '60']\nprocesses: 3")
    more = cluster.slurm_settings(file)
    assert (more["job_cpu"], more["cores"], more["processes"]) == (6, 1, 1)  # one cell at a time
    assert more["worker_extra_args"] == ["--dashboard-address", "127.0.0.1:0", "--death-timeout", "60"]


def test_no_more_slurm_jobs_are_started_than_there_are_cells(monkeypatch):
    jobqueue = pytest.importorskip("dask_jobqueue", reason=JOBQUEUE)
    asked = []

    class Jobs(LocalCluster):
        def adapt(self, minimum_jobs, maximum_jobs):
            asked.append((minimum_jobs, maximum_jobs))

    monkeypatch.setattr(jobqueue, "SLURMCluster", Jobs)
    settings = dict(jobs=4, n_workers=0, processes=False, dashboard_address=cluster.LOOPBACK)
    for count in (9, 3):
        with cluster.slurm(settings, count) as (client, stop):
            assert client.scheduler_info()["workers"] == {} and callable(stop)
    assert asked == [(1, 4), (1, 3)]


def test_a_cell_has_all_cores_of_its_slurm_job(tmp_path, outputs, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason=JOBQUEUE)
    (tmp_path / "cluster.yaml").write_text("jobs: 3\ncores: 6\n")
    monkeypatch.setattr(
        cluster, "slurm", lambda settings, count: nullcontext((SimpleNamespace(dashboard_link=""), None))
    )
    with runner.Run(tiny_study(), slurm=tmp_path / "cluster.yaml")._client(1) as (_, _, job):
        assert job(tmp_path / "study.yaml").threads == 6


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
    grid = Grid(study)
    cells = {cell.id: cell for cell in grid.cells}
    attribute = cells["02-attribute/grad"]
    assert grid.due(attribute)
    finish(study, attribute)
    assert grid.due(attribute)  # its rankings are gone, and retrainings wait for them
    finish(study, cells["03-degrade/grad"])
    finish(study, cells["04-retrain/grad/s0"])
    assert not grid.due(attribute)  # used and deleted: not made again for nobody


def test_a_run_keeps_its_own_lists_and_knows_of_others(outputs):
    one, two = tiny_study(units=["pixel", "value"]), tiny_study(units=["pixel"])
    with runner.present(one) as (file, alone):
        assert alone()
        with runner.present(two) as (other, _):
            assert not alone()
            assert params.load(file).units == ["pixel", "value"] and params.load(other).units == ["pixel"]
        assert alone()


def test_room_is_shared_by_the_cells_at_a_time(monkeypatch):
    cpu = torch.device("cpu")
    free = lambda: type("Memory", (), {"available": 12 * 10**9})  # noqa: E731
    monkeypatch.setattr(machine.psutil, "virtual_memory", free)
    monkeypatch.setattr(machine, "_allowed", lambda: [])
    assert machine.room(tiny_study(workers=2), cpu) == 2 * 10**9
    assert machine.room(tiny_study(memory_gb=7), cpu) == 7 * 10**9
    monkeypatch.setattr(machine, "_allowed", lambda: [3 * 10**9])  # a job's limit
    assert machine.room(tiny_study(workers=1), cpu) == 10**9


def test_a_local_run_listens_on_loopback_alone(outputs):
    before = {c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"}
    with cluster.local(tiny_study(), 2):
        found = {c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"} - before
    assert found and all(address.ip == "127.0.0.1" for address in found)


def test_a_local_run_that_was_stopped_for_a_while_goes_on(outputs, monkeypatch):
    """After Ctrl-Z for five minutes nothing would run any more: workers not heard of for so long are dropped."""
    monkeypatch.setattr("distributed.scheduler.heartbeat_interval", lambda workers: 0.01)
    with dask.config.set({"distributed.scheduler.worker-ttl": "0.1s"}), cluster.local(tiny_study(), 1) as client:
        time.sleep(1.5)  # heartbeats are a second apart
        assert client.submit(int, "7").result(timeout=20) == 7
