"""The notebooks as users run them: the smoke study by the command line, the report, every notebook by nbval."""

import os
import platform
import re
import subprocess
import sys
import textwrap
from importlib.metadata import version

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROAR, ROOT, roar, tiny_study

from roarlib.study import params
from roarlib.study.results import STAGES

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_smoke_study_leaves_every_row(smoke):
    _, folder, printed = smoke
    study, table = params.load("params/smoke.yaml"), pd.read_csv(folder / "results.csv")
    assert " 0 failed" in printed and "Traceback" not in printed
    kinds = len(study.units) * len(study.modes) * len(study.percents) * len(study.estimators)
    counts = table.measure.value_counts()
    assert counts["retrain"] == kinds + 1 and counts["deletion"] == kinds and counts["base"] == 1
    assert table[table.measure != "ranking"].accuracy.between(0, 1).all()
    assert not list(folder.rglob("*.part*")) and not list(folder.rglob("*.progress.json"))


@pytest.mark.parametrize("name", ["01-train/base", "02-attribute/grad", "03-degrade/grad"])
def test_the_stages_show_their_pictures(smoke, name):
    """A figure that no backend was there to draw would be the words <Figure size ..>."""
    _, folder, _ = smoke
    cells = nbformat.read(folder / name / "notebook.ipynb", 4).cells
    shown = [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in data for data in shown)
    assert not [data for data in shown if "<Figure" in data.get("text/plain", "") and "image/png" not in data]


def test_a_second_run_runs_no_cell(smoke):
    environment, folder, _ = smoke
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.suffix in (".json", ".npy", ".ipynb")}
    assert "all 32 cells are done" in roar(environment, "run", "params/smoke.yaml")
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert "04-retrain 23/23; retrainings 177 of 177, 1 of the 177 on untouched images" in roar(
        environment, "status", "params/smoke.yaml"
    )


def test_the_report_is_one_page_with_the_figures_inside(smoke, smoke_report):
    _, folder, _ = smoke
    file, printed = smoke_report
    text = file.read_text()
    page = BeautifulSoup(text, "html.parser")
    assert (
        "SG-SQ-GRAD" in printed
        and "minus Random's" in printed
        and str(folder / "report.html") in printed
        and len(text) < 5_000_000
    )
    assert not re.search(r"https?://", text)  # nothing is fetched
    assert [h.text for h in page.find_all("h2")] == [
        "Accuracy curves", "Degraded images", "Against the paper", "Better than random?",
        "Can we trust this?", "How it was made",
    ]  # fmt: skip
    assert len(page.find_all("img")) >= 10 and all(i["alt"] and i["src"][:11] == "data:image/" for i in page("img"))
    assert all(head.button.text for head in page.select("th")) and "With 1 seed" in page.select_one(".lead").text
    assert "import " not in page.main.text and "Removed or kept" in page.main.text  # readers see no code
    how = page.find(id="how-it-was-made").find_parent("section")
    study, told = params.load("params/smoke.yaml"), {cell.text for cell in how.select("td")}
    assert {*params.Study.model_fields, "177", version("torch"), version("roarlib")} <= told
    assert {str(study.epochs), platform.python_version(), "differs", "cpu"} <= told
    assert (folder / "figures" / "curves-pixel-remove.png").stat().st_size > 10_000


def test_every_notebook_runs_with_its_defaults(smoke):
    environment, _, _ = smoke
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-n0",  # in one process: stages depend on each other
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=300",
        "-p",
        "no:cacheprovider",
        *map(str, NOTEBOOKS),
    ]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d+ passed", done.stdout) and "failed" not in done.stdout


def test_same_numbers_again(smoke):
    """A retraining that is run again, in another kernel, gives the same accuracy to the bit."""
    environment, folder, _ = smoke
    row = "retrain_grad-sgsq_pixel_remove_p50_s0.json"
    file = folder / "04-retrain" / "grad-sgsq" / "rows" / row
    study = params.load("params/smoke.yaml")
    before = pd.read_json(file, typ="series")
    file.unlink()
    assert "all 32 cells are done" in roar(environment, "run", "params/smoke.yaml")  # the table knows it still
    (folder / "results.csv").unlink()
    roar(environment, "run", "params/smoke.yaml")
    after = pd.read_json(file, typ="series")
    assert after.accuracy == before.accuracy and after.params == before.params and study.name == after.study


def test_the_readmes_own_estimator_flows_through_everything(tmp_path):
    """README's function, word for word, and a Captum class: ranked, retrained, tabled, drawn, with no other edit."""
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"\n((?:    .*\n|\n)*    def cam(?:    .*\n|.*\n)*?)\n\S", readme)[1]
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    described = yaml.safe_load(re.search(r"\n((?:    [a-z_]+: .*\n)*    seeds: .*\n)", readme)[1])
    assert {"random", "mine:cam", "mine:cam-sgsq"} < set(params.Study(name="my", **described).estimators)
    names = ["mine:cam", "mine:cam-sgsq", "captum:InputXGradient", "random"]
    study = tiny_study(name="own", estimators=names, noise_samples=2, epochs=3)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(study.model_dump()))
    environment = os.environ | {"ROAR_OUTPUTS": str(tmp_path / "outputs")}
    for command in ("run", "report"):
        done = subprocess.run(
            [ROAR, command, "own.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in ("mine:cam", "SG-SQ-mine:cam", "captum:InputXGradient", "Random"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebooks_keep_the_house_style(file):
    notebook = nbformat.read(file, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    # prose that code shows where its results are there: `if show.part(what, """prose"""):`, of which the `if` counts
    shown = re.compile(r'show\.part\(\n[^\n]*\n    """\n(.*?)""",\n\)', re.S)
    prose = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    prose += [text for c in code for text in shown.findall(c.source)]
    lengths = [len(shown.sub("part", c.source).splitlines()) for c in code]
    assert all(not c.outputs and c.execution_count is None for c in code), "outputs not stripped"
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    assert prose[0].startswith("# ") and all(word in prose[0] for word in ("**Reads**", "**Writes**"))
    assert max(lengths) <= 15 and sum(lengths) <= (60 if file.stem[0] == "0" else 100)
    assert any("assert " in c.source for c in code) or file.stem.startswith("11")
    assert not any(re.search(r"^\s*(def|class) ", c.source, re.M) for c in code)
    folded = [c.metadata.get("jupyter", {}).get("source_hidden", False) for c in code]
    assert set(folded) == {file.stem[0] == "1"}, "analyses read like pages, stages and guides show their code"
    for target in re.findall(r"\]\(([\w-]+\.ipynb)\)", " ".join(prose)):
        assert (file.parent / target).is_file(), target


def test_there_is_a_notebook_for_every_stage():
    assert [f.stem for f in NOTEBOOKS if f.stem[0] == "0"][1:] == list(STAGES.values())
