"""roarlib.answers.spreads: moderated t tests, by hand, beside SciPy's, and how often they are wrong."""

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from roarlib.answers import spreads, verdicts

WIDTHS = {  # points: spread of each estimator's retrainings, of m
    "even": lambda m: np.full(m, 0.3),
    "uneven": lambda m: np.geomspace(0.05, 1.5, m),
    "two kinds": lambda m: np.where(np.arange(m) % 2, 0.1, 1.0),
    "one wide": lambda m: np.r_[np.full(m - 1, 0.3), 1.5],
    "one far wider": lambda m: np.r_[np.full(m - 1, 0.2), 3.0],
}


def drawn(m, seeds, widths, random=0.3, studies=2000, seed=0):
    """Differences from Random without any true ones, in points: (studies, m, seeds)."""
    noise = np.random.default_rng(seed).standard_normal((studies, m + 1, seeds))
    return widths[:, None] * noise[:, :m] - random * noise[:, m:]


def over_studies(found):
    return spreads.Shared(*(field[..., None] for field in found))


def test_alone_it_is_students_test():
    values = np.random.default_rng(0).normal(0.1, 0.3, (20, 5))
    found = spreads.tested(values, 0.2)
    student = scipy_stats.ttest_1samp(values, 0, axis=1)
    np.testing.assert_allclose(found["p"], student.pvalue)
    np.testing.assert_allclose([found["low"], found["high"]], student.confidence_interval(0.95))
    below = scipy_stats.ttest_1samp(values, 0.2, axis=1, alternative="less").pvalue
    above = scipy_stats.ttest_1samp(values, -0.2, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(found["p_equal"], np.maximum(below, above))


def test_what_others_say_by_hand():
    values = np.array([1.0, 2.0, 3.0])  # mean 2, variance 1 over 2 degrees
    variance, degrees = spreads.moderated(1.0, 3, spreads.Shared(np.array(0.25), np.array(4.0), np.array(5.0)))
    assert (variance, degrees) == (pytest.approx(0.5), 5)  # (4 x 0.25 + 2 x 1) / 6; 6 degrees, 5 at most
    found = spreads.tested(values, 1.0, spreads.Shared(np.array(0.25), np.array(4.0), np.array(5.0)))
    error = np.sqrt(0.5 / 3)
    assert found["p"] == pytest.approx(2 * scipy_stats.t.sf(2 / error, 5)) and found["std"] == 1
    assert found["high"] - 2 == pytest.approx(scipy_stats.t.ppf(0.975, 5) * error)
    assert spreads.moderated(1.0, 30, spreads.Shared(np.array(0.25), np.array(4.0), np.array(5.0)))[1] == 29
    assert spreads.moderated(2.0, 3, spreads.Shared(np.array(0.25), np.array(4.0), np.array(5.0))) == (2, 2)  # wide


@pytest.mark.parametrize("y", [1e-6, 0.3, 1.6, 40.0])
def test_the_inverse_of_trigamma(y):
    assert special.polygamma(1, spreads._trigamma_inverse(y)) == pytest.approx(y)


def test_others_count_where_they_are_alike_and_not_where_they_are_not():
    alike = spreads.shared(drawn(18, 5, WIDTHS["even"](18)))
    apart = spreads.shared(drawn(18, 5, WIDTHS["two kinds"](18)))
    assert np.median(alike.degrees) > 4 > 2 > np.median(apart.degrees)
    assert np.exp(np.log(alike.variance).mean()) == pytest.approx(0.18, rel=0.03)  # 0.3^2 + Random's
    few = spreads.shared(drawn(3, 5, WIDTHS["even"](3)))
    assert np.median(few.degrees) < np.median(alike.degrees)  # three cannot show that they are alike


@pytest.mark.parametrize("m, seeds", [(18, 3), (18, 5), (5, 4)])
def test_the_degrees_that_can_be_expected(m, seeds):
    found = spreads.shared(drawn(m, seeds, WIDTHS["even"](m)))
    degrees = spreads.moderated(found.variance, seeds, found)[1]
    assert np.median(degrees) == pytest.approx(spreads.expected(seeds, m), rel=0.2)


def test_random_that_all_share_limits_what_they_know_together():
    quiet = spreads.shared(drawn(18, 10, WIDTHS["even"](18), random=0.01))
    loud = spreads.shared(drawn(18, 10, WIDTHS["even"](18), random=3))
    assert np.median(quiet.most) == pytest.approx(9 / (1 / 18 + spreads.ALIKE * 17 / 18), rel=0.05)
    assert np.median(loud.most) == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize("values", [np.eye(1, 5), np.eye(5, 2), np.ones((4, 5)), np.full((4, 5), np.nan)])
def test_too_few_and_too_equal_say_nothing(values):
    assert all(one is spreads.ALONE for one in spreads.of_study(values)) and len(spreads.of_study(values)) == len(
        values
    )


def test_each_borrows_from_those_with_its_seeds():
    values = drawn(7, 5, WIDTHS["even"](7), studies=1)[0]
    values[5] = 0.2  # does not vary
    values[6, :2] = np.nan
    found = spreads.of_study(values)
    assert found[:6] == [spreads.shared(values[:5])] * 6
    assert found[6] == spreads.shared(values[[0, 1, 2, 3, 4, 6], 2:])
    later = np.full((7, 9), np.nan)
    later[:, :5], later[6, 5:] = values, 1.0  # others have none of its seeds
    assert spreads.of_study(later)[6] is spreads.ALONE and spreads.of_study(later)[:6] == found[:6]


def test_differences_that_agree_by_chance():
    others = spreads.shared(drawn(5, 5, WIDTHS["even"](5), studies=1)[0])
    found = spreads.tested(np.full(5, 0.2), 1.0, others)  # others know what it may vary
    assert 0 < found["p"] < 1 and found["low"] < 0.2 < found["high"]
    alone = spreads.tested(np.full(5, 0.2), 1.0)
    assert np.isnan([alone["p"], alone["low"], alone["p_equal"]]).all() and alone["mean"] == pytest.approx(0.2)
    assert np.isnan(spreads.tested([0.3], 1.0)["p"])


@pytest.mark.parametrize("seeds", [2, 3])
def test_an_estimator_of_its_own_kind_with_fewer_seeds_borrows_no_certainty(seeds):
    """18 with 5 seeds, and one that varies five times as much, of which there are only so many."""
    values = drawn(19, 5, np.r_[WIDTHS["even"](18), 1.5])
    values[:, 18, seeds:] = np.nan
    others = [spreads.of_study(one)[18] for one in values]
    false = [spreads.tested(v[18, :seeds], 1.0, o)["p"] < 0.05 / 19 for v, o in zip(values, others, strict=True)]
    assert np.mean(false) < 0.05


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("m, seeds", [(18, 3), (18, 5), (24, 4), (4, 3), (4, 5)])
def test_no_false_word_however_unlike_the_spreads(kind, m, seeds):
    """No true difference, or all of them at the margin, with a Random that varies little or much: pytest -s prints."""
    worst = 0
    for random in (0.05, 0.3, 0.6, 1.0):
        noise = drawn(m, seeds, WIDTHS[kind](m), random)
        for truth in (0, 1):
            values = noise + np.where(np.arange(m) % 2, truth, -truth)[:, None]
            found = spreads.tested(values, 1.0, over_studies(spreads.shared(values)))
            word = verdicts.words(found["mean"] < 0, *verdicts.corrected(found["p"], found["p_equal"]))
            false = word == verdicts.EQUAL if truth else np.isin(word, [verdicts.BETTER, verdicts.WORSE])
            worst = max(worst, false.any(1).mean())
    noise = drawn(m, seeds, WIDTHS[kind](m))
    found = spreads.tested(noise + 5, 1.0, over_studies(spreads.shared(noise)))
    seen = (verdicts.holm(found["p"]) < 0.05).mean()
    print(f"| {kind} | {m} | {seeds} | {worst:.3f} | {seen:.2f} |")
    error = np.sqrt(0.05 * 0.95 / 2000)
    assert worst <= 0.05 + 2.6 * error and seen > 0.5
