"""The grid: a study's cells, what each needs and leaves, and their progress. `runner` executes them.

A cell is one execution of a stage notebook. It is done when every row it promises is there; the files are the only
truth, so a run can be stopped anywhere and started again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from itertools import chain, product
from pathlib import Path

from roarlib.study import rankings, results
from roarlib.study.files import try_lock
from roarlib.study.names import DEPTHS, OVERLAPS, asks_model, group_of
from roarlib.study.params import InputError, Study
from roarlib.study.results import STAGES, Key


@dataclass(frozen=True)
class Cell:
    """One notebook execution: `rows` are the measurements it leaves, `needs` the cells that must be done first.

    Cells that share a folder (`name`) differ in `part`, the name of their executed notebook.
    """

    rows: tuple[Key, ...]
    parameters: dict = field(hash=False)
    needs: tuple[str, ...] = ()
    part: str = "notebook"

    @property
    def measure(self) -> str:
        return self.rows[0].measure

    @property
    def stage(self) -> str:
        """The notebook that it executes."""
        return STAGES[self.measure]

    @property
    def name(self) -> str:
        """Its folder below the study's, stage/name."""
        return self.rows[0].cell

    @property
    def id(self) -> str:
        return self.name + (f"/{self.part}" if self.part != "notebook" else "")


class Grid:
    """A study's cells, in an order that respects their needs, and their state in the files."""

    def __init__(self, study: Study):
        self.study = study

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, base model by base model; of each, early stages and costly groups first, then seed by seed."""
        wanted = self.study.base_seeds[: len(self.seeds["clean"])]  # with `seeds: auto`, those that are due
        return [cell for seed in wanted for cell in self._of_base(self.study.based(seed))]

    def _of_base(self, study: Study) -> list[Cell]:
        """The cells that rest on one base model; group by group where rankings are deleted after use.

        A base model that is still to be trained leaves the row of the untouched retraining with its seed, too: that
        cell waits for it, and has nothing left to do.
        """
        own, wanted = {} if study.base_models == "one" else {"base_seed": study.base_seed}, self.seeds
        part = f"s{study.base_seed}" if own else "notebook"
        base, groups = Cell((Key("base", seed=study.base_seed),), own, part=part), self.groups
        if own:  # what a look has told needs no rankings of later networks
            due = {group: [n for n in names if study.base_seed in wanted[n]] for group, names in groups.items()}
            groups = {group: names for group, names in due.items() if names}
        order = sorted(groups, key=lambda g: (not g.startswith("ig"), g == "controls"))  # IG costs most: start it first
        attribute = [_attribute(study, base, groups[group]) for group in order]
        scored = [[_degrade(study, base, cell), *_randomise(study, base, cell)] for cell in attribute]
        needs = {name: (cell.id,) for cell in attribute for name in cell.parameters["estimators"]}
        names = ["clean", *(name for group in groups.values() for name in group)]
        seeds = [study.base_seed] if own else wanted["clean"]
        turns = [(name, seed) for seed in seeds for name in names if seed in wanted[name]]
        same, early = ("clean", study.base_seed), not study.base_weights and self.missing(base)
        needs_of = {turn: (base.id,) if turn == same and early else needs.get(turn[0], ()) for turn in turns}
        retrain = [cell for turn, found in needs_of.items() if (cell := _retrain(study, *turn, found)).rows]
        if study.rankings == "keep":
            return [base, *attribute, *chain(*scored), *retrain]
        by_group = [[a, *s, *(c for c in retrain if a.id in c.needs)] for a, s in zip(attribute, scored, strict=True)]
        clean = [cell for cell in retrain if cell.rows[0].estimator == "clean"]
        return [base, *(cell for part in by_group for cell in part), *clean]

    @cached_property
    def looks(self) -> list:
        """What `seeds: auto` has seen so far, `looks.Look` by look; none where seeds are a list."""
        if self.study.seeds != "auto":
            return []
        from roarlib.answers import looks  # SciPy is slow to import

        return looks.made(results.known(self.study), self.study)

    @cached_property
    def seeds(self) -> dict[str, Sequence[int]]:
        """The seeds of every estimator and of `clean`; with `seeds: auto`, those that the rows ask for by now."""
        names = ["clean", *self.study.estimators]
        if self.study.seeds != "auto":
            return dict.fromkeys(names, self.study.seeds)
        from roarlib.answers import looks

        return looks.plan(self.looks, self.study)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The study's estimators by the group that they are computed in."""
        found: dict[str, list[str]] = {}
        for name in self.study.estimators:
            found.setdefault(group_of(name), []).append(name)
        return found

    def missing(self, cell: Cell) -> list[Key]:
        """The rows that a cell still owes; empty means that it is done."""
        return [row for row in cell.rows if not results.has(self.study, row)]

    def complete(self, cell: Cell) -> bool:
        """Whether all rows of a cell are there, and the files that other cells need from it."""
        return not self.missing(cell) and all(file.is_file() for file in self.files_of(cell))

    def to_do(self, chosen: list[Cell]) -> list[Cell]:
        """The cells that owe rows, and those whose files these need but which are gone (or were never in a clone)."""
        wanted = {cell.id for cell in chosen if self.missing(cell)}
        for cell in reversed(chosen):  # what a cell needs comes before it
            if cell.id in wanted:
                wanted |= {other.id for other in chosen if other.id in cell.needs and not self.complete(other)}
        return [cell for cell in chosen if cell.id in wanted]

    def due(self, cell: Cell) -> bool:
        """Whether a cell must be run now: it owes rows, or files that another due cell needs."""
        return bool(self.missing(cell)) or not self.complete(cell) and cell in self.to_do(self.cells)

    def files_of(self, cell: Cell, splits: tuple[str, ...] = ("train", "test")) -> list[Path]:
        """The files of a cell that others need: its rankings, or the base model."""
        study = self.study.based(cell.rows[0].seed)
        if cell.measure == "base":
            return [results.base_file(study, "model.safetensors")]
        made = [row for row in cell.rows if row.measure == "ranking"]
        return [rankings.path(study, row.estimator, row.unit, split) for row in made for split in splits]

    def drop_used(self) -> None:
        """Delete the rankings of training images that no cell waits for; analyses keep those of the test images."""
        waited = {need for cell in self.cells if self.missing(cell) for need in cell.needs}
        for cell in self.cells:
            if cell.measure == "ranking" and cell.id not in waited and not self.missing(cell):
                for file in self.files_of(cell, ("train",)):
                    file.unlink(missing_ok=True)

    def select(self, only: str | None) -> list[Cell]:
        """The cells whose id matches the glob `only`, with everything they need; all of them for None."""
        if not only:
            return self.cells
        by_id = {cell.id: cell for cell in self.cells}
        wanted = {name for name in by_id if fnmatch(name, only)}
        if not wanted:
            raise InputError(f"--only {only}: no cell has such a name; ids look like {self.cells[-1].id}")
        while more := {need for name in wanted for need in by_id[name].needs} - wanted:
            wanted |= more
        return [cell for cell in self.cells if cell.id in wanted]

    def claim_file(self, cell: Cell) -> Path:
        """The file whose lock a process holds while it runs the cell."""
        return self.study.folder / ".claims" / f"{cell.id.replace('/', '.')}.lock"

    def notebook(self, cell: Cell) -> Path:
        """The executed notebook of a cell."""
        return self.study.folder / cell.name / f"{cell.part}.ipynb"

    def error_file(self, cell: Cell) -> Path:
        """The file with the last failure of a cell, in one line; deleted once the cell succeeds."""
        return self.notebook(cell).with_suffix(".error")

    def state(self, cell: Cell) -> str:
        """done, running (a process holds its claim), failed (the last time it ran) or waiting; from files alone."""
        if not self.missing(cell):
            return "done"
        file = self.claim_file(cell)
        if file.is_file():
            with file.open("rb") as opened:
                if not try_lock(opened, shared=True):
                    return "running"
        return "failed" if self.error_file(cell).is_file() else "waiting"


def _attribute(study: Study, base: Cell, estimators: list[str]) -> Cell:
    made = [Key("ranking", e, u, seed=study.base_seed) for e in estimators for u in study.units]
    return Cell(tuple(made), {"estimators": estimators, **base.parameters}, (base.id,), base.part)


def _degrade(study: Study, base: Cell, attribute: Cell) -> Cell:
    estimators = attribute.parameters["estimators"]
    modes = [m for m in dict.fromkeys([*study.modes, *study.scored_modes]) if m != "mask"]  # no image to score
    made = [Key("deletion", *key, study.base_seed) for key in product(estimators, study.units, modes, study.percents)]
    parameters = {"estimators": estimators, "modes": modes, "percents": study.percents, **base.parameters}
    return Cell(tuple(made), parameters, (base.id, attribute.id), base.part)


def _randomise(study: Study, base: Cell, attribute: Cell) -> list[Cell]:
    """The sanity check of a group, in a list; none where the study does not ask for it, or no estimator can have it."""
    names = [e for e in attribute.parameters["estimators"] if asks_model(e)] if study.sanity_images else []
    made = [Key("sanity", *key, study.base_seed) for key in product(names, study.units, DEPTHS, OVERLAPS)]
    parameters = {"estimators": names, **base.parameters}
    return [Cell(tuple(made), parameters, (base.id, attribute.id), base.part)] if made else []


def _retrain(study: Study, estimator: str, seed: int, needs: tuple[str, ...]) -> Cell:
    """One cell retrains one estimator with one seed, in all units and modes at all percents; `clean` is percent 0."""
    units, modes, percents = study.units, study.modes, [p for p in study.percents if p]
    if estimator == "clean":
        units, modes, percents = ["all"], ["all"], [0]
    made = [Key("retrain", estimator, u, m, p, seed) for u in units for m in modes for p in percents]
    parameters = dict(estimator=estimator, units=units, modes=modes, percents=percents, seeds=[seed])
    return Cell(tuple(made), parameters, needs, f"s{seed}")
