"""Running cells through papermill, on whatever `cluster` provides.

The graph of cells is given to Dask; the files are the truth. Every cell is claimed by a lock on a file while it runs,
so that several runs can share a study: a cell that another process works on is waited for while the rest goes on.
"""

import fcntl
import functools
import hashlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from distributed import as_completed, get_worker, rejoin, secede

from roarlib.grid import cluster, kernel, status
from roarlib.grid.cells import Cell, Grid
from roarlib.study import params, results
from roarlib.study.files import root, try_lock, write_atomically
from roarlib.study.params import InputError, Study

WAITS, INTERRUPTED = "not run: it needs", "interrupted"  # how errors begin of cells that did not fail themselves


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `error` is empty, or one line; `notebook` is the executed copy, None if it was not run."""

    cell: Cell
    seconds: float
    error: str = ""
    notebook: Path | None = None


@contextmanager
def claim(grid: Grid, cell: Cell) -> Iterator[bool]:
    """Hold the cell's lock; yields False if another process has done the cell and still holds it.

    While another process holds it, wait outside the worker's slot, so that other cells can run.
    """
    file = grid.claim_file(cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        held = try_lock(opened)
        if not held:
            with _outside_slot():
                while not held and grid.due(cell):
                    time.sleep(0.5)
                    held = try_lock(opened)
        yield held


@contextmanager
def _outside_slot():
    """Leave the Dask worker's slot to another cell meanwhile; outside a worker, do nothing."""
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


@contextmanager
def present(study: Study) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """Be known as a run of the study; yields (a file with its own parameters, a function: is no other run there?).

    study.yaml holds the parameters of the latest run; cells must not change under a run whose lists differ.
    """
    text = params.dump(study)
    own = study.folder / ".runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    write_atomically(own, text)
    with own.with_name("lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)

        def alone() -> bool:
            only = try_lock(file)
            fcntl.flock(file, fcntl.LOCK_SH)  # a failed upgrade loses it
            return only

        yield own.resolve(), alone


@dataclass(frozen=True)
class Job:
    """What the cells of one run share. gpus: for local workers. threads: per kernel; 0: as `cluster.machine` says."""

    study_file: Path
    threads: int = 0
    gpus: tuple[str, ...] = ()
    run_id: str = ""


def execute(job: Job, cell: Cell, needs: list[Outcome]) -> Outcome:
    """Run one cell here, in a fresh kernel. Never raises for a failed notebook: the Outcome tells."""
    failed = next((n for n in needs if n.error), None)
    if failed:
        return Outcome(cell, 0.0, f"{WAITS} {failed.cell.id}")
    started, target = time.perf_counter(), None
    try:
        grid = Grid(params.load(job.study_file))
        target, note = grid.notebook(cell), grid.error_file(cell)
        with claim(grid, cell) as held:
            if held:  # otherwise another process is still writing this
                target.with_suffix(".part.ipynb").unlink(missing_ok=True)  # left by one that was killed
            if not held or not grid.due(cell):
                return Outcome(cell, 0.0)
            try:
                _in_kernel(job, grid, cell, target)
                owed = grid.missing(cell)
                error = f"ended without {len(owed)} of its rows, {owed[0].file} first" if owed else ""
            except kernel.NotebookFailed as problem:
                error = problem.cause
            with suppress(OSError):
                write_atomically(note, error) if error else note.unlink(missing_ok=True)
    except (OSError, InputError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Outcome(cell, time.perf_counter() - started, error, target)


def _in_kernel(job: Job, grid: Grid, cell: Cell, target: Path) -> None:
    parameters = {"study_file": str(job.study_file), **cell.parameters}
    env = {"ROAR_RUN": job.run_id}
    if job.gpus:
        env["CUDA_VISIBLE_DEVICES"] = job.gpus[int(get_worker().name) % len(job.gpus)]
    threads, hours = job.threads or cluster.machine(grid.study)[1], grid.study.cell_hours
    source = root() / "notebooks" / f"{cell.stage}.ipynb"
    kernel.execute(source, target, parameters, threads=threads, timeout=3600 * hours, env=env)


class Run:
    """One run of a study's cells.

    scheduler: address of a Dask scheduler to use. slurm: a file for `cluster.slurm_settings`, to start workers as jobs.
    Neither: this machine. say: called with lines for the user, such as the dashboard's address.
    """

    def __init__(
        self, study: Study, scheduler: str | None = None, slurm: Path | None = None, say: Callable = lambda line: None
    ):
        self.study, self.grid, self.scheduler, self.say = study, Grid(study), scheduler, say
        self.slurm = cluster.slurm_settings(slurm) if slurm else None
        self.id = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
        self.stop: Callable | None = None  # ends what runs elsewhere

    def run(self, only: str | None = None, report: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
        """Run all cells that are not done, several at a time; `report` gets each outcome as it comes. Returns all.

        With `seeds: auto`, `say` gets every look, and the cells that it asks for are run as well. InputError if no
        worker can do it.
        """
        params.save(self.study)
        todo, outcomes = self.grid.to_do(self.grid.select(only)), []
        if not todo:
            return []
        most = max(len(todo), len(self.study.estimators) * (self.study.seeds == "auto"))  # cells at a time
        with present(self.study) as (file, alone), self._client(most) as (client, able, job):
            while todo:
                by_key = self._submit(todo, functools.partial(client.submit, execute, job(file), workers=able))
                for future in as_completed(by_key):
                    outcomes.append(_outcome(future, by_key[future]))
                    report(outcomes[-1])
                    if self.study.rankings == "recompute" and alone():  # another run may need what this one does not
                        self.grid.drop_used()
                todo = [] if any(o.error for o in outcomes) else self._look(only)
        return outcomes

    def _submit(self, todo: list[Cell], submit: Callable) -> dict:
        """Give the cells to Dask: future -> cell."""
        futures, part = {}, len(self.grid.looks)  # a ranking may be made again after a look
        for place, cell in enumerate(todo):
            needs = [futures[n] for n in cell.needs if n in futures]
            key = f"{self.study.name}/{cell.id}/{self.id}/{part}"  # so that two runs on one scheduler do not share it
            futures[cell.id] = submit(cell, needs, key=key, priority=-place, retries=2)
        return {futures[cell.id]: cell for cell in todo}

    def _look(self, only: str | None) -> list[Cell]:
        """The cells that new looks at the rows ask for; none if there are none, as when seeds are a list."""
        seen, self.grid = len(self.grid.looks), Grid(self.study)
        for look in self.grid.looks[seen:]:
            self.say(f"{self.study.name}: {look}")
        return self.grid.to_do(self.grid.select(only)) if self.grid.looks[seen:] else []

    @contextmanager
    def _client(self, count: int):
        """The workers: (Dask client, addresses of able workers or None, study file -> Job)."""
        with ExitStack() as stack:
            able, threads, gpus = None, 0, ()
            if self.scheduler:
                client = stack.enter_context(cluster.existing(self.scheduler))
                able = cluster.able(client, self.study)
                self.stop = functools.partial(client.run, kernel.stop, self.id)
            elif self.slurm:
                client, self.stop = stack.enter_context(cluster.slurm(self.slurm, count))
                threads = int(self.slurm["job_cpu"])  # a job runs one cell at a time
            else:
                client = stack.enter_context(cluster.local(self.study, count))
                threads, gpus = cluster.machine(self.study)[1], tuple(cluster.gpus_of(self.study))
            if not self.scheduler and client.dashboard_link:  # it listens on loopback, whatever the link's host says
                self.say(f"dashboard: http://127.0.0.1:{urlsplit(client.dashboard_link).port}/status")
            yield client, able, lambda file: Job(file, threads, gpus, self.id)

    def abandon(self, seconds: float = 5) -> None:
        """End what runs elsewhere for this run, within `seconds` at most; for a process about to exit."""
        if self.stop:
            end = threading.Thread(target=self.stop, daemon=True)
            end.start()
            end.join(seconds)


def _outcome(future, cell: Cell) -> Outcome:
    """The outcome in a future, or why there is none: its workers died, or the scheduler did."""
    if future.status == "finished":
        return future.result()
    cause = "the scheduler was lost" if future.status in ("cancelled", "lost") else repr(future.exception())
    return Outcome(cell, 0.0, f"{INTERRUPTED}: {cause}")


def ended(study: Study, outcomes: list[Outcome], wall: float) -> tuple[str, str, int]:
    """What a run did and took, what is left to do, and its exit status: 1 if a cell failed, 2 if only for bad input."""
    if not outcomes:
        return f"{study.name}: another run has done the rest", "", 0
    failed = [o for o in outcomes if o.error]
    waiting = [o for o in failed if o.error.startswith(WAITS)]
    interrupted = [o for o in failed if o.error.startswith(INTERRUPTED)]
    said = (
        f"{study.name}: {len(outcomes) - len(failed)} cells in {status.duration(wall)}, "
        f"{len(failed) - len(waiting) - len(interrupted)} failed; "
        f"{int((results.rows(study).measure == 'retrain').sum())} retrainings in all"
    )
    left = [f"{len(interrupted)} cell(s) {interrupted[0].error}"] if interrupted else []
    again = "Fix the cause and run the same command again: what is done is kept."
    left += [f"{len(waiting)} more cell(s) wait for them."] * bool(waiting) + [again] * bool(failed)
    bad_input = all(o in waiting or o.error.startswith("InputError") for o in failed)
    return said, "\n".join(left), (2 if bad_input else 1) if failed else 0
