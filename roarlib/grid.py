"""The grid: a study's cells, what each needs and leaves, and their execution through papermill on a Dask cluster.

A cell is one execution of a stage notebook. It is done when every row it promises lies in its folder; the files are the
only truth, so a run can be stopped anywhere and started again.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from roarlib import params, results
from roarlib.params import InputError, Study, group_of
from roarlib.results import row_name

LONGEST = 86_400  # seconds a cell may take before it counts as hanging
STAGES = ("01-train", "02-attribute", "03-degrade", "04-retrain")


@dataclass(frozen=True)
class Cell:
    """One notebook execution: `rows` are the row files it leaves, `needs` the cells that must be done before.

    Cells of one stage and name share a folder and differ in `part`, the name of their executed notebook.
    """

    stage: str
    name: str
    rows: tuple[str, ...]
    parameters: dict = field(hash=False)
    needs: tuple[str, ...] = ()
    part: str = "notebook"

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.name}" + (f"/{self.part}" if self.part != "notebook" else "")


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `error` is empty, or one line; `notebook` is the executed copy, None if it was not run."""

    cell: Cell
    seconds: float
    error: str = ""
    notebook: Path | None = None


def cells(study: Study) -> list[Cell]:
    """All cells of a study in an order that respects their needs: costly and early stages first, then seed by seed."""
    base = Cell("01-train", "base", (row_name("base", "clean", "all", "all", 0, study.base_seed),), {})
    groups: dict[str, list[str]] = {}
    for name in study.estimators:
        groups.setdefault(group_of(name), []).append(name)
    order = sorted(groups, key=lambda g: (not g.startswith("ig"), g == "controls"))  # IG costs most: start it first
    attribute = [_attribute_cell(study, base, group, groups[group]) for group in order]
    degrade = [_degrade_cell(study, base, cell) for cell in attribute]
    retrain = [cell for seed in study.seeds for cell in _retrain_cells(study, groups, seed)]
    if study.rankings == "keep":
        return [base, *attribute, *degrade, *retrain]
    by_group = [[a, d, *(c for c in retrain if a.id in c.needs)] for a, d in zip(attribute, degrade, strict=True)]
    return [base, *(cell for part in by_group for cell in part), *(c for c in retrain if not c.needs)]


def _attribute_cell(study, base, group, estimators) -> Cell:
    made = tuple(row_name("ranking", e, u, "all", 0, study.base_seed) for e in estimators for u in study.units)
    return Cell("02-attribute", group, made, {"estimators": estimators}, (base.id,))


def _degrade_cell(study, base, attribute) -> Cell:
    estimators = attribute.parameters["estimators"]
    made = tuple(
        row_name("deletion", e, u, m, p, study.base_seed)
        for e in estimators
        for u in study.units
        for m in study.modes
        for p in study.percents
    )
    parameters = {"estimators": estimators, "percents": study.percents}
    return Cell("03-degrade", attribute.name, made, parameters, (base.id, attribute.id))


def _retrain_cells(study, groups, seed) -> Iterator[Cell]:
    """One cell retrains one estimator with one seed, in all units and modes at all percents; `clean` is percent 0."""
    clean = (row_name("retrain", "clean", "all", "all", 0, seed),)
    parameters = {"estimator": "clean", "units": ["all"], "modes": ["all"], "percents": [0], "seeds": [seed]}
    yield Cell("04-retrain", "clean", clean, parameters, part=f"s{seed}")
    percents = [p for p in study.percents if p]
    for group, estimators in groups.items():
        for estimator in estimators if percents else ():
            made = tuple(
                row_name("retrain", estimator, u, m, p, seed)
                for u in study.units
                for m in study.modes
                for p in percents
            )
            parameters = {
                "estimator": estimator,
                "units": study.units,
                "modes": study.modes,
                "percents": percents,
                "seeds": [seed],
            }
            yield Cell(
                "04-retrain", estimator.replace(":", "."), made, parameters, (f"02-attribute/{group}",), f"s{seed}"
            )


def missing(study: Study, cell: Cell) -> list[str]:
    """The rows a cell still owes; empty means that it is done."""
    return [row for row in cell.rows if not results.has(study, cell.stage, cell.name, row)]


def to_do(study: Study, chosen: list[Cell]) -> list[Cell]:
    """The cells that owe rows, and those whose rankings they need and which were deleted (`rankings: recompute`)."""
    owing = {cell.id for cell in chosen if missing(study, cell)}
    needed = {need for cell in chosen if cell.id in owing for need in cell.needs}
    return [c for c in chosen if c.id in owing or c.id in needed and not all(f.is_file() for f in _rankings(study, c))]


def _rankings(study: Study, cell: Cell, splits: tuple[str, ...] = ("train", "test")) -> list[Path]:
    """The ranking files of an attribution cell; none of any other."""
    from roarlib import rankings

    if cell.stage != "02-attribute":
        return []
    return [rankings.path(study, e, u, s) for e in cell.parameters["estimators"] for u in study.units for s in splits]


def drop_used(study: Study) -> None:
    """Delete the rankings of training images that no cell of the study waits for; analyses keep the test images'."""
    everything = cells(study)
    waited = {need for cell in everything if missing(study, cell) for need in cell.needs}
    for cell in everything:
        if cell.id not in waited and not missing(study, cell):
            for file in _rankings(study, cell, ("train",)):
                file.unlink(missing_ok=True)


def select(all_cells: list[Cell], only: str | None) -> list[Cell]:
    """The cells whose id matches the glob `only`, with everything they need."""
    if not only:
        return all_cells
    by_id = {cell.id: cell for cell in all_cells}
    chosen = [cell.id for cell in all_cells if fnmatch(cell.id, only)]
    if not chosen:
        raise InputError(f"--only {only}: no cell is called so; ids look like {all_cells[-1].id}")
    wanted = set(chosen)
    while more := {need for c in wanted for need in by_id[c].needs} - wanted:
        wanted |= more
    return [cell for cell in all_cells if cell.id in wanted]


def execute(study_file: Path, cell: Cell, needs: list[Outcome], threads: int) -> Outcome:
    """Run one cell here, in a fresh kernel. Never raises for what a notebook does: the Outcome says it."""
    from roarlib import kernel

    failed = next((n for n in needs if n.error), None)
    if failed:
        return Outcome(cell, 0.0, f"not run: it needs {failed.cell.id}")
    study, started = params.load(study_file), time.perf_counter()
    source = params.root() / "notebooks" / f"{cell.stage}.ipynb"
    target = results.folder(study, cell.stage, cell.name) / f"{cell.part}.ipynb"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        parameters = {"study_file": str(study_file), **cell.parameters}
        kernel.execute(source, target, parameters, threads=threads, timeout=LONGEST)
        owed = missing(study, cell)
        error = f"ended without {len(owed)} of its rows, {owed[0]} first" if owed else ""
    except kernel.NotebookFailed as problem:
        error = problem.cause
    except OSError as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Outcome(cell, time.perf_counter() - started, error, target)


def run(
    study: Study, only: str | None = None, report: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Run all cells that are not done, several at a time; `report` hears of each as it ends. Returns all outcomes."""
    from distributed import Client, LocalCluster, as_completed

    file = params.save(study)
    lock = _lock(study)
    todo = to_do(study, select(cells(study), only))
    if not todo:
        lock.close()
        return []
    workers, threads = machine(study)
    # Threads of this process: each waits for a kernel process of its own, and one server of forked kernels serves all.
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=min(workers, len(todo)),
            processes=False,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        futures, outcomes = {}, []
        for place, cell in enumerate(todo):
            needs = [futures[n] for n in cell.needs if n in futures]
            futures[cell.id] = client.submit(execute, file, cell, needs, threads, key=cell.id, priority=-place)
        by_key = {cell.id: cell for cell in todo}
        for future in as_completed(futures.values()):
            if future.status == "finished":
                outcome = future.result()
            else:
                outcome = Outcome(
                    by_key[future.key], 0.0, f"its worker died: {future.exception()}", Path("no notebook")
                )
            outcomes.append(outcome)
            report(outcome)
            if study.rankings == "recompute":
                drop_used(study)
    lock.close()
    return outcomes


def _lock(study: Study) -> IO:
    """Hold the study's folder for this process; InputError if another run holds it. Ends with the process."""
    file = (study.folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another run works on {study.folder}; wait for it, or stop it first") from None
    return file


def machine(study: Study) -> tuple[int, int]:
    """(cells at a time, threads a cell): on a CPU a cell a core with one thread each; on a GPU one cell."""
    from roarlib.train import device_of

    cores = results.cores()
    workers = study.workers or (cores if device_of(study).type == "cpu" else 1)
    return workers, max(1, cores // workers)


def work_seconds(study: Study, owed: set[tuple[str, str]]) -> float:
    """Seconds of training, attribution and scoring in these rows, (stage/name, row file): all but overhead."""
    found = results.rows(study)
    names = [row_name(*values) for values in found[results.KEY].itertuples(index=False)]
    mine = [key in owed for key in zip(found.cell, names, strict=True)]
    return float(found.seconds[mine].sum())
