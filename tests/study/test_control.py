"""roarlib.study.control: Random as the mean of several draws, from the list of estimators to the verdict."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import row, tiny_study

from roarlib.answers import looks, stats, verdicts
from roarlib.engine import estimators
from roarlib.grid.cells import Grid
from roarlib.study import names, params, results
from roarlib.study.control import averaged
from roarlib.study.results import Key

IDS = torch.arange(40)


def drawn(name):
    """The ranking of 40 images by a draw of Random."""
    return estimators.BASES[name](None, torch.zeros(40, 3, 8, 8), None, ids=IDS, seed=3)


def test_draws_are_independent_and_the_first_is_random_as_it_was():
    found = [drawn(name).flatten().double() for name in ("random", *names.DRAWS)]
    together = torch.corrcoef(torch.stack(found)) - torch.eye(len(found))
    assert together.abs().max() < 5 / np.sqrt(len(found[0]))
    assert all((one < 30).double().mean() == pytest.approx(0.3, abs=0.03) for one in found)
    assert drawn("random")[0, 0, 0].tolist() == [52, 1, 93, 92, 56, 34, 14, 56]


def rows(*more):
    """Rows of Random with two draws at t = 50, one of them with three, and one of GRAD."""
    accuracies = {"random": (0.5, 0.6), "random2": (0.7, 0.6), "random3": (0.9,), "grad": (0.4, 0.4)}
    found = [
        row("retrain", name, "pixel", "remove", 50, s, a) for name, all in accuracies.items() for s, a in enumerate(all)
    ]
    return pd.DataFrame([*found, *more]).assign(seconds=2.0)


def test_random_is_the_mean_of_its_draws_seed_by_seed():
    found = averaged(rows())
    assert set(found.estimator) == {"random", "grad"} and len(found) == 4
    random = found[found.estimator == "random"].sort_values("seed")
    assert random.accuracy.tolist() == pytest.approx([0.7, 0.6]) and random.seconds.tolist() == [6.0, 4.0]
    assert stats.differences(found, "grad", "random").tolist() == pytest.approx([-0.3, -0.2])


def test_rows_of_rankings_and_of_other_points_stay_as_they_are():
    ranking = row("ranking", "random2", "pixel", "all", 0, 0, np.nan)
    other = row("retrain", "random", "pixel", "keep", 50, 0, 0.2)
    found = averaged(rows(ranking, other))
    assert (found.measure == "ranking").sum() == 1
    assert found[found["mode"] == "keep"].accuracy.tolist() == [0.2]
    one = rows()[lambda table: ~table.estimator.isin(names.DRAWS)]
    assert averaged(one) is one


def test_a_draw_of_another_precision_or_without_its_random_is_left_out():
    table = rows().assign(precision=["float32"] * 2 + ["bfloat16"] * 2 + ["float32"] * 3)
    found = averaged(table)
    assert found[found.estimator == "random"].accuracy.tolist() == pytest.approx([0.7, 0.6])
    assert set(averaged(table[table.estimator != "random"]).estimator) == {"grad"}


def test_a_study_ranks_and_retrains_every_draw_and_its_table_has_one_random():
    study = tiny_study(estimators=["grad", "random", "random2"], seeds=[0, 1], percents=[50])
    cells = {cell.id: cell for cell in Grid(study).cells}
    assert {f"04-retrain/random2/s{seed}" for seed in (0, 1)} < set(cells)
    assert [key.estimator for key in cells["02-attribute/controls"].rows] == ["random", "random2"]
    params.save(study)
    for estimator, accuracy in (("random", 0.4), ("random2", 0.6), ("grad", 0.5)):
        for seed in (0, 1):
            results.write(study, Key("retrain", estimator, "pixel", "remove", 50, seed), accuracy)
    assert set(results.known(study).estimator) == {"random", "random2", "grad"}
    assert results.table(study).set_index("estimator").accuracy["random"].tolist() == pytest.approx([0.5, 0.5])
    assert len(pd.read_csv(results.collect(study))) == 6
    assert verdicts.verdicts(results.table(study), "pixel", "remove")["mean"].tolist() == pytest.approx([0])


def test_looks_wait_for_every_draw():
    study = tiny_study(estimators=["grad", "random", "random2"], seeds="auto", percents=[50])
    made = [row("retrain", n, "pixel", "remove", 50, s, 0.5) for n in study.estimators for s in range(3)]
    table = pd.DataFrame(made).assign(seconds=36.0)
    (look,) = looks.made(table, study)
    assert look.still == ("grad",) and look.hours == pytest.approx(9 * 0.01)
    assert looks.plan([look], study)["random2"] == looks.plan([look], study)["random"] == range(5)
    assert looks.made(table[(table.estimator != "random2") | (table.seed != 1)], study) == []
    assert "mean of 2 draws a seed" in looks.design(study)


def test_draws_have_no_variants():
    assert names.expand(["random", "random2", "grad", "*-blur"]) == [
        "random",
        "random2",
        "grad",
        "random-blur",
        "grad-blur",
    ]
    with pytest.raises(ValueError, match="'random2-blur': take random-blur"):
        names.split_name("random2-blur")
    with pytest.raises(ValueError, match="unknown estimator 'random1'"):
        names.split_name("random1")
    assert not names.asks_model("random2") and names.label("random2") == "Random 2"
