import pandas as pd
import pytest
from conftest import tiny_study

from roarlib.study import params
from roarlib.views import provenance


def rows():
    made = dict(hardware="2 cores", device="cpu", precision="float32", torch="2.14.1", roarlib="0.1.0", commit="abc")
    found = pd.DataFrame([
        dict(measure="base", seconds=10.0, finished="2026-01-01T00:00:10+00:00"),
        dict(measure="ranking", seconds=4.0, finished="2026-01-01T00:01:00+00:00"),
        dict(measure="retrain", seconds=20.0, finished="2026-01-01T01:00:00+00:00"),
        dict(measure="retrain", seconds=40.0, finished="2026-01-01T02:00:00+00:00"),
        dict(measure="retrain", seconds=90.0, finished="2026-01-01T03:00:00+00:00"),
    ])  # fmt: skip
    found = found.assign(**made)
    found.loc[4, "commit"] = ""
    return found


def test_every_parameter_in_the_order_of_the_file_with_what_differs_marked():
    found = provenance.parameters(tiny_study(percents=[50], estimators=["grad", "random"], drop_epochs=[3]))
    assert found.parameter.tolist() == list(params.Study.model_fields)
    found = found.set_index("parameter")
    assert found.loc["epochs"].tolist() == ["1", "8", "differs"]
    assert found.loc["momentum"].tolist() == ["0.9", "0.9", ""]
    assert found.loc["estimators"].tolist() == ["[grad, random]", "–", ""]
    assert found.loc["data_dir"].tolist() == ["null", "null", ""] and found.value["drop_epochs"] == "[3]"
    assert found.loc["percents"].tolist() == ["[50]", "[10, 30, 50, 70, 90]", "differs"]


def test_cost_by_hand():
    found = provenance.cost(rows()).set_index("measurement")
    assert found.index.tolist() == ["retraining", "base model", "ranking"]
    assert found.loc["retraining"].tolist() == [3, 40, 150]
    assert provenance.worker_hours(rows()) == pytest.approx(164 / 3600)
    assert provenance.wall_hours(rows()) == pytest.approx(3)  # from 00:00:00, when the base model began


def test_machines_are_told_apart_and_what_is_not_known_is_a_dash():
    found = provenance.machines(rows())
    assert found[["commit", "rows", "first", "last"]].values.tolist() == [
        ["abc", 4, "2026-01-01 00:00", "2026-01-01 02:00"],
        ["–", 1, "2026-01-01 03:00", "2026-01-01 03:00"],
    ]
    assert (found.python == "–").all() and (found.torch == "2.14.1").all()
    assert (provenance.machines(rows().assign(python="3.11.7")).python == "3.11.7").all()
