"""What runs unattended on a GPU: no part stops the others, and what it projects is worked out right."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, row, simulated, tiny_study

from roarlib.data import datasets
from roarlib.study import rankings

sys.path.append(str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import gpu_parts  # noqa: E402
import road  # noqa: E402
import verdict  # noqa: E402


@pytest.mark.parametrize(
    "code, limit, status, said",
    [
        ("print('so far'); print('{\"ratio\": 2}'); print('3')", 60, "ok", {"ratio": 2}),
        ("import roarlib_is_not_this", 60, "skipped", "needs the package roarlib_is_not_this"),
        ("raise SystemExit('no such GPU')", 60, "failed", "no such GPU"),
        ("print(1)", 60, "failed", "printed no figures"),
        ("import os; os.abort()", 60, "failed", "printed nothing"),
        ("import time; time.sleep(600)", 0.5, "timeout", "printed nothing"),
    ],
)
def test_a_part_may_end_in_any_way(code, limit, status, said, tmp_path):
    found = gpu.attempt([sys.executable, "-c", code], limit, tmp_path / "log")
    assert (found["status"], found.get("figures", found.get("reason"))) == (status, said)
    assert code in (tmp_path / "log").read_text()


def test_all_is_written_after_each_part_and_none_begins_without_time(tmp_path, monkeypatch):
    seen = []

    def attempt(words, limit, log, env):
        seen.append((words[2], limit, json.loads(file.read_text())["parts"] if file.is_file() else {}))
        return {"status": "ok", "seconds": 1.0, "figures": {"device": "H"}} if len(seen) < 3 else {"status": "failed"}

    file = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "attempt", attempt)
    gpu.run(["facts", "retraining"], tmp_path, False, 1)
    assert [len(found) for _, _, found in seen] == [0, 1] and all(limit <= 60 for _, limit, _ in seen)
    assert json.loads(file.read_text())["device"] == "H" and not json.loads(file.read_text())["rehearsal"]
    late = gpu.run(["facts"], tmp_path, False, 0)["parts"]["facts"]
    assert late["status"] == "skipped" and len(seen) == 2


def test_the_cheapest_part_of_a_rehearsal(tmp_path):
    call = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--rehearse", "--only", "facts", "--out", tmp_path]
    subprocess.run(call, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["device"], found["rehearsal"], list(found["parts"])) == ("cpu", True, ["facts"])
    assert found["parts"]["facts"]["status"] == "ok" and found["parts"]["facts"]["figures"]["torch"]


def test_every_part_is_there_to_be_run():
    for name, (_, *more) in gpu.PARTS.items():
        assert more and (ROOT / "benchmarks" / more[0].split()[0]).is_file() or callable(getattr(gpu_parts, name))


def test_the_projection_by_hand():
    """505 retrainings at 20 a minute, 600 seconds of ranking, 30 cells of 2 seconds each."""
    assert gpu_parts.projected(505, 30, 20, 600, 2) == {
        "retraining_minutes": 25.2,
        "ranking_minutes": 10.0,
        "overhead_minutes": 1.0,
        "minutes": 36.2,
        "under_30_minutes": False,
        "under_15_minutes": False,
    }


def test_our_rows_lie_beside_roads():
    found = road.beside(simulated(["ig", "ig-sg", "random"], percents=(10, 50)))  # of Random there is nothing there
    assert found.estimator.tolist() == ["ig", "ig", "ig-sg", "ig-sg"] and set(found.fill) == {"image-mean"}
    assert found.theirs.tolist() == [72.2, 67.4, 74.9, 75.0]
    assert (found.difference == found.ours - found.theirs).all() and found.ours.between(0, 100).all()


def test_labels_are_read_off_masks_that_tell_them(outputs):
    """A row of pixels for each class; and the same pixels for all."""
    study = tiny_study(estimators=["oracle", "random"])
    data = datasets.load(study)
    for split in datasets.SPLITS:
        told = np.full((len(data.split(split)), 1, *data.shape[1:]), 99, np.uint8)
        same = told.copy()
        told[np.arange(len(told)), 0, data.split(split).labels] = same[:, 0, 0] = 0
        for name, made in (("oracle", told), ("random", same)):
            file = rankings.path(study, name, "pixel", split)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, made)
    assert road.read_off_masks(study, "oracle", 50) > 0.95 and road.read_off_masks(study, "random", 50) < 0.4


@pytest.mark.parametrize("seeds, networks", [((0,), 1), ((0, 1, 2), 4)])
def test_a_studys_hours_hold_its_networks(seeds, networks):
    """19 times 2 retrainings of 30 s for each of 4 seeds, and what is ranked: once, or for every seed."""
    retrained = simulated(["grad", "ig", "random"], percents=(50, 90), units=("pixel",), modes=("remove",))
    retrained = retrained[retrained.measure == "retrain"].assign(seconds=30.0)
    rows = [row("base", "clean", "all", "all", 0, s, 0.9) | {"seconds": 40} for s in seeds]
    rows += [row("ranking", e, "pixel", "all", 0, s, None) | {"seconds": 100} for s in seeds for e in ("grad", "ig")]
    rows.append(row("ranking", "ig", "value", "all", 0, 0, None) | {"seconds": 1e6})
    found = verdict.price(pd.concat([retrained, pd.DataFrame(rows)]), "pixel", "remove")
    assert (found["network"], found["seconds"], found["percents"]) == (240, 30, 2)
    assert found["a network a seed"] == (networks > 1)
    needed = found["seeds for 1"]
    spent = needed * 19 * 2 * 30 + 240 * (needed if networks > 1 else 1)
    assert found["hours for 1, all"] == pytest.approx(spent / 3600)


def test_two_studies_are_compared_where_both_have_rows():
    one = simulated(["grad", "ig", "gb", "random"], percents=(50, 90), units=("pixel",), modes=("remove",))
    other = one[(one.estimator != "gb") & (one.percent != 90)]
    assert verdict.beside(other, one, "pixel", "remove") == {"tau": 1, "slope": pytest.approx(1)}
