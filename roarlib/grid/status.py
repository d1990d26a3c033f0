"""Progress: one bar for terminal, notebook and log, and the state of a whole study from its files alone."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pandas as pd
import tqdm
import tqdm.auto

from roarlib.grid.cells import Cell, Grid
from roarlib.study import results
from roarlib.study.params import Study

RECENT = 600  # seconds back over which the rate of retrainings is taken


class Lines(tqdm.tqdm):
    """A bar for a file, where it cannot be redrawn: every update is a new line."""

    def display(self, msg=None, pos=None):
        self.fp.write(f"{msg or self}\n")
        self.fp.flush()

    def clear(self, nolock=False):
        pass

    def refresh(self, nolock=False, lock_args=None):
        if not nolock:  # else it is only redrawn below other output
            super().refresh(lock_args=lock_args)


def on_terminal(**options) -> tqdm.tqdm:
    """A bar on stderr; where that is no terminal, a line at most every 15 seconds, and one at the end."""
    kind, interval = (tqdm.tqdm, 0.5) if sys.stderr.isatty() else (Lines, 15)
    return kind(file=sys.stderr, mininterval=interval, **options)


@contextmanager
def preparing() -> Iterator[Callable[[int, int], None]]:
    """A bar of decoded images, as a function (done, total); it shows only if it is called."""
    with on_terminal(unit="image", desc="preparing images", delay=2) as bar:

        def told(done: int, total: int):
            bar.total = total
            bar.update(done - bar.n)

        yield told


def bar(total: int, unit: str, **options) -> tqdm.tqdm:
    """A tqdm bar. Headless (ROAR_HEADLESS is set): plain, to stderr, a line at most every 30 seconds."""
    if os.environ.get("ROAR_HEADLESS"):
        return tqdm.tqdm(total=total, unit=unit, file=sys.stderr, mininterval=30, maxinterval=60, **options)
    return tqdm.auto.tqdm(total=total, unit=unit, **options)


def table(grid: Grid) -> pd.DataFrame:
    """Cells by stage (rows) and state (columns done, running, failed, waiting), from the files alone."""
    states = [(cell.stage, grid.state(cell)) for cell in grid.cells]
    counts = pd.DataFrame(states, columns=["stage", "state"]).value_counts().unstack(fill_value=0)
    return counts.reindex(
        index=[s for s in results.STAGES.values() if s in counts.index],
        columns=["done", "running", "failed", "waiting"],
        fill_value=0,
    ).rename_axis(index=None, columns=None)


def counts(grid: Grid, cells: list[Cell]) -> str:
    """One line: cells done by stage, and retrainings."""
    owed = {cell.id: grid.missing(cell) for cell in cells}
    done, there = Counter(c.stage for c in cells if not owed[c.id]), Counter(c.stage for c in cells)
    parts = [f"{stage} {done[stage]}/{there[stage]}" for stage in results.STAGES.values() if there[stage]]
    rows = [row for cell in cells for row in cell.rows if row.measure == "retrain"]
    left = sum(row.measure == "retrain" for found in owed.values() for row in found)
    clean = sum(row.estimator == "clean" for row in rows)
    untouched = f", {clean} of the {len(rows)} on untouched images" if clean else ""
    return f"{grid.study.name}: cells done {', '.join(parts)}; retrainings {len(rows) - left} of {len(rows)}{untouched}"


def rate(study: Study) -> float:
    """Retrainings per minute over the last ten minutes, or since the first one if that is later; 0 if there is none."""
    found = results.rows(study)
    ages = (datetime.now(UTC) - pd.to_datetime(found[found.measure == "retrain"].finished, utc=True)).dt.total_seconds()
    ages = ages[ages.between(0, RECENT)]  # negative: by a clock ahead of ours
    return 60 * len(ages) / max(ages.max(), 1) if len(ages) > 1 else 0.0


def failures(grid: Grid) -> list[str]:
    """One line per failed cell: its id, the cause, and where its notebook is."""
    failed = [cell for cell in grid.cells if grid.state(cell) == "failed"]
    return [f"{c.id}: {grid.error_file(c).read_text().strip()} (see {grid.notebook(c)})" for c in failed]


def text(grid: Grid) -> str:
    """The state of a study for a terminal: table, retrainings, rate and time left, failures."""
    now = rate(grid.study)
    left = sum(row.measure == "retrain" for cell in grid.cells for row in grid.missing(cell))
    pace = f"{now:.1f} retrainings a minute of late, about {duration(60 * left / now)} left" if now and left else ""
    seen = [f"{grid.study.name}: {look}" for look in grid.looks]
    return "\n".join(filter(None, [table(grid).to_string(), counts(grid, grid.cells), *seen, pace, *failures(grid)]))


def duration(seconds: float) -> str:
    """Seconds as people say it: 45 s, 12.3 min, 4.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
