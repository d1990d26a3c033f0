"""Where cells run: this machine's cores and GPUs, an existing Dask cluster, or SLURM jobs."""

import functools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import dask
import torch
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import WorkerPlugin

from roarlib.study import params
from roarlib.study.files import outputs
from roarlib.study.machine import cores, precision_of
from roarlib.study.params import InputError, Study

VERSIONS = ("roarlib", "torch", "torchvision", "numpy", "captum", "papermill", "distributed")  # must agree
LOOPBACK = "127.0.0.1:0"  # for dashboards, which would else be open to the network


class Leave(WorkerPlugin):
    """For workers in jobs: the process ends within seconds of its worker; Dask's own shutdown can hang forever."""

    name, idempotent = "roar-leave", True

    def teardown(self, worker):
        end = threading.Timer(5, os._exit, [0])
        end.daemon = True
        end.start()


def machine(study: Study) -> tuple[int, int]:
    """(cells at a time, threads per cell) here: a cell per core with one thread each, or a cell per GPU."""
    on_gpu = study.device.startswith("cuda") or study.device == "auto" and torch.cuda.is_available()
    workers = study.workers or (max(1, len(gpus_of(study))) if on_gpu else cores())
    return workers, max(1, cores() // workers)


def gpus_of(study: Study) -> list[str]:
    """The GPUs to hand out, as CUDA_VISIBLE_DEVICES names them; none on a CPU, or where `cuda:1` names one."""
    if study.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    shown = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
    return shown or [str(n) for n in range(torch.cuda.device_count())]


@contextmanager
def local(study: Study, count: int) -> Iterator[Client]:
    """A Dask client of threads of this process: each waits for its own kernel process, forked from one server.

    If GPUs are handed out, each thread is a worker of its own, whose number says which GPU it gets. Threads cannot get
    lost, so a run that was stopped for a while (Ctrl-Z) must not take them for dead, as Dask does after five minutes.
    """
    at_once = min(machine(study)[0], count)
    workers, threads = (at_once, 1) if gpus_of(study) else (1, at_once)
    options = dict(processes=False, dashboard_address=LOOPBACK, worker_dashboard_address=LOOPBACK, silence_logs=50)
    with dask.config.set({"distributed.scheduler.worker-ttl": None}):
        cluster = LocalCluster(n_workers=workers, threads_per_worker=threads, **options)
    with cluster, Client(cluster) as client:
        yield client


@contextmanager
def existing(address: str) -> Iterator[Client]:
    """A client of an existing Dask scheduler; InputError if none answers."""
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {' '.join(str(error).split())[:120]}") from None
    with client:
        yield client


@contextmanager
def slurm(settings: dict, count: int) -> Iterator[tuple[Client, Callable]]:
    """A client of workers that run as SLURM jobs, and a function that ends these. settings: of `slurm_settings`."""
    from dask_jobqueue import SLURMCluster  # an extra, found by slurm_settings

    jobs, options = settings["jobs"], {key: value for key, value in settings.items() if key != "jobs"}
    with SLURMCluster(**options) as cluster, Client(cluster) as client:
        client.register_plugin(Leave())
        cluster.adapt(minimum_jobs=1, maximum_jobs=min(jobs, count))  # it replaces lost workers, `scale` does not
        yield client, functools.partial(cluster.close, timeout=4)


def slurm_settings(file: Path) -> dict:
    """What `--slurm` reads: `jobs`, the most to run at a time, and any of dask-jobqueue's own keys for SLURM.

    Returns them as SLURMCluster's keywords, with what this project needs; InputError (one line) for anything wrong.
    """
    try:
        import dask_jobqueue  # noqa: F401 - an extra; its import adds its keys to dask's
    except ImportError:
        raise InputError("--slurm needs dask-jobqueue: pip install -e '.[slurm]'") from None
    given = params.read(file)
    known = dask.config.get("jobqueue.slurm")
    for key, value in given.items():
        if key not in known and key != "jobs":
            raise InputError(f"{file}: unknown key '{key}'; known are jobs and dask-jobqueue's: {', '.join(known)}")
        if isinstance(known.get(key), list | dict) and not isinstance(value, type(known[key])):
            raise InputError(f"{file}: {key} = {value!r}: must be a {type(known[key]).__name__}")
    if not isinstance(given.get("jobs"), int) or given["jobs"] < 1:
        raise InputError(f"{file}: jobs, the number of jobs at a time, must be a whole number from 1")
    settings = {"cores": 1, "memory": "16GB", "walltime": "04:00:00", "log-directory": f"{outputs()}/_slurm"} | given
    # one cell at a time: a job's other cores serve a cell on a GPU; lost workers are replaced as jobs
    job_cpu = settings.get("job-cpu") or settings["cores"]
    settings |= {"job-cpu": job_cpu, "cores": 1, "processes": 1, "nanny": False}
    where = f"export ROAR_OUTPUTS={outputs().resolve()}"
    settings["job-script-prologue"] = [where, *given.get("job-script-prologue", [])]
    settings["worker-extra-args"] = ["--dashboard-address", LOOPBACK, *given.get("worker-extra-args", [])]
    settings["scheduler-options"] = {"dashboard_address": LOOPBACK} | given.get("scheduler-options", {})
    return {key.replace("-", "_"): value for key, value in settings.items()}


def here() -> dict[str, str]:
    """The versions on this machine that the numbers of a cell depend on, and the precision that `auto` means."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {"python": platform.python_version()} | {name: version(name) for name in VERSIONS}
    return found | {"auto precision": precision_of("auto", device)}


def writable(folder: str) -> bool:
    """Whether this process can write into a study's folder and finds the study there."""
    probe = Path(folder) / f".probe-{platform.node()}-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError:
        return False
    return (Path(folder) / "study.yaml").is_file()


def able(client: Client, study: Study) -> list[str] | None:
    """Addresses of the scheduler's workers that see the outputs, None for all; InputError if none, or versions differ.

    Cells are bound to addresses, which a restarted worker loses, only if some workers do not see the outputs.
    """
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=30)
    folder = str(study.folder.resolve())
    try:
        sees = client.run(writable, folder)
        able = [address for address, good in sees.items() if good]
        there = client.run(here, workers=able) if able else {}
    except (ImportError, OSError) as error:
        raise InputError(f"a worker cannot run this project: {type(error).__name__}: {error}") from None
    if not able:
        raise InputError(f"no worker of {client.scheduler.address} can write under {folder}")
    own, first = here(), next(iter(there.values()))
    for address, theirs in there.items():
        wanted = own | {"auto precision": first.get("auto precision")}  # the client itself computes nothing
        unlike = [f"{k} {wanted[k]} here, {theirs.get(k)} there" for k in wanted if wanted[k] != theirs.get(k)]
        if unlike:
            raise InputError(f"worker {address} has other versions: {'; '.join(unlike)}")
    return able if len(able) < len(sees) else None
