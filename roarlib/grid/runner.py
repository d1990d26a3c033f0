"""Running cells through papermill, on whatever `cluster` gives.

The graph of cells is given to Dask; the files are the truth. Every cell is claimed by a lock on a file while it runs,
so that several runs share one study: what another process works on is waited for, while the rest goes on.
"""

import fcntl
import functools
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from roarlib import cluster, grid, own, params, results
from roarlib.grid import Cell
from roarlib.params import InputError, Study

WAITS, INTERRUPTED = "not run: it needs", "interrupted"  # how the errors of cells begin that did not fail themselves


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `error` is empty, or one line; `notebook` is the executed copy, None if it was not run."""

    cell: Cell
    seconds: float
    error: str = ""
    notebook: Path | None = None


@contextmanager
def claim(study: Study, cell: Cell) -> Iterator[bool]:
    """Hold the cell's lock; False where another process has done the cell and holds it still.

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
        yield held


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
        with claim(study, cell) as held:
            if held:  # otherwise another process is still writing this
                target.with_suffix(".part.ipynb").unlink(missing_ok=True)  # of one that was killed
            if not held or not grid.due(study, cell):
                return Outcome(cell, 0.0)
            parameters = {"study_file": str(study_file), **cell.parameters}
            source = params.root() / "notebooks" / f"{cell.stage}.ipynb"
            threads = threads or cluster.machine(study)[1]
            with cluster.gpu() as env:
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

    run_id = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    params.save(study)
    own.keep(study)
    todo = grid.to_do(study, grid.select(grid.cells(study), only))
    if not todo:
        return []
    with _present(study) as (file, alone), cluster.client(study, len(todo), scheduler, slurm) as client:
        if scheduler is None and client.dashboard_link:  # it listens on loopback, whatever the link's host says
            say(f"dashboard: http://127.0.0.1:{urlsplit(client.dashboard_link).port}/status")
        able = cluster.able(client, study) if scheduler else None
        if scheduler:
            cluster.STOP = functools.partial(client.run, kernel_stop, run_id)
        threads = None if scheduler or slurm else cluster.machine(study)[1]
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
