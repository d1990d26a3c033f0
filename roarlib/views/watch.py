"""A widget for JupyterLab that starts a study's run, or watches one that runs elsewhere, from the files alone.

Below its progress are the curves of the rows so far, redrawn as more come.
"""

import html
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

from ipywidgets import HTML, Button, HBox, IntProgress, ToggleButton, VBox

from roarlib.grid import status
from roarlib.grid.cells import Grid
from roarlib.study import params, results
from roarlib.views.curves import Curves

EVERY = 2.0  # seconds between looks


class Run(VBox):
    """Progress of the study in `file`, by cells and retrainings, with buttons to start a run, stop it and watch.

    The run is a process of its own (`roar run`), which ends with this notebook's kernel. Watching also shows runs that
    were started from a terminal or on a cluster.
    """

    def __init__(self, file: str | Path):
        self.file, self.study, self.process = str(file), params.load(file), None
        self.rows, self.curves = -1, None
        self.bar = IntProgress(description="cells", tooltip="Share of the cells that are done")
        self.shown = HTML()
        self.begin = Button(description="Start", tooltip="Run what is not done yet, as `roar run` does")
        self.stop = Button(description="Stop", tooltip="End the run started here; rows are kept", disabled=True)
        self.watching = ToggleButton(description="Watch", tooltip="Look at the files every two seconds")
        self.begin.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.interrupt())
        self.watching.observe(lambda change: change.new and Thread(target=self.watch, daemon=True).start(), "value")
        super().__init__([HBox([self.begin, self.stop, self.watching]), self.bar, self.shown])
        self.look()

    def start(self) -> None:
        """Begin `roar run` in a process of its own and watch it; nothing if one started here is still running."""
        if not self.alive():
            self.printed = self.study.folder / "run.log"
            self.printed.parent.mkdir(parents=True, exist_ok=True)
            with self.printed.open("w") as log:
                command = [Path(sys.executable).with_name("roar"), "run", self.file]
                self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.watching.value = True

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def interrupt(self) -> None:
        """Stop the run that was started here, as Ctrl-C would."""
        if self.alive():
            self.process.terminate()

    def look(self) -> bool:
        """Show what the files say now; True while the run started here goes on, or any cell runs."""
        self.refresh()
        alive, cells, said = self.alive(), status.table(self.grid).sum(), status.text(self.grid)
        self.bar.max, self.bar.value = int(cells.sum()), int(cells["done"])
        if not alive and self.process is not None and self.process.returncode:
            last = self.printed.read_text().strip().splitlines()[-1:]
            said = "\n".join([said, f"the run ended with status {self.process.returncode}", *last])
        self.shown.value = f"<pre>{html.escape(said)}</pre>"
        self.begin.disabled, self.stop.disabled = alive, not alive
        return alive or bool(cells["running"])

    def refresh(self) -> None:
        """Plan and draw again if the number of rows has changed; what was chosen stays chosen."""
        rows = len(list(self.study.folder.glob("*/*/rows/*.json")))
        if rows == self.rows:
            return
        self.rows, self.grid, tables = rows, Grid(self.study), {self.study.name: results.table(self.study)}
        if self.curves and self.curves.figure:
            self.curves.tables = tables
            self.curves.redraw()
        else:
            self.curves = Curves(tables)
            self.children = [*self.children[:3], self.curves]

    def watch(self) -> None:
        """Look until nothing runs any more or watching is switched off."""
        going = True
        while self.watching.value and going:
            time.sleep(EVERY)
            going = self.look()
        self.watching.value = False
