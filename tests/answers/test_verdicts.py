import numpy as np
import pandas as pd
import pytest
from conftest import simulated
from scipy import stats as scipy_stats

from roarlib.answers import spreads, stats, verdicts


def table_of(differences: dict, seeds=5, percents=(30, 70), spread=0.0, mode="remove", rng=None, shared=0.0):
    """A study in which each estimator differs from Random by so many points, with noise of each training."""
    rng = rng or np.random.default_rng(0)
    rows = []
    common = shared * rng.standard_normal(seeds)  # what equal seeds share
    for name, points in {"random": 0, **differences}.items():
        for p in percents:
            noise = spread * rng.standard_normal(seeds) + common
            rows += [
                ("s", "retrain", name, "pixel", mode, p, s, 0.7 - p / 500 + points / 100 + noise[s])
                for s in range(seeds)
            ]
    return pd.DataFrame(rows, columns=["study", "measure", "estimator", "unit", "mode", "percent", "seed", "accuracy"])


def test_one_comparison_by_hand():
    table = table_of({"grad": 0}, seeds=3, percents=(50,))
    table.loc[table.estimator == "grad", "accuracy"] += [-0.01, -0.02, -0.03]
    row = verdicts.verdicts(table, "pixel", "remove").iloc[0]
    assert row["mean"] == pytest.approx(-0.02) and row.n == 3
    assert row.effect == pytest.approx(-2 * (1 - 3 / 7))  # mean / std = -2; 4 (n - 1) - 1 = 7
    assert row.p == pytest.approx(2 * scipy_stats.t.sf(0.02 / (0.01 / np.sqrt(3)), 2)) == row.p_holm
    assert row.p_equal == pytest.approx(scipy_stats.t.cdf((0.02 - 0.01) / (0.01 / np.sqrt(3)), 2))  # -2, margin 1
    assert row.verdict == verdicts.OPEN  # p = 0.074
    half = scipy_stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert (row.low, row.high) == (pytest.approx(-0.02 - half), pytest.approx(-0.02 + half))


def test_holm_by_hand():
    assert verdicts.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert verdicts.holm([0.6, 0.5]) == pytest.approx([1, 1]) and len(verdicts.holm([])) == 0


def test_both_questions_by_hand():
    """Holm for differences; equality counts twice for each estimator, and only where there is no difference."""
    different, equal = verdicts.corrected([0.01, 0.04, np.nan], [0.5, 0.01, np.nan])
    assert different == pytest.approx([0.02, 0.04, np.nan], nan_ok=True)
    assert equal == pytest.approx([1, 0.04, np.nan], nan_ok=True)
    different[1] = 0.2
    told = verdicts.words(np.array([True, False, False]), different, equal)
    assert told.tolist() == ["better", "equal", "open"]


def test_words_in_both_modes_and_with_one_seed():
    differences = {"grad-sgsq": -8, "gb": 0.6, "grad": 6, "ig": 0}
    found = verdicts.verdicts(table_of(differences, spread=0.003), "pixel", "remove").set_index("estimator")
    assert found.verdict.to_dict() == {"grad-sgsq": "better", "ig": "equal", "gb": "worse", "grad": "worse"}
    kept = verdicts.verdicts(table_of(differences, spread=0.003, mode="keep"), "pixel", "keep").set_index("estimator")
    assert kept.verdict["grad"] == "better" and kept.verdict["grad-sgsq"] == "worse"
    alone = verdicts.verdicts(table_of(differences, seeds=1), "pixel", "remove")
    assert set(alone.verdict) == {"too few seeds"}
    said = verdicts.in_words(alone)
    assert said.startswith("With 1 seed and") and "too few seeds paired with Random, or no spread" in said
    said = verdicts.in_words(found.reset_index())
    assert said.startswith("With 5 seeds and")
    assert "better than Random: SG-SQ-GRAD" in said and "worse than Random: GB, GRAD" in said
    assert "equal to Random within 1 point: IG" in said
    wide = verdicts.in_words(verdicts.verdicts(table_of({"gb": 0.6}, spread=0.02), "pixel", "remove"))
    assert wide.endswith("neither told apart from Random nor shown to be equal within 1 point: GB.")


def test_a_small_but_real_difference_is_one():
    table = table_of({"grad": 0.3, "ig": 2}, spread=0.0003)
    assert verdicts.in_words(verdicts.verdicts(table, "pixel", "remove")).endswith(": worse than Random: GRAD, IG.")
    strict = verdicts.verdicts(table, "pixel", "remove", margin=0.002)
    assert verdicts.in_words(strict).endswith("worse than Random: GRAD, IG.")
    assert verdicts.in_words(
        verdicts.verdicts(table_of({"ig": 0}, spread=0.0003), "pixel", "remove", margin=0.002)
    ) == ("With 5 seeds and a 5% chance of any false finding: equal to Random within 0.2 points: IG.")


def test_ensembles_are_compared_with_the_base_they_wrap():
    found = verdicts.verdicts(table_of({"grad": 3, "grad-sg": 8, "ig-sg": 1}, spread=0.003), "pixel", "remove", "base")
    assert found[["estimator", "reference"]].values.tolist() == [["grad-sg", "grad"]]
    assert found["mean"].iloc[0] == pytest.approx(0.05, abs=0.01)
    nothing = verdicts.verdicts(table_of({}), "pixel", "remove")
    assert nothing.empty and "nothing can be said" in verdicts.in_words(nothing)


def test_only_seeds_that_are_whole_in_both_count():
    table = table_of({"grad": -5}, seeds=4, spread=0.01)
    table = table[~((table.estimator == "grad") & (table.seed == 2) & (table.percent == 70))]
    assert verdicts.verdicts(table, "pixel", "remove").n.iloc[0] == 3


def test_a_verdict_as_one_cell():
    found = pd.DataFrame(
        {"mean": [-0.095, 0.02, -1e-5], "low": [-0.118, np.nan, -0.01], "high": [-0.072, np.nan, 0.01]}
    )
    words = list(verdicts.cells(found.assign(verdict=["better", "too few seeds", "open"])))
    assert words == ["-9.5 [-11.8, -7.2] better", "+2.0 too few seeds", "+0.0 [-1.0, +1.0] open"]
    assert verdicts.cells(found.iloc[:0].assign(verdict="")).empty


def test_power_equals_a_simulation_and_seeds_follow_from_it():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.02, 0.015, (20_000, 5))
    seen = (scipy_stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert verdicts.power(0.02, 0.015, 5) == pytest.approx(seen, abs=0.01)
    noise = 0.015 / np.sqrt(2) * rng.standard_normal((2000, 19, 5))
    values = noise[:, 1:] - noise[:, :1]
    others = spreads.Shared(*(found[:, None] for found in spreads.shared(values)))
    for difference in (0.02, 0.03):
        seen = (spreads.tested(values + difference, 0.01, others)["p"] < 0.05 / 18).mean()
        assert verdicts.power(difference, 0.015, 5, 0.05 / 18, 18) == pytest.approx(seen, abs=0.05)
    n = verdicts.seeds_needed(0.02, 0.015)
    assert verdicts.power(0.02, 0.015, n) >= 0.8 > verdicts.power(0.02, 0.015, n - 1)
    assert verdicts.seeds_needed(0.0001, 1.0) == 200 and verdicts.power(0.02, 0.015, 1) == 0


def test_kendalls_w_by_hand():
    scores = pd.DataFrame([[1, 2, 3], [1, 2, 3], [3, 2, 1]], columns=list("abc"))  # rank sums 5 6 7: S = 2
    found = verdicts.kendall_w(scores)
    assert found["w"] == pytest.approx(12 * 2 / (9 * 24)) and (found["m"], found["n"]) == (3, 3)
    assert verdicts.kendall_w(scores.iloc[:2])["w"] == pytest.approx(1)
    friedman = scipy_stats.friedmanchisquare(*scores.T.to_numpy())  # the same statistic: chi^2 = m (n - 1) W
    assert found["p"] == pytest.approx(friedman.pvalue)
    tied = pd.DataFrame([[1, 1, 3], [1, 2, 3], [2, 2, 1]], columns=list("abc"))
    assert verdicts.kendall_w(tied)["p"] == pytest.approx(scipy_stats.friedmanchisquare(*tied.T.to_numpy()).pvalue)
    assert np.isnan(verdicts.kendall_w(scores.iloc[:1])["w"])


POINTS = (0, 0.5, 1, 2, 5)  # true differences from Random; the margin is 1
EVEN, UNEVEN = np.full(18, 0.3), np.geomspace(0.05, 1.5, 18)  # points: spread of 18 estimators' retrainings


def words_of(truth, seeds, widths, studies=2000):
    """Words on simulated studies, (studies, 18), and where they are false, of true differences (18,) in points.

    All differences of a seed share Random's noise, 0.3 points.
    """
    noise = np.random.default_rng(seeds).standard_normal((studies, 19, seeds))
    made = (truth[:, None] + widths[:, None] * noise[:, :18] - 0.3 * noise[:, 18:]) / 100
    others = spreads.Shared(*(found[:, None] for found in spreads.shared(made)))
    tested = spreads.tested(made, 0.01, others)
    words = verdicts.words(tested["mean"] < 0, *verdicts.corrected(tested["p"], tested["p_equal"]))
    told = (words == verdicts.BETTER) & (truth >= 0) | (words == verdicts.WORSE) & (truth <= 0)
    return words, told | (words == verdicts.EQUAL) & (abs(truth) >= 1)


@pytest.mark.parametrize("widths", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_no_false_word_in_19_of_20_studies(seeds, widths):
    """18 estimators at one true difference, half of them on each side, or at all of them by turns.

    pytest -s prints a line of LOG.md's table each: any false word in a study; share of words that are right, equal.
    """
    side, found = np.where(np.arange(18) % 2, 1, -1), {}
    for truth in (*POINTS, "all"):
        points = side * np.resize(POINTS if truth == "all" else [truth], 18)
        words, false = words_of(points, seeds, widths)
        right = words == np.where(side < 0, verdicts.BETTER, verdicts.WORSE)
        found[truth] = false.any(1).mean(), right.mean(), (words == verdicts.EQUAL).mean()
        kind = "0.3" if widths is EVEN else "0.05 to 1.5"
        print(f"| {kind} | {seeds} | {truth} | " + " | ".join(f"{share:.3f}" for share in found[truth]) + " |")
    error = np.sqrt(0.05 * 0.95 / 2000)  # of the simulation
    assert all(false <= 0.05 + 2.6 * error for false, *_ in found.values())
    shares = [found[truth][1] for truth in POINTS]
    assert shares == sorted(shares) and found[0][2] > found[0.5][2] >= found[1][2]
    strictest = [verdicts.power(truth / 100, 0.003 * np.sqrt(2), seeds, verdicts.LEVEL / 18, 18) for truth in (1, 2)]
    assert widths is UNEVEN or all(found[t][1] >= p - 0.02 for t, p in zip((1, 2), strictest, strict=True))
    assert seeds > 3 or found[2][1] > 0.7  # by itself each would be told in 0.24 of the studies


def test_seeds_of_unlike_precision_are_no_pairs():
    table = table_of({"grad": -5}, seeds=4, spread=0.01).assign(precision="float32")
    table.loc[(table.estimator == "grad") & (table.seed == 1), "precision"] = "bfloat16"
    assert verdicts.verdicts(table, "pixel", "remove").n.iloc[0] == 3


def test_an_estimator_without_a_pair_is_named_and_counts_for_nothing():
    table = table_of({"grad": -5, "gb": -5}, seeds=4, spread=0.01).assign(precision="float32")
    table.loc[table.estimator == "gb", "precision"] = "bfloat16"
    found = verdicts.verdicts(table, "pixel", "remove").set_index("estimator")
    assert found.verdict.to_dict() == {"grad": verdicts.BETTER, "gb": verdicts.FEW}
    assert list(found.index) == ["grad", "gb"] and found.dtypes[["mean", "std", "low", "p"]].eq("float64").all()
    assert found.n["gb"] == 0 and found.p_holm["grad"] == found.p["grad"]
    assert "GB" in verdicts.in_words(found.reset_index())
    assert verdicts.cells(found)["gb"] == "too few seeds"
    assert verdicts.verdicts(table[table.estimator != "random"], "pixel", "remove").empty


def test_undefined_spread_has_no_power_and_two_seeds_no_effect_size():
    assert np.isnan(verdicts.power(0.02, np.nan, 5)) and np.isnan(verdicts.hedges_g([0.1, 0.2]))


ORDER = {"grad": -4, "gb": -3, "ig": -2, "grad-sg": -1}  # and random, 0: the last in mode remove


def test_agreement_over_units_and_modes_means_the_same_estimators_are_good():
    removed = table_of(ORDER)
    kept = table_of({name: -points for name, points in ORDER.items()}, mode="keep", percents=(10,))
    values = removed.assign(unit="value")
    found = verdicts.agreement(pd.concat([removed, kept, values]), "pixel", "remove").set_index("over")
    assert found.index.tolist() == ["seeds", "percents", "units", "modes"]
    assert found.w.tolist() == pytest.approx([1, 1, 1, 1]) and found.m.tolist() == [5, 2, 2, 2]
    mirrored = pd.concat([removed, table_of(ORDER, mode="keep")])  # what helps to remove hurts to keep
    assert verdicts.agreement(mirrored, "pixel", "remove").set_index("over").w["modes"] == pytest.approx(0)
    alone = verdicts.agreement(removed, "pixel", "remove").set_index("over")
    assert alone.m[["units", "modes"]].tolist() == [1, 1] and alone.w[["units", "modes"]].isna().all()


def test_estimators_with_more_seeds_than_others_are_not_all_that_counts():
    """As with `seeds: auto`: three of seven go on. Equal orders agree, and one that has a seed alone is left out."""
    names = ("grad", "gb", "ig", "grad-sg", "gb-sg", "ig-sg", "grad-var", "gb-var")
    table = table_of({name: -k for k, name in enumerate(names)}, seeds=8)
    more = ["random", "gb", "ig-sg", "grad-var"]
    table = table[(table.seed < 3) & (table.estimator != "gb-var") | table.estimator.isin(more) | (table.seed == 0)]
    found = verdicts.agreement(pd.concat([table, table.assign(unit="value")]), "pixel", "remove").set_index("over")
    assert found.n[["seeds", "percents", "units"]].tolist() == [7, 7, 7] and found.m["seeds"] == 3
    assert found.w[["seeds", "percents", "units"]].tolist() == pytest.approx([1, 1, 1])


def test_tau_between_units_and_modes_by_hand():
    swapped = table_of({**ORDER, "grad": -3, "gb": -4}).assign(unit="value")  # 1 of 6 pairs is turned: tau 2/3
    kept = table_of({name: -points for name, points in ORDER.items()}, mode="keep", percents=(10,))
    found = verdicts.agreement_within(pd.concat([table_of(ORDER), swapped, kept]))
    assert found[["one", "other"]].values.tolist() == [
        ["single values removed", "whole pixels removed"],
        ["single values removed", "whole pixels kept"],
        ["whole pixels removed", "whole pixels kept"],
    ]
    assert found.tau.tolist() == pytest.approx([2 / 3, 2 / 3, 1]) and (found.n == 4).all()  # without Random
    assert verdicts.agreement_within(table_of(ORDER)).empty


def test_tau_takes_what_both_have():
    first = table_of(ORDER, percents=(30, 70))
    second = table_of({**ORDER, "sobel": -9}, percents=(30, 90))
    second.loc[second.percent == 90, "accuracy"] *= -1  # would reverse the order, but only one of the two has it
    third = table_of({"grad": -2, "gb": -3, "ig": -1, "grad-blur": -9}, percents=(30,))  # one of three pairs is turned
    found = [
        verdicts.agreement_within(pd.concat([first, other.assign(unit="value")])).iloc[0]
        for other in (second, third, table_of({"sobel": -9}), table_of(ORDER, percents=(10,)))
    ]
    assert [row.n for row in found] == [4, 3, 0, 0]
    assert found[0].tau == pytest.approx(1) and found[1].tau == pytest.approx(1 / 3)
    assert np.isnan(found[2].tau) and np.isnan(found[3].tau)


def test_an_order_missing_a_point_is_left_out():
    partly = table_of(ORDER)
    partly = partly[~((partly.estimator == "gb") & (partly.percent == 70) & (partly.seed == 1))]
    values = table_of(ORDER).assign(unit="value")
    assert verdicts.agreement_within(pd.concat([partly, values])).n.item() == 3
    assert verdicts.agreement(partly, "pixel", "remove").set_index("over").n[["seeds", "percents"]].tolist() == [3, 3]


@pytest.mark.parametrize("ask", [verdicts.verdicts, verdicts.agreement, verdicts.spread_of_differences])
def test_mixed_studies_are_refused(ask):
    mixed = pd.concat([table_of(ORDER), table_of(ORDER).assign(study="t")])
    with pytest.raises(ValueError, match="mixes the studies s, t"):
        ask(mixed, "pixel", "remove")
    with pytest.raises(ValueError, match="mixes the studies s, t"):
        verdicts.agreement_within(mixed)


def test_where_nothing_was_learnt_there_is_no_verdict_and_no_area():
    table = simulated(["grad", "random", "sobel"]).assign(n_classes=10)
    assert not stats.nothing_learnt(table)
    assert verdicts.VOID not in set(verdicts.verdicts(table, "pixel", "remove").verdict)
    flat = table.assign(accuracy=np.where(table.estimator == "clean", 0.1, table.accuracy / 10))
    found = verdicts.verdicts(flat, "pixel", "remove")
    assert len(found) == 2 and set(found.verdict) == {verdicts.VOID}
    assert "no verdict, as the models have learnt nothing: " in verdicts.in_words(found)
    assert stats.area_to_random(flat, stats.floor(flat))["mean"].isna().all()


def test_seeds_that_agree_by_chance_give_no_interval_and_advice_says_what_it_takes():
    table = simulated(["grad", "ig", "random"], seeds=(0, 1))
    same = table.estimator.isin(["grad", "random"]) & (table.measure == "retrain")
    table.loc[same, "accuracy"] = table[same].estimator.map({"grad": 0.5, "random": 0.6})
    found = verdicts.verdicts(table, "pixel", "remove").set_index("estimator")
    assert found.loc["grad", "verdict"] == verdicts.FEW and found.loc["grad", ["low", "high", "p"]].isna().all()
    said = verdicts.advice(table, "pixel", "remove", found.reset_index())
    assert said.startswith("With 2 estimators and the spread seen here")
    apart = found.reset_index().assign(verdict=verdicts.OPEN, low=0.01, high=0.02)
    said = verdicts.advice(table, "pixel", "remove", apart)
    assert said.startswith("An interval that excludes 0 is not a verdict yet: with 2 estimators")
    assert not verdicts.advice(table, "pixel", "remove", found[found.verdict == "no such word"].reset_index())


def test_blurred_estimators_are_judged_beside_blurred_random_too():
    """What beats Random by the shape of its holes alone does not beat holes of that shape."""
    points = {"grad": -8, "random-blur": -10, "grad-blur": -10, "sobel-blur": -14, "ig-blur": -5}
    table = table_of(points, spread=0.003, rng=np.random.default_rng(1))
    found = verdicts.verdicts(table, "pixel", "remove").set_index("estimator").verdict
    assert set(found) == {verdicts.BETTER} and len(found) == 5
    assert "Random blurred" not in verdicts.in_words(verdicts.verdicts(table, "pixel", "remove"))
    said = verdicts.beside_blurred(table, "pixel", "remove")
    assert "better than Random blurred: Sobel blurred;" in said and "worse than Random blurred: IG blurred;" in said
    assert said.startswith(
        "Blurred estimators against blurred Random, so that holes are equally solid. With 5 seeds and a 5%"
    )
    assert "GRAD blurred" in said.partition("equal to Random blurred")[2]
    blurred = table[table.estimator.str.endswith("-blur")]
    more = pd.concat([table, blurred.assign(percent=10, accuracy=blurred.accuracy.iloc[::-1].to_numpy())])
    plain = blurred.assign(estimator="sobel").drop_duplicates(["seed", "percent"])
    others = [plain.assign(estimator=name) for name in ("gb", "gb-sg", "ig-sg", "ig-var", "grad-var")]
    assert verdicts.percents(more := pd.concat([more, *others]), "pixel", "remove") == [30, 70]
    assert verdicts.beside_blurred(more, "pixel", "remove") == said  # at the percents that all verdicts are of
    assert not verdicts.beside_blurred(table[table.estimator != "random-blur"], "pixel", "remove")
    assert not verdicts.beside_blurred(
        table[~table.estimator.str.startswith(("grad", "sobel", "ig"))], "pixel", "remove"
    )


def test_equal_is_not_said_where_random_has_nothing_left_to_lose():
    table = table_of({"grad": 0, "sobel": 0}, spread=0.001).assign(n_classes=10)
    clean = ("s", "retrain", "clean", "all", "all", 0, 0, 0.99, 10)
    table = pd.concat([table, pd.DataFrame([clean], columns=table.columns)])
    assert set(verdicts.verdicts(table, "pixel", "remove").verdict) == {verdicts.EQUAL}
    chance = table.assign(accuracy=np.where(table.estimator == "clean", 0.99, 0.1 + (table.accuracy - 0.6) / 50))
    assert verdicts.exhausted(chance, "pixel", "remove")
    assert set(verdicts.verdicts(chance, "pixel", "remove").verdict) == {verdicts.OPEN}
    kept = table.assign(mode="keep", accuracy=np.where(table.estimator == "clean", 0.6, table.accuracy))
    assert set(verdicts.verdicts(kept, "pixel", "keep").verdict) == {verdicts.OPEN}


def test_all_are_judged_at_the_percents_that_most_have():
    table = table_of({"grad": -5, "sobel": -5}, percents=(30, 90), spread=0.003)
    table.loc[(table.estimator == "grad") & (table.percent == 90), "accuracy"] -= 0.4
    part = table[(table.estimator != "sobel") | (table.percent == 30)]
    assert verdicts.percents(part, "pixel", "remove") == [30, 90]
    assert verdicts.verdicts(part, "pixel", "remove").estimator.tolist() == ["grad"]  # one stray changes no other's
    most = pd.concat([part, table_of({"a": 0, "b": 0}, percents=(30,)).query("estimator != 'random'")])
    assert verdicts.percents(most, "pixel", "remove") == [30]
    found = verdicts.verdicts(most[(most.estimator != "grad") | (most.percent == 30)], "pixel", "remove")
    assert found.set_index("estimator")["mean"].round(2).to_dict() == {"grad": -0.05, "sobel": -0.05, "a": 0, "b": 0}


def test_names_that_begin_like_random_are_named():
    said = verdicts.in_words(
        verdicts.verdicts(table_of({"random_forest:f": -10, "grad": 5}, spread=0.002), "pixel", "remove")
    )
    assert "better than Random: random_forest:f;" in said
