import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(re.findall(r"^([\w.-]+)={2,3}(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    from packaging.requirements import Requirement

    wanted = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["test"]
    pins = {normal(name): version for name, version in PINS.items()}
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[normal(requirement.name)]), requirement


@pytest.mark.skipif(version("torch") != PINS["torch"], reason="NOT THE PINNED ENVIRONMENT: another torch")
def test_the_tests_run_with_the_pinned_versions():
    for requirement in PYPROJECT["project"]["dependencies"]:
        name = re.match(r"[\w-]+", requirement)[0]
        assert version(name) == {normal(k): v for k, v in PINS.items()}[normal(name)], name


def test_constraints_hold_names_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+={2,3}[\w.]+", line) for line in lines)
    for name in ("torch", "torchvision"):  # ===: not a local build such as 2.14.1+cpu, with which torchvision fails
        assert any(re.fullmatch(rf"{name}===[\d.]+", line) for line in lines)


def test_conda_gives_python_and_pip_and_leaves_the_list_to_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[:2] == ["python=3.11", "pip"] and conda[2] == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"


def test_what_the_user_fixed_is_a_dependency():
    names = {re.match(r"[\w-]+", line)[0] for line in PYPROJECT["project"]["dependencies"]}
    assert {
        "jupyterlab",
        "papermill",
        "torch",
        "torchvision",
        "captum",
        "numpy",
        "matplotlib",
        "seaborn",
        "ipywidgets",
    } <= names


def test_plain_make_lists_every_target():
    listed = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True).stdout
    for target in "setup study test bench gpu lab report lint clean".split():
        assert re.search(rf"make {target}\s+\w", listed), target


def test_ruff_is_content():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_tracked_is_large():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert all((ROOT / f).stat().st_size < 3_000_000 for f in files if (ROOT / f).is_file())
