"""Running cells through papermill: on this machine, on a Dask cluster that is there, or on SLURM.

The graph of cells is given to Dask; the files are the truth. Every cell is claimed by a lock on a file while it runs,
so that several runs share one study: what another process works on is waited for, while the rest goes on.
"""

import fcntl
import functools
import hashlib
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roarlib import grid, params, results
from roarlib.grid import Cell
from roarlib.params import InputError, Study

VERSIONS = ("roarlib", "torch", "torchvision", "numpy", "captum", "papermill", "distributed")  # must agree
WAITS, INTERRUPTED = "not run: it needs", "interrupted"  # how the errors of cells begin that did not fail themselves
STOP: Callable | None = None  # ends what runs elsewhere for this process
GPUS: queue.Queue | None = None  # free GPUs of this process's workers; None: a cell sees all that this process sees


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `error` is empty, or one line; `notebook` is the executed copy, None if it was not run."""

    cell: Cell
    seconds: float
    error: str = ""
    notebook: Path | None = None


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


@contextmanager
def claim(study: Study, cell: Cell) -> Iterator[bool]:
    """Hold the cell's lock; True if it is held and the cell is still to be run.

    While another process has it, wait outside of the worker's slot, so that others go on.

    The lock ends with its process, however that ends. A shared file system must support flock (NFS 4 and Lustre do).
    """
    file = grid.claim_file(study, cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        held = _try_lock(opened, fcntl.LOCK_EX)
        if not held:
            with _outside_slot():
                while not held and grid.due(study, cell):
                    time.sleep(0.5)
                    held = _try_lock(opened, fcntl.LOCK_EX)
        yield held and grid.due(study, cell)


def _try_lock(file, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _present(study: Study) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """Be known as a run of the study: (a file with this run's own parameters, a function: is no other run there?).

    study.yaml beside it speaks of the latest run; cells must not change under a run whose lists are others.
    """
    text = yaml.safe_dump(study.model_dump(), sort_keys=False)
    own = study.folder / ".runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    params.write_atomically(own, text)
    with own.with_name("lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)

        def alone() -> bool:
            only = _try_lock(file, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_SH)  # a failed upgrade has lost it
            return only

        yield own.resolve(), alone


@contextmanager
def _outside_slot():
    """Leave the Dask worker's slot to another cell meanwhile; elsewhere nothing."""
    from distributed import get_worker, rejoin, secede

    try:
        get_worker()
    except ValueError:
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


def execute(
    study_file: Path, cell: Cell, needs: list[Outcome], threads: int | None = None, run_id: str = ""
) -> Outcome:
    """Run one cell here, in a fresh kernel. Never raises for what a notebook does: the Outcome says it.

    threads: of the kernel; None: what this machine warrants. run_id: whose cell it is, for `kernel.stop`.
    """
    from roarlib import kernel

    failed = next((n for n in needs if n.error), None)
    if failed:
        return Outcome(cell, 0.0, f"{WAITS} {failed.cell.id}")
    started, target = time.perf_counter(), None
    try:
        study = params.load(study_file)
        target = results.folder(study, cell.stage, cell.name) / f"{cell.part}.ipynb"
        with claim(study, cell) as wanted:
            target.with_suffix(".part.ipynb").unlink(missing_ok=True)  # of one that was killed
            if not wanted:  # another run has done it
                return Outcome(cell, 0.0)
            parameters = {"study_file": str(study_file), **cell.parameters}
            source = params.root() / "notebooks" / f"{cell.stage}.ipynb"
            threads = threads or machine(study)[1]
            with _gpu() as env:
                env |= {"ROAR_RUN": run_id}
                kernel.execute(source, target, parameters, threads=threads, timeout=3600 * study.cell_hours, env=env)
            owed = grid.missing(study, cell)
            error = f"ended without {len(owed)} of its rows, {owed[0]} first" if owed else ""
            note = grid.error_file(study, cell)
            params.write_atomically(note, error) if error else note.unlink(missing_ok=True)
    except kernel.NotebookFailed as problem:
        error = problem.cause
        with suppress(OSError):
            params.write_atomically(grid.error_file(study, cell), error)
    except (OSError, InputError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Outcome(cell, time.perf_counter() - started, error, target)


@contextmanager
def _gpu() -> Iterator[dict[str, str]]:
    """The environment of a cell: with one free GPU of this process, if they are handed out."""
    if GPUS is None:
        yield {}
        return
    number = GPUS.get()
    try:
        yield {"CUDA_VISIBLE_DEVICES": number}
    finally:
        GPUS.put(number)


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


def run(
    study: Study,
    only: str | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
    scheduler: str | None = None,
    slurm: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Run all cells that are not done, several at a time; `report` hears of each as it ends. Returns all outcomes.

    scheduler: address of a Dask scheduler to use. slurm: YAML of `Slurm`, to start workers as jobs. Neither: this
    machine. say: hears where the work goes on. InputError where no worker can do it.
    """
    from distributed import as_completed

    global STOP
    run_id = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    params.save(study)
    todo = grid.to_do(study, grid.select(grid.cells(study), only))
    if not todo:
        return []
    with _present(study) as (file, alone), _client(study, len(todo), scheduler, slurm) as client:
        if scheduler is None and client.dashboard_link:  # it listens on loopback, whatever the link's host says
            say(f"dashboard: http://127.0.0.1:{urlsplit(client.dashboard_link).port}/status")
        able = _able(client, study) if scheduler else None
        STOP = functools.partial(client.run, kernel_stop, run_id) if scheduler else STOP
        threads = None if scheduler or slurm else machine(study)[1]
        futures, outcomes, by_key = {}, [], {cell.id: cell for cell in todo}
        for place, cell in enumerate(todo):
            needs = [futures[n] for n in cell.needs if n in futures]
            key = f"{study.name}/{cell.id}/{run_id}"  # two runs on one scheduler are two
            futures[cell.id] = client.submit(
                execute, file, cell, needs, threads, run_id, key=key, priority=-place, workers=able, retries=2
            )
        names = {future.key: name for name, future in futures.items()}
        for future in as_completed(futures.values()):
            outcome = _outcome(future, by_key[names[future.key]])
            outcomes.append(outcome)
            report(outcome)
            if study.rankings == "recompute" and alone():  # another run may need what this one does not
                grid.drop_used(study)
    return outcomes


def abandon(seconds: float = 5) -> None:
    """End what runs elsewhere for this process, in so many seconds at most; for a process about to leave."""
    if STOP:
        end = threading.Thread(target=STOP, daemon=True)
        end.start()
        end.join(seconds)


def kernel_stop(run_id: str) -> None:
    """On a worker: kill the kernels of one run."""
    from roarlib import kernel

    kernel.stop(run_id)


def _outcome(future, cell: Cell) -> Outcome:
    """What a future tells, or why it tells nothing: its workers died, or the scheduler did."""
    if future.status == "finished":
        return future.result()
    cause = "the scheduler was lost" if future.status in ("cancelled", "lost") else repr(future.exception())
    return Outcome(cell, 0.0, f"{INTERRUPTED}: {cause}")


@contextmanager
def _client(study: Study, count: int, scheduler: str | None, slurm: Path | None):
    """A Dask client: of an existing scheduler, of SLURM jobs, or of threads of this process.

    Threads: each waits for a kernel process of its own, and one server of forked kernels serves all.
    """
    global GPUS, STOP
    from distributed import Client, LocalCluster

    from roarlib import leave

    if scheduler:
        try:
            client = Client(scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {scheduler}: {' '.join(str(error).split())[:120]}"
            ) from None
        with client:
            yield client
    elif slurm:
        wanted = slurm_settings(slurm)
        with _slurm_cluster(wanted) as cluster, Client(cluster) as client:
            client.register_plugin(leave.Leave())
            STOP = functools.partial(cluster.close, timeout=4)
            cluster.adapt(minimum_jobs=1, maximum_jobs=min(wanted.jobs, count))
            yield client
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
            Client(cluster) as client,
        ):
            yield client


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

    from roarlib.train import precision_of

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


def _able(client, study: Study) -> list[str] | None:
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
