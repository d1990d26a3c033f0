"""Where cells run: this machine's cores and GPUs, a Dask cluster that is there, or jobs of SLURM."""

import functools
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roarlib import params, results
from roarlib.params import InputError, Study

VERSIONS = ("roarlib", "torch", "torchvision", "numpy", "captum", "papermill", "distributed")  # must agree
STOP: Callable | None = None  # ends what runs elsewhere for this process
GPUS: queue.Queue | None = None  # free GPUs of this process's workers; None: a cell sees all that this process sees


class Slurm(BaseModel):
    """What `--slurm` reads from YAML: the workers' jobs, one worker each. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")

    jobs: int = Field(ge=1)  # at most so many at a time; fewer when less is left to do
    walltime: str = "04:00:00"
    memory: str = "16GB"
    cores: int = Field(1, ge=1)  # of one job; more only help a GPU's cell: on a CPU take more jobs
    queue: str | None = None
    account: str | None = None
    gpus: int = Field(0, ge=0, le=1)  # of one job, asked for as --gres=gpu:1
    directives: list[str] = []  # more lines for #SBATCH
    prologue: list[str] = []  # shell lines before the worker starts: module load, conda activate
    host: str | None = None  # address of this machine that the jobs can reach; None: its name's


def machine(study: Study) -> tuple[int, int]:
    """(cells at a time, threads a cell) here: a cell a core with one thread each, or a cell a GPU."""
    cores = results.cores()
    workers = study.workers or (max(1, len(gpus_of(study))) if _on_gpu(study) else cores)
    return workers, max(1, cores // workers)


def _on_gpu(study: Study) -> bool:
    import torch

    return study.device.startswith("cuda") or study.device == "auto" and torch.cuda.is_available()


def gpus_of(study: Study) -> list[str]:
    """The GPUs to hand out one a cell, as CUDA_VISIBLE_DEVICES names them; none on a CPU or for one named `cuda:1`."""
    import torch

    if study.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    shown = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
    return shown or [str(n) for n in range(torch.cuda.device_count())]


@contextmanager
def gpu() -> Iterator[dict[str, str]]:
    """The environment of a cell: with one free GPU of this process, if they are handed out."""
    if GPUS is None:
        yield {}
        return
    number = GPUS.get()
    try:
        yield {"CUDA_VISIBLE_DEVICES": number}
    finally:
        GPUS.put(number)


@contextmanager
def client(study: Study, count: int, scheduler: str | None, slurm: Path | None):
    """A Dask client: of an existing scheduler, of SLURM jobs, or of threads of this process.

    Threads: each waits for a kernel process of its own, and one server of forked kernels serves all.
    """
    global GPUS, STOP
    from distributed import Client, LocalCluster

    from roarlib import leave

    if scheduler:
        try:
            found = Client(scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {scheduler}: {' '.join(str(error).split())[:120]}"
            ) from None
        with found:
            yield found
    elif slurm:
        wanted = slurm_settings(slurm)
        with _slurm_cluster(wanted) as cluster, Client(cluster) as found:
            found.register_plugin(leave.Leave())
            STOP = functools.partial(cluster.close, timeout=4)
            cluster.adapt(minimum_jobs=1, maximum_jobs=min(wanted.jobs, count))
            yield found
    else:
        workers, gpus = machine(study)[0], gpus_of(study)
        GPUS = queue.Queue() if gpus else None
        for k in range(workers if gpus else 0):
            GPUS.put(gpus[k % len(gpus)])
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=min(workers, count),
                processes=False,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",  # else its page is open to the network
                silence_logs=50,
            ) as cluster,
            Client(cluster) as found,
        ):
            yield found


def slurm_settings(file: Path) -> Slurm:
    """The settings of a SLURM cluster from YAML; InputError (one line) for anything unknown or wrong."""
    try:
        return Slurm(**(yaml.safe_load(Path(file).read_text()) or {}))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise InputError(f"{file}: not readable as YAML: {' '.join(str(error).split())[:120]}") from None
    except ValidationError as error:
        raise InputError(f"{file}: {'; '.join(params.explain(e, Slurm) for e in error.errors())}") from None


def _slurm_cluster(wanted: Slurm):
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise InputError("--slurm needs dask-jobqueue: pip install -e '.[slurm]'") from None
    directives = wanted.directives + (["--gres=gpu:1"] if wanted.gpus else [])
    return SLURMCluster(
        queue=wanted.queue,
        account=wanted.account,
        cores=1,  # cells at a time; the job's other cores serve a GPU's cell, one on a CPU has a single thread
        processes=1,
        job_cpu=wanted.cores,
        memory=wanted.memory,
        walltime=wanted.walltime,
        job_extra_directives=directives,
        job_script_prologue=[f"export ROAR_OUTPUTS={params.outputs().resolve()}", *wanted.prologue],
        log_directory=str(params.outputs() / "_slurm"),
        worker_extra_args=["--dashboard-address", "127.0.0.1:0"],
        nanny=False,  # SLURM sees to lost workers; kernels are no children of a daemon then
        scheduler_options={"dashboard_address": "127.0.0.1:0", **({"host": wanted.host} if wanted.host else {})},
    )


def here() -> dict[str, str]:
    """The versions that the numbers of a cell depend on, on this machine, and what precision `auto` is."""
    import torch

    from roarlib.device import precision_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {"python": platform.python_version()} | {name: version(name) for name in VERSIONS}
    return found | {"auto precision": precision_of("auto", device)}


def writable(folder: str) -> bool:
    """Whether this process can write into a study's folder, finds the study there and keeps its outputs there."""
    probe = Path(folder) / f".probe-{platform.node()}-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError:
        return False
    return (Path(folder) / "study.yaml").is_file() and params.outputs().resolve() == Path(folder).parent


def able(client, study: Study) -> list[str] | None:
    """Addresses of the scheduler's workers that see the outputs, None for all; InputError for none, or other versions.

    Only where some do not see them are cells bound to addresses, which a restarted worker loses.
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
        raise InputError(
            f"no worker of {client.scheduler.address} can write under {folder} with ROAR_OUTPUTS={Path(folder).parent}"
        )
    own, first = here(), next(iter(there.values()))
    for address, theirs in there.items():
        wanted = own | {"auto precision": first.get("auto precision")}  # the client itself computes nothing
        unlike = [f"{k} {wanted[k]} here, {theirs.get(k)} there" for k in wanted if wanted[k] != theirs.get(k)]
        if unlike:
            raise InputError(f"worker {address} has other versions: {'; '.join(unlike)}")
    return able if len(able) < len(sees) else None


def abandon(seconds: float = 5) -> None:
    """End what runs elsewhere for this process, in so many seconds at most; for a process about to leave."""
    if STOP:
        end = threading.Thread(target=STOP, daemon=True)
        end.start()
        end.join(seconds)
