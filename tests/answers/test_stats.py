"""answers.stats: hand-worked answers, SciPy as the oracle, the clean point."""

import numpy as np
import pandas as pd
import pytest
from conftest import CHANCE, CLEAN, row, simulated
from scipy import stats as scipy_stats

from roarlib.answers import spreads, stats, verdicts


def table_of(curves: dict, clean=(0.9,), mode="remove") -> pd.DataFrame:
    """A retrain table from {estimator: {percent: accuracies, one a seed}}."""
    rows = [row("retrain", "clean", "all", "all", 0, s, a) for s, a in enumerate(clean)]
    rows += [
        row("retrain", name, "pixel", mode, t, s, a)
        for name, points in curves.items()
        for t, values in points.items()
        for s, a in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_summary_by_hand():
    # 0.2 0.4 0.6: mean 0.4, s = 0.2, t(0.975, 2) = 4.302653, half width 4.302653 * 0.2 / sqrt(3) = 0.496828
    found = stats.summary(table_of({"grad": {50: (0.2, 0.4, 0.6)}})).set_index("estimator").loc["grad"]
    assert found.n == 3 and found.percent == 50
    np.testing.assert_allclose([found["mean"], found["std"]], [0.4, 0.2])
    np.testing.assert_allclose([found.low, found.high], [0.4 - 0.496828, 0.4 + 0.496828], atol=1e-6)


def test_summary_agrees_with_scipy():
    table = simulated(seeds=range(5))
    found = stats.summary(table).set_index([*stats.CURVE, "percent"])
    values = table[
        (table.measure == "retrain")
        & (table.estimator == "ig-var")
        & (table.unit == "value")
        & (table["mode"] == "keep")
        & (table.percent == 70)
    ].accuracy
    interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    got = found.loc[("retrain", "ig-var", "value", "keep", 70), ["low", "high"]]
    np.testing.assert_allclose(got.to_numpy(float), interval)


def test_one_seed_has_no_interval():
    found = stats.summary(table_of({"grad": {50: (0.4,)}}))
    assert (found.n == 1).all() and found[["std", "low", "high"]].isna().all(axis=None)
    assert found["mean"].tolist() == [0.9, 0.4]  # clean, grad


def test_empty_tables_give_empty_tables():
    empty = simulated().iloc[:0]
    assert stats.summary(empty).empty and stats.with_clean(empty).empty
    assert stats.area_to_random(empty, CHANCE).empty
    assert {"n", "mean", "low"} <= set(stats.summary(empty).columns)


def test_mixed_studies_are_refused():
    table = simulated(estimators=("grad",))
    with pytest.raises(ValueError, match="a, made-up"):
        stats.summary(pd.concat([table, table.assign(study="a")]))


@pytest.mark.parametrize(("mode", "end"), [("remove", 0), ("keep", 100)])
def test_clean_ends_every_curve_where_nothing_is_removed(mode, end):
    table = simulated(estimators=("grad", "random"))
    points = stats.with_clean(table).query("mode == @mode")
    assert set(points["mode"]) == {mode} and "clean" not in set(points.estimator)
    ends = points[points.percent == end]
    clean = table[(table.estimator == "clean") & (table.measure == "retrain")].accuracy
    for _, curve in ends[ends.measure == "retrain"].groupby(["estimator", "unit"]):
        assert curve.accuracy.tolist() == clean.tolist()
    assert ends[ends.measure == "deletion"].accuracy.tolist() == [CLEAN] * 4  # 2 estimators, 2 units
    assert len(points) == 2 * 2 * 6 * (3 + 1)  # estimators, units, percents with clean, seeds and deletion


def test_a_curve_without_clean_rows_stays_without():
    table = simulated(estimators=("grad",))
    points = stats.with_clean(table[table.estimator != "clean"])
    assert len(points) == len(table[table.estimator != "clean"])


def test_area_by_hand():
    # Trapezoids over t = 0, 50, 100. Random 0.9 0.5 0.1 lies 0.8 0.4 0 above chance 0.1 -> 30 + 10 = 40.
    # grad 0.9 0.3 0.1 lies 0 0.2 0 below Random -> 10, so 10 / 40; gb 0.9 0.6 0.1 lies 0.1 above -> -5 / 40.
    random = {50: (0.5,), 100: (0.1,)}
    table = table_of({"random": random, "grad": {50: (0.3,), 100: (0.1,)}, "gb": {50: (0.6,), 100: (0.1,)}})
    found = stats.area_to_random(table, CHANCE).set_index("estimator")["mean"]
    np.testing.assert_allclose(found[["random", "grad", "gb"]], [0, 0.25, -0.125], atol=1e-12)
    other = table.assign(precision=np.where(table.estimator == "gb", "bfloat16", "float32"))
    found = stats.area_to_random(other, CHANCE).set_index("estimator")
    assert found["mean"]["grad"] == pytest.approx(0.25) and found.n["gb"] == 0  # of another precision: no pair


def test_area_in_mode_keep_is_measured_against_clean():
    # Kept 0, 50, 100 (clean): Random 0.1 0.5 0.9 lies 0.8 0.4 0 below clean -> 40. Higher is better here:
    # grad lies 0 0.2 0 above Random -> 10 / 40; ig never falls below clean -> 1.
    table = table_of(
        {"random": {0: (0.1,), 50: (0.5,)}, "grad": {0: (0.1,), 50: (0.7,)}, "ig": {0: (0.9,), 50: (0.9,)}}, mode="keep"
    )
    found = stats.area_to_random(table, CHANCE).set_index("estimator")["mean"]
    np.testing.assert_allclose(found[["grad", "ig"]], [0.25, 1.0])


def test_area_is_taken_per_seed_and_then_averaged():
    table = table_of(
        {"random": {50: (0.5, 0.7, 0.5), 100: (0.1, 0.1, 0.1)}, "grad": {50: (0.3, 0.3, 0.5), 100: (0.1, 0.1, 0.1)}},
        clean=(0.9, 0.9, 0.9),
    )
    areas = [10 / 40, 20 / 50, 0.0]
    found = stats.area_to_random(table, CHANCE).set_index("estimator").loc["grad"]
    low, high = scipy_stats.ttest_1samp(areas, 0).confidence_interval(0.95)
    got = found[["n", "mean", "low", "high"]].to_numpy(float)
    np.testing.assert_allclose(got, [3, np.mean(areas), low, high])


def test_area_leaves_out_seeds_that_are_not_complete():
    table = table_of(
        {"random": {50: (0.5, 0.5), 90: (0.2, 0.2)}, "grad": {50: (0.3, 0.1), 90: (0.2,)}}, clean=(0.9, 0.9)
    )
    found = stats.area_to_random(table, CHANCE).set_index("estimator")
    assert found.n["grad"] == 1 and found.n["random"] == 2
    no_random = stats.area_to_random(table[table.estimator != "random"], CHANCE)
    no_clean = stats.area_to_random(table[table.estimator != "clean"], CHANCE)
    assert (no_random.n == 0).all() and (no_clean.n == 0).all() and no_random["mean"].isna().all()


def test_percents_that_random_lacks_compare_nothing_and_do_not_count():
    """A study taken further without its controls: at 90 all can be compared still."""
    many = {name: {50: (0.3,), 90: (0.2,)} for name in ("grad", "gb", "ig")}
    rows = table_of({"random": {90: (0.4,)}, **many}, clean=(0.9,)).query("estimator != 'clean'")
    assert set(stats.complete(rows).percent) == {90} and stats.complete(rows).estimator.nunique() == 4
    assert set(stats.complete(rows[rows.estimator != "random"]).percent) == {50, 90}


def test_random_does_not_vote_for_percents():
    """A run that was stopped: Random has both percents, and the one estimator has the second."""
    rows = table_of({"random": {50: (0.5,), 90: (0.4,)}, "grad": {90: (0.3,)}}, clean=(0.9,))
    rows = rows.query("estimator != 'clean'")
    assert stats.complete(rows)[["estimator", "percent"]].to_numpy().tolist() == [["random", 90], ["grad", 90]]
    assert stats.complete(rows[rows.estimator == "random"]).percent.tolist() == [50, 90]


def test_who_has_more_percents_has_the_fewer_too():
    """Of ten, four have 90 percent, three 50 as well, three all: 50 and 90 are what six of ten have."""
    sets = {4: (90,), 3: (50, 90), 13: (30, 50, 90)}
    names = iter(["grad", "gb", "ig", "grad-sg", "gb-sg", "ig-sg", "grad-var", "gb-var", "ig-var", "sobel"])
    curves = {next(names): {p: (0.3,) for p in percents} for n, percents in sets.items() for _ in range(n % 10)}
    rows = table_of({"random": {p: (0.5,) for p in (30, 50, 90)}, **curves}, clean=(0.9,))
    found = stats.complete(rows[rows.estimator != "clean"])
    assert set(found.percent) == {50, 90} and found.estimator.nunique() == 7


def test_areas_are_over_the_percents_that_most_have():
    whole = {50: (0.5,), 100: (0.1,)}
    table = table_of(
        {"random": {30: (0.8,), **whole}, "grad": {50: (0.3,), 100: (0.1,)}, "gb": whole, "ig": {50: (0.3,)}}
    )
    found = stats.area_to_random(table, CHANCE).set_index("estimator")["mean"]
    assert found.to_dict() == pytest.approx({"random": 0, "grad": 0.25, "gb": 0})  # as by hand; ig lacks a percent


def test_area_needs_random_above_chance():
    table = table_of({"random": {50: (0.05,)}, "grad": {50: (0.3,)}}, clean=(0.1,))
    assert (stats.area_to_random(table, CHANCE).n == 0).all()


def test_known_answers_bracket_random():
    found = stats.area_to_random(simulated(), CHANCE).set_index(["unit", "mode", "estimator"])["mean"]
    for unit in ("value", "pixel"):
        for mode in ("remove", "keep"):
            assert found[unit, mode, "oracle"] > 0.3 > 0 > -0.3 > found[unit, mode, "anti-oracle"]


def retrained(table, percent=None):
    """The retrainings of one unit and mode, at one percent if it is given."""
    rows = table[(table.measure == "retrain") & (table.unit == "pixel") & (table["mode"] == "remove")]
    return rows if percent is None else rows[rows.percent == percent]


def test_differences_and_their_test_agree_with_scipy():
    table = simulated(seeds=range(4))
    for percent in (10, 30, 50, 70, 90):
        rows = retrained(table, percent)
        own, other = (rows[rows.estimator == name].accuracy.to_numpy() for name in ("grad", "random"))
        expected = scipy_stats.ttest_rel(own, other)
        got = spreads.tested(stats.differences(rows, "grad", "random"), 0.01)
        assert got["n"] == 4
        np.testing.assert_allclose([got["mean"], got["p"]], [np.mean(own - other), expected.pvalue])
        np.testing.assert_allclose([got["low"], got["high"]], expected.confidence_interval(0.95))
    rows = retrained(table)
    mean = {name: part.groupby("seed").accuracy.mean() for name, part in rows.groupby("estimator")}
    np.testing.assert_allclose(stats.differences(rows, "grad", "random"), mean["grad"] - mean["random"])


def test_differences_use_only_shared_seeds():
    rows = retrained(table_of({"grad": {50: (0.3, 0.2, 0.9)}, "random": {50: (0.5, 0.3)}}))
    np.testing.assert_allclose(stats.differences(rows, "grad", "random"), [-0.2, -0.1])


@pytest.mark.parametrize(
    "bases, says",
    [
        ([0, 0, 0], "one base model: intervals hold for this network only"),
        ([np.nan] * 3, "one base model: intervals hold for this network only"),
        ([0, 1, 2], "each seed with a base model of its own: intervals cover the choice of the network"),
    ],
)
def test_what_intervals_cover_is_read_from_the_rows(bases, says):
    table = simulated(["grad", "random"])
    assert stats.reach(table) == "one base model: intervals hold for this network only"  # an earlier version's rows
    assert stats.reach(table.assign(base_seed=table.seed.map(dict(enumerate(bases))))) == says


def test_without_common_points_there_are_no_differences():
    apart = retrained(table_of({"grad": {50: (0.3,)}, "random": {90: (0.5,)}}))
    assert stats.differences(apart, "grad", "random").size == stats.differences(apart, "sobel", "random").size == 0


def test_goodness_is_larger_for_better_in_both_modes():
    points = pd.MultiIndex.from_product([(0, 1), (10, 90)], names=["seed", "percent"])
    wide = pd.DataFrame(
        [[0.5, 0.3, 0.6, 0.2], [0.6, 0.1, 0.6, 0.1], [0.1, 0.1, 0.1, np.nan]], ["grad", "gb", "ig"], points
    )
    assert stats.goodness(wide, "remove").to_dict() == pytest.approx({"grad": -0.4, "gb": -0.35})  # ig lacks a point
    assert stats.goodness(wide, "keep").to_dict() == pytest.approx({"grad": 0.4, "gb": 0.35})
    assert stats.goodness(wide[0], "remove-imputed").idxmax() == "ig"
    assert stats.goodness(wide[0], "keep-imputed").idxmax() == "grad"


def test_orders_agree_over_what_both_have():
    orders = pd.DataFrame(
        {"grad": [3, 2, 1], "gb": [2, 1, 2], "ig": [1, np.nan, 0], "sobel": [0, -1, np.nan]}, index=list("abc")
    )
    found = stats.pairwise(orders).set_index(["one", "other"])
    assert found.n.to_dict() == {("a", "b"): 3, ("a", "c"): 3, ("b", "c"): 2}
    assert found.tau["a", "b"] == pytest.approx(1) and found.rho["a", "b"] == pytest.approx(1)
    assert found.tau["a", "c"] == pytest.approx(1 / 3) and found.tau["b", "c"] == pytest.approx(-1)
    alone = stats.pairwise(orders.iloc[:1])
    assert alone.empty and list(alone.columns) == list(stats.pairwise(orders).columns)


def test_binomial_error_by_hand():
    assert stats.binomial_error(0.5, 100) == pytest.approx(0.05)
    np.testing.assert_allclose(stats.binomial_error([0.0, 0.2, 1.0], 400), [0, 0.02, 0])


def test_kendall_by_hand():
    # 1 of 10 pairs is discordant: tau = (9 - 1) / 10; p: 5 of the 120 orders have at most one, twice for two sides.
    found = stats.kendall([1, 2, 3, 4, 5], [20, 10, 30, 40, 50])
    assert found["n"] == 5 and found["tau"] == pytest.approx(0.8) and found["p"] == pytest.approx(2 * 5 / 120)
    # artanh 0.8 = 1.098612; 1.959964 sqrt(0.437 / 1) = 1.295654; tanh(-0.197042), tanh(2.394266)
    np.testing.assert_allclose([found["low"], found["high"]], [-0.194531, 0.983486], atol=2e-5)
    tied = stats.kendall([1, 1, 2], [1, 2, 3])  # tau-b: 2 / sqrt((3 - 1) (3 - 0))
    assert tied["tau"] == pytest.approx(2 / 6**0.5) and np.isnan(tied["low"])


def test_kendall_without_an_interval():
    same = stats.kendall(range(6), range(6))
    assert same["tau"] == pytest.approx(1) and np.isnan(same["low"]) and np.isnan(same["high"])
    few = stats.kendall([1, 2, 3, 4], [1, 3, 2, 4])
    assert few["tau"] == pytest.approx(4 / 6) and np.isnan(few["low"])
    assert np.isnan(stats.kendall([1], [1])["tau"]) and np.isnan(stats.kendall([1, 1, 1], [1, 2, 3])["tau"])
    assert stats.kendall([], [])["n"] == 0


def test_errors_of_seeds_and_test_set_by_hand():
    table = table_of({"grad": {50: (0.4, 0.6), 90: (0.2,)}})  # n_test 500
    found = stats.seeds_and_test_set(table, "pixel", "remove").set_index("percent")
    assert found.n.tolist() == [2, 1] and (found.estimator == "grad").all()
    np.testing.assert_allclose(found["std"], [0.02**0.5, np.nan])
    np.testing.assert_allclose(found.binomial, [(0.25 / 500) ** 0.5, (0.16 / 500) ** 0.5])
    assert stats.seeds_and_test_set(table, "pixel", "keep").empty


def test_the_floor_is_chance_or_the_largest_class():
    table = pd.DataFrame({"n_classes": [4, 4], "floor": [0.25, 0.25]})
    assert stats.floor(table) == 0.25
    assert stats.floor(table.assign(floor=0.9)) == 0.9
    assert stats.floor(table.drop(columns="floor")) == 0.25  # a table of an earlier version
    assert stats.floor(table.assign(floor=np.nan)) == 0.25


def test_no_statistic_dies_where_nothing_varies():
    table = simulated().assign(accuracy=0.9, n_classes=4, floor=0.9)
    unit = table.unit[table.measure == "retrain"].iloc[-1]
    found = verdicts.verdicts(table, unit, "remove")
    assert (found["mean"] == 0).all() and (found.verdict != "better").all()
    spread = verdicts.spread_of_differences(table, unit, "remove")
    assert spread == 0 and verdicts.seeds_needed(0.01, spread) == 2 and verdicts.power(0.01, 0.0, 5) == 1
    areas = stats.area_to_random(table, stats.floor(table))
    assert areas["mean"].isna().all()  # Random is at the floor: there is nothing to lose
    assert verdicts.agreement(table, unit, "remove").w.dropna().between(0, 1).all()


def test_rows_of_two_networks_under_one_seed_are_told():
    table = simulated(["grad", "random"], seeds=(0, 1)).assign(base_seed=0)
    one = table.assign(network=np.where(table.estimator == "random", "c", "a"))  # Random reads none
    assert stats.reach(one).startswith("one base model")
    two = one.assign(network=np.where((one.seed == 1) & (one.estimator == "grad"), "b", one.network))
    assert stats.reach(two).startswith("rows rest on two base models where one was meant")
    assert stats.reach(two.assign(base_seed=two.seed)).startswith("each seed with a base model of its own")
