"""roarlib.answers.looks: which seeds a study needs, what may be said on the way, and how often it is wrong."""

import numpy as np
import pandas as pd
import pytest
from conftest import row, tiny_study

from roarlib.answers import looks, spreads, verdicts
from roarlib.answers.verdicts import BETTER, EQUAL, OPEN, WORSE

NAMES = ["gb", "grad", "ig"]
SHAPES = {  # true differences from Random, points
    "spread": np.linspace(-8, 9, 18),
    "none": np.zeros(18),
    "margin": np.where(np.arange(18) % 2, 1.0, -1.0),
    "half": np.r_[np.zeros(9), np.ones(9)],
}


def study(**changes):
    return tiny_study(**dict(estimators=[*NAMES, "random"], seeds="auto", percents=[50]) | changes)


def table(differences, mode="remove", seconds=36.0):
    """Rows of a study: Random and clean with all seeds, and estimators with these differences to it, seed by seed."""
    most = max(map(len, differences.values()))
    chance = np.random.default_rng(5).normal(0.5, 0.02, most)
    found = [row("retrain", "clean", "all", "all", 0, seed, 0.9) for seed in range(most)]
    for name, values in {"random": np.zeros(most), **differences}.items():
        found += [row("retrain", name, "pixel", mode, 50, seed, chance[seed] + v) for seed, v in enumerate(values)]
    return pd.DataFrame(found).assign(seconds=seconds)


def near(mean, count, spread=1e-6):
    """Differences that are this mean but for next to nothing."""
    return mean + spread * np.tile([-1, 1], count)[:count]


def wide(count):
    """Differences that leave everything open."""
    return 0.3 * np.tile([-1, 1], count)[:count]


def test_looks_come_after_half_as_many_seeds_again_and_share_the_level():
    assert looks.counts(12) == [3, 5, 8, 12] and looks.counts(3) == [3] and looks.counts(20) == [3, 5, 8, 12, 18, 20]
    assert looks.levels(12).sum() == pytest.approx(0.05) and looks.levels(3) == pytest.approx([0.05])
    assert looks.levels(12) * 144 == pytest.approx(0.05 * np.array([9, 16, 39, 80]))


def test_the_first_look_waits_for_three_seeds_of_all():
    said = study()
    assert looks.plan([], said) == dict.fromkeys(["clean", *said.estimators], range(3))
    assert looks.made(table({name: near(0.1, 2) for name in NAMES}), said) == []
    rows = table({name: near(0.1, 3) for name in NAMES})
    assert len(looks.made(rows, said)) == 1
    for name in ("random", "gb"):
        assert looks.made(rows[(rows.estimator != name) | (rows.seed != 1)], said) == []


def test_what_is_told_gets_no_more_seeds_and_what_is_open_does():
    said = study()
    rows = table({"gb": near(-0.1, 3), "grad": near(0, 3), "ig": wide(3)})
    (look,) = looks.made(rows, said)
    assert look.told == {"gb": (BETTER, 3), "grad": (EQUAL, 3)} and look.still == ("ig",) and look.then == 5
    assert str(look) == "after 3 seeds: 1 better, 0 worse, 1 equal, 1 open; 9 min used"  # 15 rows of 36 seconds
    assert looks.plan([look], said) == {
        "clean": range(5),
        "gb": range(3),
        "grad": range(3),
        "ig": range(5),
        "random": range(5),
    }
    later = looks.made(table({"gb": near(-0.1, 3), "grad": near(0, 3), "ig": np.r_[wide(3), 3, 3]}), said)
    assert later[0] == look and len(later) == 2 and later[1].then == 8 and later[1].still == ("ig",)


def test_estimators_that_are_not_listed_have_no_vote_on_percents():
    both = [table({"grad": near(difference, 3)}).assign(percent=t) for t, difference in ((50, 0.2), (90, -0.1))]
    rows = pd.concat([both[0], both[1][both[1].estimator != "clean"]])
    rows.loc[rows.estimator == "clean", "percent"] = 0
    swept = pd.concat([both[1][both[1].estimator == "grad"].assign(estimator=name) for name in ("gb", "ig", "sobel")])
    now = study(estimators=["grad", "random"], percents=[50, 90])
    assert [look.told for look in looks.made(pd.concat([rows, swept]), now)] == [{"grad": (WORSE, 3)}]


def test_a_word_stays_whatever_comes_later():
    rows = table({"gb": np.r_[near(-0.1, 3), [0.5] * 9], "grad": wide(12), "ig": wide(12)})
    found = looks.made(rows, study())
    assert [look.seeds for look in found] == [3, 5, 8, 12] and found[-1].then == 0
    assert all(look.told == {"gb": (BETTER, 3)} for look in found)
    judged = looks.judged(rows, study(), "pixel", "remove").set_index("estimator").verdict
    assert judged.to_dict() == {"gb": BETTER, "grad": OPEN, "ig": OPEN}
    fixed = study(seeds=list(range(12)))
    assert set(looks.judged(rows, fixed, "pixel", "remove").verdict) == {WORSE, OPEN}  # in one look, gb is worse


def test_the_plan_is_the_same_for_all_who_see_these_rows():
    said = study()
    rows = table({"gb": near(-0.1, 5), "grad": near(0, 3), "ig": wide(4)})  # in the middle of the second look
    plan = looks.plan(looks.made(rows, said), said)
    assert plan["gb"] == range(3) and plan["ig"] == range(5) and len(looks.made(rows, said)) == 1
    assert looks.plan(looks.made(rows.sample(frac=1, random_state=0), said), said) == plan


def test_once_all_are_told_nothing_is_added():
    said = study()
    (look,) = looks.made(table({"gb": near(-0.1, 3), "grad": near(0.1, 3), "ig": near(0, 3)}), said)
    assert look.then == 0 and [word for word, _ in look.told.values()] == [BETTER, WORSE, EQUAL]
    assert set(looks.plan([look], said).values()) == {range(3)}


def test_where_inputs_are_kept_more_accuracy_is_better():
    said = study(modes=["keep"])
    (look,) = looks.made(table({"gb": near(-0.1, 3), "grad": near(0.1, 3), "ig": wide(3)}, "keep"), said)
    assert look.told == {"gb": (WORSE, 3), "grad": (BETTER, 3)}


def test_a_reader_is_told_of_the_design():
    assert looks.design(study(seeds=[0, 1, 2])) == ""
    said = looks.design(study(seeds_max=8, hours=2))
    assert "tested after 3, 5 and 8 seeds, as far as needed, and these tests (looks) share the 5%" in said
    assert "beyond 2 hours of work" in said


@pytest.mark.parametrize("hours, then", [(0, 5), (0.24, 5), (0.22, 0), (0.01, 0)])
def test_no_seeds_are_added_beyond_the_hours(hours, then):
    """15 rows of 36 seconds are 0.15 hours; two more seeds of three estimators (gb is told), Random and clean 0.08."""
    rows = table({"gb": near(-0.1, 3), "grad": wide(3), "ig": wide(3)})
    (look,) = looks.made(rows, study(hours=hours))
    assert look.then == then and look.hours == pytest.approx(0.15)


def told(values, most):
    """Looks at many studies at once: words and seeds (studies, estimators), of values (.., seeds), points."""
    word, used = np.full(values.shape[:2], OPEN), np.zeros(values.shape[:2], int)
    tests = np.ones((3, *values.shape[:2]))  # mean and p values, as they were when the last seed was added
    for count, level in zip(looks.counts(most), looks.levels(most), strict=True):
        going = word == OPEN
        used[going] = count
        tests = np.where(going, measured(values[:, :, :count], spread_of(values, used)), tests)
        now = verdicts.words(tests[0] < 0, *verdicts.corrected(*tests[1:]), level)
        word = np.where(going, now, word)
    return word, used


def spread_of(values, used):
    """`spreads.of_study` of many studies, each with these seeds (studies, estimators): fields by studies by those."""
    seen = np.where(np.arange(values.shape[2]) < used[..., None], values, np.nan)
    return np.moveaxis([spreads.of_study(one) for one in seen], 2, 0)


def measured(values, others):
    """Mean, and p values of a difference and of equality within 1 point."""
    found = spreads.tested(values, 1.0, spreads.Shared(*others))
    return np.stack([found["mean"], found["p"], found["p_equal"]])


def drawn(shape, count, seed=0):
    """Differences (count, 18, 12) in points, spread 0.7 to 1.1; half of their variance is Random's, so shared."""
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((count, 1, 12)) + draw.standard_normal((count, 18, 12))
    return (
        SHAPES[shape][:, None] + np.linspace(0.7, 1.1, 18)[[*range(0, 18, 2), *range(1, 18, 2)], None] * noise / 2**0.5
    )


def wrong(word, true):
    """Whether a study has any false word."""
    signed = (word == BETTER) & (true >= 0) | (word == WORSE) & (true <= 0)
    return (signed | (word == EQUAL) & (abs(true) >= 1)).any(1)


@pytest.mark.parametrize("shape", ["spread", "half"])
def test_the_simulated_rule_is_that_of_tables(shape):
    names = ["paper"]
    said = study(estimators=names)
    mine = [name for name in said.estimators if name not in ("random", "sobel")]
    said = study(estimators=[*mine, "random"])
    for values in drawn(shape, 2, seed=7):
        word, used = told(values[None], 12)
        there = {name: v[:seeds] / 100 for name, v, seeds in zip(mine, values, used[0], strict=True)}
        last = looks.made(table(there), said)[-1]
        assert {n: w for n, w in zip(mine, word[0], strict=True) if w != OPEN} == {
            n: w for n, (w, _) in last.told.items()
        }
        plan = looks.plan([last], said)
        assert [len(plan[name]) for name in mine] == used[0].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_false_words_stay_below_the_level(shape):
    word, _ = told(drawn(shape, 2000), 12)
    assert wrong(word, SHAPES[shape]).mean() < 0.05


def test_a_quarter_of_the_retrainings_is_saved_at_equal_power():
    """Beside fixed seeds, and two fifths beside fixed seeds where every estimator is tested by itself."""
    values = drawn("spread", 1000)
    word, used = told(values, 12)
    cost = (used.sum(1) + used.max(1)).mean() / 19  # Random has as many as the last that is open
    for others, saved in ((spread_of, 0.25), (lambda *_: spreads.ALONE, 0.4)):
        one = {count: fixed(values[:, :, :count], others) for count in range(5, 13)}
        equal = np.interp((word != OPEN).mean(), list(one.values()), list(one))
        print(f"{cost:.1f} seeds instead of {equal:.1f}")
        assert 1 - cost / equal > saved


def fixed(values, others):
    """Share of the estimators that a study with these seeds tells in one look."""
    mean, *p = measured(values, others(values, np.full(values.shape[:2], values.shape[2])))
    return (verdicts.words(mean < 0, *verdicts.corrected(*p), 0.05) != OPEN).mean()


def test_hours_decide_whether_seeds_are_added_and_not_whether_a_look_counts():
    """Eight seeds are there; lowering `hours`, or a slow estimator that came later, takes no word back."""
    rows = table({"gb": near(0.05, 8, 0.02), "grad": near(-0.1, 3), "ig": wide(8)})
    freely = looks.made(rows, study(seeds_max=8))
    assert [look.seeds for look in freely] == [3, 5, 8]
    assert [(look.told, look.then) for look in looks.made(rows, study(seeds_max=8, hours=0.01))] == [
        (look.told, 0) for look in freely
    ]
    slow = table({"sobel": wide(3)}, seconds=3600.0).query("estimator == 'sobel'")
    later = study(estimators=[*NAMES, "sobel", "random"], seeds_max=8, hours=1)
    *_, last = looks.made(pd.concat([rows, slow]), later)
    assert last.seeds == 8 and last.told == freely[-1].told and set(last.still) == {*freely[-1].still, "sobel"}


def test_a_first_look_that_waits_says_for_whom():
    rows = table({"gb": near(-0.1, 3), "grad": near(-0.1, 3)})
    assert looks.waits(rows, study()) == "No verdict yet: the first look waits for 3 seeds of IG."
    assert set(looks.judged(rows, study(), "pixel", "remove").verdict) == {OPEN}
    assert looks.waits(rows, study(estimators=["random"])) == ""
    fewer = study(estimators=["gb", "random"])  # grad is no longer listed, and keeps the word of its test
    assert looks.waits(rows, fewer) == "" and looks.waits(rows, study(seeds=[0, 1, 2])) == ""
    assert set(looks.judged(rows, fewer, "pixel", "remove").verdict) == {BETTER}


def test_mixed_estimators_ask_for_no_seeds():
    said = study(estimators=["gb", "gb-mix50", "random"])
    (look,) = looks.made(table({"gb": near(-0.1, 3), "gb-mix50": wide(3)}), said)
    assert look.still == () and look.then == 0 and looks.plan([look], said)["gb-mix50"] == range(3)


def test_percents_that_are_no_longer_listed_count_in_no_look():
    rows = table({name: near(-0.1, 5) for name in NAMES})
    old = rows[(rows.estimator != "clean") & (rows.seed < 3)].assign(percent=90)
    old.loc[old.estimator == "gb", "accuracy"] += 0.5
    (look,) = looks.made(pd.concat([rows, old]), study())
    assert set(look.told) == {*NAMES}
