"""What a metric makes of a known order, by hand on made-up tables."""

from itertools import product

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import row, simulated, tiny_study

from roarlib.answers import resolution, trust, verdicts
from roarlib.grid import kernel
from roarlib.study import params, results
from roarlib.study.files import root
from roarlib.study.names import DEPTHS, OVERLAPS

FAMILY = ["sobel", "sobel-mix25", "sobel-mix50", "sobel-mix75", "sobel-reversed"]


def table(accuracies, measure="retrain", mode="remove", percent=50):
    """accuracies: of FAMILY, one list a seed."""
    rows = [
        row(measure, e, "pixel", mode, percent, s, a)
        for s, of in enumerate(accuracies)
        for e, a in zip(FAMILY, of, strict=True)
    ]
    return pd.DataFrame(rows)


def judged(found):
    return resolution.resolution(resolution.differences(found, "pixel"))


def test_the_known_order_is_itself_then_ever_more_disorder_then_reversed():
    names = ["sobel-mix75", "random", "sobel-mix25", "sobel", "sobel-reversed", "ig-mix25", "grad"]
    assert resolution.families(names) == {
        "sobel": {0: "sobel", 25: "sobel-mix25", 75: "sobel-mix75", 125: "sobel-reversed"}
    }


def test_slope_and_resolution_by_hand():
    """Seeds lose 1 and 3 points a step: 2 [2 -+ 12.7], differences 1 2 3 and 3 6 9 with deviations 1.41 2.83 4.24."""
    found = judged(table([[0.3, 0.31, 0.32, 0.33, 0.5], [0.3, 0.33, 0.36, 0.39, 0.5]])).set_index("percent").loc[50]
    assert (found.metric, found.n, found.right, found.pairs) == ("ROAR", 2, 7, 7)
    assert found.slope == pytest.approx(2) and found.high == pytest.approx(2 + 12.706, abs=1e-3)
    assert found.points == pytest.approx(np.sqrt((2 + 8 + 18) / 3) * resolution.smallest_seen(2))
    assert np.isnan(found.mixed)  # the slope may be 0
    assert verdicts.power(resolution.smallest_seen(3), 1.0, 3) == pytest.approx(0.8)


def test_the_mean_over_percents_is_of_seeds_that_have_them_all():
    right, wrong = [0.3, 0.31, 0.32, 0.33, 0.5], [0.5, 0.33, 0.32, 0.31, 0.3]
    whole = [table([wrong, wrong], percent=t) for t in (10, 50)]
    unfinished = table([right] * 3, percent=10)[lambda rows: rows.seed == 2]
    found = judged(pd.concat([*whole, unfinished])).set_index("percent")
    assert found.n.to_dict() == {10: 3, 50: 2, 0: 2} and found.slope[0] == found.slope[50] < 0


def test_a_steady_metric_tells_a_small_share():
    """2 points a step in each seed, differences with a deviation of 0.1: seen is 0.1 x smallest_seen(3)."""
    base = [0.30, 0.32, 0.34, 0.36, 0.5]
    found = judged(table([base, [base[0], *(a + 0.001 for a in base[1:])], [base[0], *(a - 0.001 for a in base[1:])]]))
    assert (found.points / 0.1 - resolution.smallest_seen(3)).abs().max() < 1e-6
    assert (found.mixed / (25 * found.points / found.slope) - 1).abs().max() < 1e-9 and (found.mixed < 10).all()


def test_kept_inputs_and_scores_without_retraining_have_their_own_sign_and_error():
    """KAR must fall; one model's error is the binomial one of 500 images, sqrt(0.25 / 500) = 2.24 points."""
    falling = [0.6, 0.55, 0.5, 0.45, 0.4]
    found = pd.concat([table([falling], mode="keep"), table([falling], "deletion", "remove")])
    found = judged(found).query("percent == 0").set_index("metric")
    assert found.right.to_dict() == {"KAR": 7, "deletion": 0} and found.slope.round(6).tolist() == [5, -5]
    assert found.loc["KAR", "points"] == pytest.approx(2.8 * np.sqrt(2) * 2.236, abs=1e-3)
    assert found.loc["KAR", "high"] - 5 == pytest.approx(1.96 * 2.236 / np.sqrt(5), abs=1e-3)  # steps 0 1 2 3
    assert np.isnan(found.loc["deletion", "mixed"]) and found.loc["KAR", "mixed"] == pytest.approx(5 * 8.854, abs=1e-2)
    flat = judged(
        table([[0.6, 0.59, 0.58, 0.57, 0.56]], mode="keep")
    )  # 1 point a step of the 2.5 that 100 percent needs
    assert flat.mixed.isna().all() and (flat.points > 4).all()


def test_the_warning_is_there_only_if_the_order_is_wrong():
    right, flat = [0.3, 0.32, 0.34, 0.36, 0.5], [0.36, 0.34, 0.32, 0.30, 0.2]
    seeds = [np.add(right, noise) for noise in (0, 0.01, -0.01)]
    assert resolution.warning(table(seeds), "pixel", "remove") == ""
    assert resolution.warning(table(seeds).query("estimator == 'sobel'"), "pixel", "remove") == ""
    upside = resolution.warning(table([flat] * 3), "pixel", "remove")
    assert "ROAR" in upside and "Sobel (0 of 7 pairs right)" in upside and "says nothing" in upside
    one = resolution.warning(
        table([[0.3, 0.33, 0.325, 0.36, 0.35]] * 3), "pixel", "remove"
    )  # reversed: only against 0.3
    assert "6 of 7 pairs" in one and "as a whole" in one and "nothing" not in one


def test_the_notebook_shows_orders_and_rankings_of_random_weights(outputs, tmp_path):
    """From a published results.csv alone, as in a clone."""
    names = ["sobel", "sobel-mix25", "sobel-mix50", "random"]
    study = tiny_study(estimators=names, modes=["remove", "keep"], percents=[50, 90], seeds=[0, 1], sanity_images=9)
    rows = simulated(names, study.percents, study.seeds, ["pixel"], study.modes).to_dict("records")
    for name, depth, t in product(names[::3], DEPTHS, OVERLAPS):
        rows.append(row("sanity", name, "pixel", depth, t, 0, None) | {"overlap": t / 100, "rho": 0.5})
    params.save(study)
    pd.DataFrame(rows).assign(study="tiny", n_classes=10).to_csv(study.folder / "results.csv", index=False)
    target = tmp_path / "16.ipynb"
    kernel.execute(
        root() / "notebooks" / "16-is-the-metric-sound.ipynb",
        target,
        {"study_file": str(params.agree(study))},
        timeout=300,
    )
    assert {file.stem for file in (study.folder / "figures").glob("*.png")} == {"resolution-pixel", "sanity-pixel"}
    shown = [output.get("data", {}) for cell in nbformat.read(target, 4).cells for output in cell.get("outputs", ())]
    assert (
        sum("image/png" in data for data in shown) == 2
        and sum("order right" in data.get("text/html", "") for data in shown) == 1
    )
    found = trust.sanity(results.known(study), "pixel")
    assert len(found) == 2 * 6 * 2 and (found.overlap == found.percent / 100).all() and (found.rho == 0.5).all()
    assert set(results.table(study).measure) == {"base", "deletion", "retrain"}
