"""What a ranking file says: which inputs are removed, how many, and what two rankings have in common."""

import numpy as np
import pytest
from conftest import tiny_study

from roarlib.study import rankings
from roarlib.study.rankings import removed


def test_a_missing_ranking_says_what_to_run(outputs):
    with pytest.raises(LookupError, match="of tiny yet; `roar run`"):
        rankings.load(tiny_study(), "grad", "pixel", "test")


def test_the_estimators_whose_rankings_are_there(outputs):
    study = tiny_study(estimators=["grad", "mine:edges-sg", "random"])
    assert rankings.ready(study, "pixel", "test") == []
    wanted = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    for name in ("mine:edges-sg", "random"):
        file = rankings.path(study, name, "pixel", "test")
        file.parent.mkdir(parents=True)
        np.save(file, wanted)
    assert rankings.path(study, "mine:edges-sg", "pixel", "test") == (
        outputs / "tiny" / "02-attribute" / "mine.edges" / "mine.edges-sg-pixel-test.npy"
    )
    assert rankings.ready(study, "pixel", "test") == ["mine:edges-sg", "random"]
    assert rankings.ready(study, "value", "test") == rankings.ready(study, "pixel", "train") == []
    assert np.array_equal(rankings.load(study, "random", "pixel", "test"), wanted)


def test_removed_works_on_numpy():
    ranking = np.array([0, 49, 50, 99], dtype=np.uint8)
    assert removed(ranking, 50).tolist() == [True, True, False, False]
    assert removed(ranking, 50, "keep").tolist() == [False, False, True, True]


def test_every_image_is_counted_in_a_split_of_any_size():
    ranking = np.random.default_rng(0).integers(0, 100, (2300, 1, 4, 4), np.uint8)
    for percent in (0, 37, 100):
        wanted = removed(ranking, percent).reshape(len(ranking), -1).sum(1)
        assert np.array_equal(rankings.counts(ranking, percent), wanted)


def test_overlap_is_the_share_of_removed_units_in_common():
    a = np.arange(100, dtype=np.uint8).reshape(1, 10, 10)
    assert rankings.overlap(a, a) == pytest.approx(np.ones(100))
    opposite = rankings.overlap(a, 99 - a)
    assert (opposite[:50] == 0).all() and opposite[74] == pytest.approx(50 / 75) and opposite[99] == 1
    b = np.where(a < 10, 0, 99).astype(np.uint8)  # removes 10 units at any t below 100
    assert rankings.overlap(a, b)[[4, 9, 29]] == pytest.approx([10 / 15, 1, 20 / 40])
    few = rankings.overlap(*np.full((2, 1, 2, 2), 24, np.uint8))
    assert np.isnan(few[:24]).all() and (few[24:] == 1).all()


def test_the_overlap_of_unrelated_rankings_is_t_on_average():
    rng = np.random.default_rng(0)
    shuffled = [rng.permuted(np.repeat(np.arange(100, dtype=np.uint8), 10)).reshape(1, 20, 50) for _ in range(200)]
    found = np.mean([rankings.overlap(a, b) for a, b in zip(shuffled[::2], shuffled[1::2], strict=True)], axis=0)
    assert found == pytest.approx(np.arange(1, 101) / 100, abs=0.02)
