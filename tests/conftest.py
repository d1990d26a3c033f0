import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from xdist.scheduler import LoadScopeScheduling

from roarlib.data.datasets import Data, Split
from roarlib.study import params, results
from roarlib.study.files import root
from roarlib.study.names import KNOWN_ANSWER, PAPER

torch.set_num_threads(1)  # as the grid's workers: the same numbers whatever the machine
ROOT = root()
ROAR = Path(sys.executable).with_name("roar")
REAL_CIFAR10 = [Path(os.environ.get("ROAR_DATA", "")), ROOT / "data"]
CLEAN, CHANCE = 0.9, 0.1  # the accuracies between which the curves of `simulated` fall
EVERY = PAPER + tuple(KNOWN_ANSWER)


def _group(nodeid: str) -> str:
    """What goes to one process together: a file, but all that reads the smoke study, so that it is run once."""
    file = Path(nodeid.partition("::")[0])
    return "smoke" if file.parent.name in ("browser", "notebooks") else file.stem


def pytest_collection_modifyitems(items):
    """The two longest groups come first, one for each process."""
    items.sort(key=lambda item: {"test_faults": 0, "smoke": 1}.get(_group(item.nodeid), 2))


def pytest_xdist_make_scheduler(config, log):
    """Groups are shared out whole; marks of xdist's own have no effect under pytest 9.2."""
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = _group
    return scheduler


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """A private outputs folder, for this process and the kernels it starts."""
    monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The smoke study, run once for all tests: (environment, folder, what `roar run` printed)."""
    outputs = tmp_path_factory.mktemp("outputs")
    environment = os.environ | {"ROAR_OUTPUTS": str(outputs)}
    return environment, outputs / "smoke", roar(environment, "run", "params/smoke.yaml")


@pytest.fixture(scope="session")
def smoke_report(smoke):
    """The smoke study's report: (the page, what `roar report` printed)."""
    environment, folder, _ = smoke
    return folder / "report.html", roar(environment, "report", "params/smoke.yaml")


def roar(environment, *words):
    """What the command prints; it must succeed."""
    done = subprocess.run([ROAR, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tiny_study(**changes):
    """A study of a few images that trains in a blink; keyword arguments replace its values."""
    values = dict(
        name="tiny",
        dataset="textures",
        train_images=100,
        test_images=50,
        epochs=1,
        batch_size=25,
        augment="none",
        precision="float32",
        estimators=["grad", "random"],
        noise_samples=3,
        ig_steps=3,
        percents=[50],
        seeds=[0],
        device="cpu",
    )
    return params.Study(**values | changes)


def finish(study, cell, rows=None):
    """Leave rows of a cell as if it had run: all of them, or the keys in `rows`; and a file for the base model."""
    if cell.measure == "base":
        results.base_file(study, "model.safetensors").parent.mkdir(parents=True, exist_ok=True)
        results.base_file(study, "model.safetensors").touch()
    for key in cell.rows if rows is None else rows:
        file = results.row_file(study, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")


def row(measure, estimator, unit, mode, percent, seed, accuracy):
    """A row of a made-up table, with what the analyses read of it."""
    return dict(
        study="made-up",
        measure=measure,
        estimator=estimator,
        unit=unit,
        mode=mode,
        percent=percent,
        seed=seed,
        accuracy=accuracy,
        n_train=1000,
        n_test=500,
    )


def simulated(
    estimators=EVERY, percents=(10, 30, 50, 70, 90), seeds=(0, 1, 2), units=("value", "pixel"), modes=("remove", "keep")
) -> pd.DataFrame:
    """A tidy table as a study writes it: accuracy falls as inputs go, for each estimator at its own pace."""
    rng = np.random.default_rng(0)
    pace = {name: rng.uniform(0.6, 3.5) for name in estimators}
    pace |= {"oracle": 0.4, "anti-oracle": 6.0, "random": 1.5}
    rows = [row("retrain", "clean", "all", "all", 0, s, CLEAN + rng.normal(0, 0.005)) for s in seeds]
    rows.append(row("base", "clean", "all", "all", 0, 0, CLEAN))
    for name, unit, mode, t in itertools.product(estimators, units, modes, percents):
        gone = t / 100 if mode == "remove" else 1 - t / 100
        power = pace[name] if mode == "remove" else 1 / pace[name]
        left = CHANCE + (CLEAN - CHANCE) * (1 - gone**power)
        rows += [row("retrain", name, unit, mode, t, s, left + rng.normal(0, 0.012)) for s in seeds]
        rows.append(row("deletion", name, unit, mode, t, 0, CHANCE + (left - CHANCE) * (1 - gone)))
    return pd.DataFrame(rows)


def random_data(train=20, test=10, shape=(3, 8, 8), classes=4, seed=0):
    """Data of random bytes, with labels that repeat 0, 1, 2 .."""
    rng = np.random.default_rng(seed)

    def split(count):
        masks = rng.random((count, 1, *shape[1:])) < 0.2
        return Split(rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes, masks)

    return Data(
        split(train),
        split(test),
        [str(c) for c in range(classes)],
        np.full(shape[0], 0.5, np.float32),
        np.full(shape[0], 0.25, np.float32),
    )


class Net(nn.Module):
    """A small float64 net with every trap: conv, batch norm, ReLU in place and not, a residual sum, max pooling."""

    def __init__(self, functional=False):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
        self.last = nn.ReLU()
        self.pool, self.head, self.functional = nn.MaxPool2d(2), nn.Linear(6 * 16, 4), functional
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        self.double().eval()

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(x)
        x = torch.relu(x) if self.functional else self.last(x)
        return self.head(self.pool(x).flatten(1))
