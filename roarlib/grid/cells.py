"""The grid: a study's cells, what each needs and leaves, and how far they are. `runner` executes them.

A cell is one execution of a stage notebook. It is done when every row it promises lies in its folder; the files are the
only truth, so a run can be stopped anywhere and started again.
"""

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from roarlib import results
from roarlib.names import group_of
from roarlib.params import InputError, Study
from roarlib.results import row_name

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
    modes = [m for m in dict.fromkeys([*study.modes, *study.scored_modes]) if m != "mask"]  # no image: nothing to score
    made = tuple(
        row_name("deletion", e, u, m, p, study.base_seed)
        for e in estimators
        for u in study.units
        for m in modes
        for p in study.percents
    )
    parameters = {"estimators": estimators, "modes": modes, "percents": study.percents}
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
    return [c for c in chosen if c.id in owing or c.id in needed and not complete(study, c)]


def complete(study: Study, cell: Cell) -> bool:
    """Whether all rows of a cell are there, and all rankings if it makes any."""
    return not missing(study, cell) and all(file.is_file() for file in rankings_of(study, cell))


def due(study: Study, cell: Cell) -> bool:
    """Whether a cell must be run now: it owes rows, or rankings that a cell which owes rows needs."""
    if missing(study, cell):
        return True
    if complete(study, cell):
        return False
    return any(cell.id in other.needs and missing(study, other) for other in cells(study))


def rankings_of(study: Study, cell: Cell, splits: tuple[str, ...] = ("train", "test")) -> list[Path]:
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
            for file in rankings_of(study, cell, ("train",)):
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


def claim_file(study: Study, cell: Cell) -> Path:
    """The file whose lock a process holds while it runs the cell."""
    return study.folder / ".claims" / f"{cell.id.replace('/', '.')}.lock"


def error_file(study: Study, cell: Cell) -> Path:
    """Where the last failure of a cell is told in one line; gone once it succeeds."""
    return results.folder(study, cell.stage, cell.name) / f"{cell.part}.error"


def state(study: Study, cell: Cell) -> str:
    """done, running (its claim is held by some process), failed (the last time it ran) or waiting; from files alone."""
    if not missing(study, cell):
        return "done"
    file = claim_file(study, cell)
    if file.is_file():
        with file.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "running"
    return "failed" if error_file(study, cell).is_file() else "waiting"


def work_seconds(study: Study, owed: set[tuple[str, str]]) -> float:
    """Seconds of training, attribution and scoring in these rows, (stage/name, row file): all but overhead."""
    found = results.rows(study)
    names = [row_name(*values) for values in found[results.KEY].itertuples(index=False)]
    mine = [key in owed for key in zip(found.cell, names, strict=True)]
    return float(found.seconds[mine].sum())
