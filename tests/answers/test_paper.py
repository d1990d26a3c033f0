import numpy as np
import pandas as pd
import pytest
from conftest import tiny_study

from roarlib.answers import paper, stats
from roarlib.study import results
from roarlib.study.names import PAPER


def test_the_table_is_whole_and_in_our_names():
    table = paper.table2()
    assert len(table) == 420 and not table.isna().any().any()
    assert set(table.dataset) == set(paper.DATASETS) and set(table["mode"]) == {"remove", "keep"}
    assert set(table.estimator) < set(PAPER) and table.estimator.nunique() == 14
    assert sorted(set(table.percent)) == [10, 30, 50, 70, 90] and table.accuracy.between(0, 1).all()
    assert table[table.suspect].values.tolist() == [["imagenet", "grad-var", "keep", 10, 0.5338, True]]


@pytest.mark.parametrize(
    "dataset, estimator, mode, percent, accuracy",
    [
        ("imagenet", "random", "remove", 90, 63.53),
        ("imagenet", "grad-sgsq", "remove", 90, 11.09),
        ("birdsnap", "gb-var", "remove", 90, 5.20),
        ("birdsnap", "ig", "keep", 10, 62.64),
    ],
)
def test_single_numbers_of_the_paper(dataset, estimator, mode, percent, accuracy):
    assert getattr(paper.published(dataset), mode).loc[estimator, percent] == pytest.approx(accuracy / 100)


def test_the_suspected_misprint_is_judged_by_nowhere():
    assert np.isnan(paper.published("imagenet").keep.loc["grad-var", 10])
    assert "grad-var" not in paper.order(paper.published("imagenet"), "keep")


def test_an_order_by_hand():
    random = [72.65, 71.02, 69.13, 67.06, 63.53]  # ImageNet, remove
    chance, clean = 0.1, 76.68
    share = 1 - (np.mean(random) - chance) / (clean - chance)
    assert paper.order(paper.published("imagenet"))["random"] == pytest.approx(share)
    assert paper.order(paper.published("imagenet")).index[0] == "grad-var"


def test_the_published_verdicts_against_differences_worked_out_by_hand():
    verdicts = paper.judge([paper.published(name) for name in paper.DATASETS])
    word = {(row.claim.split()[0], row.source[7:]): (row.holds, row.numbers) for row in verdicts.itertuples()}
    assert word["Random", "ImageNet"] == (True, "83% of the accuracy left at 90 %")  # 63.43 / 76.58
    # GRAD - Random on ImageNet: 0.29 1.20 1.84 3.66 3.22, mean 2.04; SG-GB - GB: -1.01 -1.46 -1.20 -2.46 -5.45
    assert word["GRAD,", "ImageNet"][0] is True and word["GRAD,", "ImageNet"][1].startswith("GRAD +2.0, ")
    assert word["SmoothGrad", "ImageNet"][0] is False and "SG-GB -2.3" in word["SmoothGrad", "ImageNet"][1]
    # SG-SQ-GRAD - Random on Birdsnap: -17.23 -16.51 -18.12 -21.11 -25.72, mean -19.74
    assert word["SG-SQ", "Birdsnap"][0] is True and "SG-SQ-GRAD -19.7" in word["SG-SQ", "Birdsnap"][1]
    assert ("Squaring", "ImageNet") not in word and ("Without", "Birdsnap") not in word  # not measured there
    assert word["Without", "ImageNet"] == (True, "Random at 90 %: 1% of the accuracy left, 83% if retrained")


def test_removing_and_keeping_contradict_each_other_in_the_paper():
    for name in paper.DATASETS:
        source = paper.published(name)
        found = paper.agreement(paper.order(source), paper.order(source, "keep"))
        assert found["rho"] < -0.5 and found["high"] < 0


def made(estimators=("random", "grad", "grad-sg"), modes=("remove",), percents=(50, 90), seeds=(0, 1)):
    """A study's table: accuracy 0.9 - percent / 200 for random, 0.1 more for grad, 0.2 more for the rest."""
    rows = [
        ("made", "retrain", e, "pixel", m, p, s, min(0.9 - p / 200 + 0.1 * min(k, 2) + 0.01 * s, 1), 10)
        for k, e in enumerate(estimators) for m in modes for p in percents for s in seeds
    ]  # fmt: skip
    rows += [("made", "retrain", "clean", "all", "all", 0, s, 0.9, 10) for s in seeds]
    names = ["study", "measure", "estimator", "unit", "mode", "percent", "seed", "accuracy", "n_classes"]
    return pd.DataFrame(rows, columns=names)


def test_a_studys_means_and_any_subset_of_it():
    source = paper.of_study(made(), "pixel")
    assert (source.clean, source.chance, source.n) == (pytest.approx(0.9), 0.1, 2)
    assert source.remove.loc["random", 50] == pytest.approx(0.655) and source.keep.empty and source.deletion.empty
    assert source.share(source.remove).loc["random", 50] == pytest.approx((0.655 - 0.1) / 0.8)
    found = paper.judge([source])
    assert found.claim.tolist() == [list(paper.CLAIMS)[0]] and found.holds.tolist() == [False]
    assert paper.of_study(made(), "value") is None
    assert paper.of_study(results.table(tiny_study()), "pixel") is None  # nothing has run
    lonely = paper.of_study(made(estimators=["grad"], modes=["keep"]), "pixel")
    assert paper.judge([lonely]).empty


def test_a_studys_means_are_over_the_percents_that_most_have():
    names = ("random", "grad", "gb", "ig", "grad-sg", "gb-sg")
    table = made(names, percents=(30, 90))
    partly = table[(table.percent == 90) | table.estimator.isin(["random", "grad"]) | (table.estimator == "clean")]
    source = paper.of_study(partly, "pixel")
    assert list(source.remove.columns) == [90] and len(source.remove) == 6
    told = paper.judge([source]).set_index("claim").numbers
    assert told["GRAD, GB and IG are no better than Random (mean over t)"] == "GRAD +10.0, GB +20.0, IG +20.0 points"


def test_a_study_is_comparable_if_three_of_its_estimators_are_the_papers():
    three = ("random", "grad", "grad-sg", "ig")
    assert paper.comparable(made(three), "pixel") and paper.comparable(made(three, modes=["keep"]), "pixel")
    assert not paper.comparable(made(("random", "grad", "ig", "mine:f")), "pixel") and not paper.comparable(
        made(three), "value"
    )


def test_spearman_equals_scipy_and_its_interval_the_formula():
    one, other = np.arange(10.0), np.array([0, 2, 1, 3, 5, 4, 6, 9, 8, 7.0])
    found = stats.spearman(one, other)
    assert found["rho"] == pytest.approx(1 - 6 * 12 / 990)  # 1 - 6 sum d^2 / (n (n^2 - 1))
    half = 1.959964 * np.sqrt((1 + found["rho"] ** 2 / 2) / 7)
    assert np.arctanh(found["high"]) - np.arctanh(found["rho"]) == pytest.approx(half, abs=1e-5)
    assert np.isnan(stats.spearman([1, 2], [2, 1])["rho"]) and stats.spearman(one, one)["rho"] == pytest.approx(1)
    assert np.isnan(stats.spearman(one, one)["low"])


def test_orders_can_be_taken_over_shared_percents():
    whole, part = (paper.order(paper.published("birdsnap"), percents=p) for p in (None, [90]))
    assert part["random"] == pytest.approx(1 - (0.3812 - 0.002) / (0.6665 - 0.002)) != whole["random"]


def test_without_retraining_the_wrong_ranking_seems_right_and_retraining_tells_them_apart():
    """The claim of the paper's toy figure: 12 useless inputs gone costs nothing if retrained, much if not."""
    table = paper.toy(seeds=10)
    mean = table.groupby(["retrained", "ranking", "removed"]).accuracy.mean()
    clean = mean[True, "true", 0]
    assert clean == mean[False, "inverted", 0] and clean > 0.75
    assert mean[False, "inverted", 12] < clean - 0.1  # seems to lose what it never had
    assert mean[True, "inverted", 12] > clean - 0.05  # retrained: the 4 informative inputs suffice
    assert abs(mean[True, "true", 4] - 0.5) < 0.03  # and without them nothing is left
    assert mean[True, "true", 3] < mean[True, "random", 3] < mean[True, "inverted", 3] + 0.01
    assert set(table.removed) == set(range(17)) and len(table) == 10 * 3 * 17 * 2


def test_the_same_seeds_give_the_same_numbers():
    assert paper.toy(seeds=2, images=200).equals(paper.toy(seeds=2, images=200))
