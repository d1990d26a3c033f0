"""The command `roar`: create, prepare, plan, run, follow and report studies, each given by its YAML file."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import click

from roarlib.grid import status
from roarlib.grid.cells import Grid
from roarlib.study import files, fresh, params, results
from roarlib.study.files import outputs, write_atomically
from roarlib.study.params import InputError

# Commands import what loads torch, Dask or papermill only when they need it, so that the others respond at once.

study_file = click.argument("study_file", metavar="STUDY.yaml")
only = click.option(
    "--only",
    metavar="GLOB",
    help="Only cells whose id matches, as '04-retrain/grad*/s0', and the cells that they need.",
)


START = (
    "Where to start: `roar run params/demo.yaml` runs the demo, a few minutes; `roar new my.yaml` writes a study of "
    "your own, to plan, run and report. `make lab` opens the notebooks."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=START)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool):
    """ROAR, RemOve And Retrain: run a study of feature-importance estimators, cell by cell.

    A cell is one execution of a stage's notebook, such as one estimator's retrainings with
    one seed. STUDY.yaml is a file in params/, or your own; results go to outputs/<name>/ in the
    project, or beside your own file.
    """


@cli.command()
@click.argument("study_file", metavar="STUDY.yaml", type=Path)
@click.option("--dataset", default="textures", show_default=True, help="A data set, folder:PATH, npz:FILE ..")
@click.option("--model", default="resnet-tiny", show_default=True, help="A model's name, or module:function.")
@click.option("--estimator", multiple=True, help="Add an estimator, such as mine:edges (repeatable).")
def new(study_file, dataset, model, estimator):
    """Write a commented study file of your own."""
    click.echo(fresh.write(study_file, dataset, model, estimator))


@cli.command()
@study_file
def prepare(study_file):
    """Decode, resize and crop the images once into the arrays that all stages read; if that is done, check them."""
    from roarlib.data import datasets
    from roarlib.data import prepare as prepared

    study = _load(study_file)
    folder = datasets.prepared(study)
    if (folder / "meta.json").is_file():
        if damaged := prepared.damaged(folder):
            raise InputError(f"{folder}: {' and '.join(damaged)} differ from what was written; delete that folder")
        with status.preparing() as told:
            parts = datasets.changed(study, thorough=True, progress=told)
        if parts:
            raise InputError(
                f"the {' and '.join(parts)} pictures, or how they are read, have changed; to take them anew, delete "
                f"{folder}"
            )
        click.echo("prepared already, and every byte is as it was written")
    with status.preparing() as told:
        datasets.load(study, told)
    click.echo("\n".join(datasets.notes(study)) + f"\n{folder}")


@cli.command()
@study_file
def images(study_file):
    """List the study's images in order, in a CSV (index, split, file, label, sha256), for maps made elsewhere."""
    from roarlib.data import datasets, listing

    study = _load(study_file)
    with status.preparing() as told:
        datasets.current(study, told)
    file = study.folder / "images.csv"
    write_atomically(file, listing.images(study).to_csv(index=False))
    click.echo(f"{file}: maps in this order, or with such a list beside them, fit the study")


@cli.command()
@study_file
@only
def plan(study_file, only):
    """List the cells, what is done, the disk space needed and the time left, and try the study on a few images."""
    study = _load(study_file)
    from roarlib.data import datasets
    from roarlib.grid import cluster, preflight

    counts, shape, _ = datasets.sizes(study)
    ready = study.dataset in datasets.ARRAYS or (datasets.prepared(study) / "meta.json").is_file()
    images, ranked = preflight.disk_bytes(study)
    found, spent = preflight.check(study, say=lambda line: click.echo(line, err=True), whole=ready)
    grid = Grid(study)
    chosen = grid.select(only)
    todo = grid.to_do(chosen)
    for cell in chosen:
        owed = len(grid.missing(cell))
        state = "done" if not owed else f"{len(cell.rows) - owed} of {len(cell.rows)} rows"
        click.echo(f"  {cell.id:<46} {state}")
    click.echo(status.counts(grid, chosen))
    if study.seeds == "auto":
        click.echo(f"seeds: auto judges next after {len(grid.seeds['random'])} seeds, and last after {study.seeds_max}")
    click.echo(
        f"data: {counts['train']:,} train and {counts['test']:,} test images of {shape}; still to be written: "
        f"{_size(images)} of images, {_size(ranked)} of rankings"
    )
    workers, threads = cluster.machine(study)
    left = status.duration(preflight.seconds_left(grid, found, todo, spent))
    each = f"with {workers} cells at a time, {threads} thread{'s' * (threads > 1)} each"
    click.echo(f"left: about {left} {each}" if todo else "left: nothing")
    click.echo("tried on a few images: the model and every estimator work")
    click.echo(_next(grid, study_file))


@cli.command()
@study_file
@only
@click.option(
    "--scheduler", metavar="ADDRESS", help="Use the Dask scheduler at tcp://host:port instead of this machine."
)
@click.option("--slurm", metavar="CLUSTER.yaml", type=Path, help="Start workers as SLURM jobs, as this file says.")
@click.option("--anyway", is_flag=True, help="Go on even if the base model has learnt nothing.")
def run(study_file, only, scheduler, slurm, anyway):
    """Run every cell that is not done, through papermill. Exit status: 1 if a cell failed, 2 if only for bad input.

    Several runs may work on one study at a time, here or elsewhere: they share its cells.
    """
    if scheduler and slurm:
        raise InputError("use --scheduler or --slurm, not both")
    started = time.perf_counter()
    study = _load(study_file)
    grid = Grid(study)
    chosen = grid.select(only)
    todo = grid.to_do(chosen)
    if not todo:
        results.check_sources(study)
        seen = "".join(f"{study.name}: {look}\n" for look in grid.looks)
        click.echo(f"{seen}{study.name}: all {len(chosen)} cells are done; `roar report {study_file}` shows them")
        return
    from roarlib.grid import preflight, runner

    going = runner.Run(study, scheduler, slurm, lambda line: status.Lines.write(line, file=sys.stderr))
    with status.preparing() as told:
        preflight.check(study, told, lambda line: click.echo(line, err=True))
    there = len(chosen) - len(todo)
    with status.on_terminal(total=len(chosen), initial=there, unit="cell", desc=study.name) as bar:
        failed, trained = [], []

        def report(outcome: runner.Outcome):
            bar.total = len(going.grid.select(only))  # looks may have added cells
            if outcome.cell.measure == "base":
                check_base()
            if outcome.error and not outcome.error.startswith(runner.WAITS):
                failed.append(outcome)
            elif outcome.seconds:
                trained.extend(row for row in outcome.cell.rows if row.measure == "retrain")
            rate = 60 * len(trained) / (time.perf_counter() - started)
            said = f"{rate:.{int(rate < 10)}f} retrainings/min" + (f", {len(failed)} failed" if failed else "")
            bar.set_postfix_str(said, refresh=sys.stderr.isatty())
            bar.update(not outcome.error)
            if outcome.error and not outcome.error.startswith((runner.WAITS, runner.INTERRUPTED)):
                bar.write(f"FAILED {outcome.cell.id}: {outcome.error} (see {outcome.notebook})", file=sys.stderr)

        def leave(number, frame):
            """Exit within seconds: kernels here die with this process, those elsewhere are stopped."""
            going.abandon()
            said = "\nStopped; finished rows are kept. Run the same command again to go on."
            print(said, file=sys.stderr, flush=True)
            os._exit(128 + number)

        def check_base():
            if not anyway and (said := results.nothing_learnt(study)):
                with bar.external_write_mode(sys.stderr):
                    click.secho(said, fg="red", err=True)  # plain text where stderr is no terminal
                going.abandon()
                os._exit(1)

        check_base()
        signal.signal(signal.SIGINT, leave)
        signal.signal(signal.SIGTERM, leave)
        outcomes = going.run(only, report)
    if len(results.rows(study)):
        results.collect(study)
    said, left, code = runner.ended(study, outcomes, time.perf_counter() - started)
    click.echo(said)
    click.echo(left, err=True, nl=bool(left))
    if not code:
        click.echo(_next(Grid(study), study_file))
    sys.exit(code)


def _load(study_file):
    study = params.load(study_file)
    if study.home != outputs():
        click.echo(f"results: {study.folder}", err=True)
    params.agree(study)
    return study


def _next(grid, study_file) -> str:
    """The command to run next: `run` while cells are left, then `report`."""
    return f"next: roar {'run' if grid.to_do(grid.cells) else 'report'} {shlex.quote(str(study_file))}"


@cli.command("status")
@click.argument("study_file", metavar="[STUDY.yaml]", required=False)
def status_(study_file):
    """Say what is done, running, failed and waiting, by the files alone; without STUDY.yaml, counts of all studies."""
    if study_file:
        click.echo(status.text(Grid(_load(study_file))))
        return
    there = files.studies()
    for grid in (Grid(params.load(file)) for file in there):
        click.echo(status.counts(grid, grid.cells))
    if not there:
        click.echo(f"no study has results under {outputs()} yet. {START}")


@cli.command()
@study_file
def collect(study_file):
    """Gather all rows into outputs/<name>/results.csv."""
    study = _load(study_file)
    file = results.collect(study)
    click.echo(f"{file}: {len(results.table(study))} measurements")


@cli.command()
@study_file
def report(study_file):
    """Run the analysis notebooks and render them as one HTML page; print a table and where page and figure are."""
    from roarlib.views import report

    click.echo(report.render(_load(study_file)))


@cli.command()
@click.argument("study_files", metavar="STUDY.yaml [OTHER.yaml ..]", nargs=-1, required=True)
@click.option("--text-width", default=5.5, help="Inches: 5.5 for NeurIPS and ICLR (default), 6.75 for ICML.")
def paper(study_files, text_width):
    """Write tables, figures, methods, references and checklist in LaTeX, for one study or several side by side."""
    from roarlib.views import latex

    click.echo(latex.write([_load(file) for file in study_files], text_width))


@cli.command()
@click.argument("study_files", metavar="[STUDY.yaml ..]", nargs=-1)
@click.option("--unit", default="", help="pixel or value; default: what most of the studies have.")
@click.option("--mode", default="", help="remove, keep ..; default: what most of them have.")
def compare(study_files, unit, mode):
    """Compare studies (all with results, if none is named): differences from Random, ranks of shared estimators."""
    from roarlib.answers import across

    click.echo(across.text(across.compare(across.load(study_files or files.studies()), unit, mode)))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def main():
    """Entry point: a mistake of the user's prints one line and exits with status 2; --debug shows the traceback."""
    if sys.getfilesystemencoding() != "utf-8":  # a locale that cannot encode every path: restart in UTF-8
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    try:
        cli(standalone_mode=False)
    except (InputError, LookupError, OSError) as error:
        if "--debug" in sys.argv or isinstance(error, (KeyError, IndexError)):
            raise
        named = isinstance(error, OSError) and error.filename
        click.echo(f"roar: {f'{error.filename}: {error.strerror}' if named else error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
