import numpy as np
import pytest
import torch

from roarlib.engine.remove import rank, removed, to_unit


@pytest.mark.parametrize("units", [1, 7, 48, 100, 192, 3072])
def test_exact_counts_at_every_percent(units):
    ranking = rank(torch.randn(3, 1, 1, units), torch.arange(3), 0)
    for percent in range(101):
        assert (removed(ranking, percent).flatten(1).sum(1) == percent * units // 100).all()
        assert (removed(ranking, percent, "keep").flatten(1).sum(1) == units - percent * units // 100).all()


def test_largest_scores_go_first_signed():
    scores = torch.tensor([[[[3.0, -5.0], [0.5, -0.1]]]])
    order = rank(scores, torch.zeros(1, dtype=torch.int64), 0).flatten().argsort()
    assert order.tolist() == [0, 2, 3, 1]  # 3, 0.5, -0.1, -5: sign counts, size alone does not


def test_order_agrees_with_a_plain_sort_over_many_magnitudes():
    scores = torch.randn(20, 1, 8, 8) * 10 ** torch.empty(20, 1, 8, 8).uniform_(-30, 30)
    ranking = rank(scores, torch.arange(20), 0).flatten(1).int()
    falling = ranking.gather(1, scores.flatten(1).argsort(1, descending=True))
    assert (falling.diff(dim=1) >= 0).all()


def test_ties_are_shuffled_by_seed_and_image_and_by_nothing_else():
    tied = torch.zeros(400, 1, 4, 4)
    tied[:, 0, 0, 0] = -0.0  # equal to 0.0, so no exception
    ids = torch.arange(400)
    ranking = rank(tied, ids, 0)
    assert torch.equal(ranking[7:9], rank(tied[7:9], ids[7:9], 0))
    assert not torch.equal(ranking, rank(tied, ids, 1))
    share = removed(ranking, 50).float().mean(0)  # of each position over the images
    assert share.min() > 0.38 and share.max() < 0.62  # 400 fair coins: standard deviation 0.025


def test_units():
    scores = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert to_unit(scores, "value") is scores
    assert torch.equal(to_unit(scores, "pixel"), scores.sum(1, keepdim=True))
    drawn = torch.randint(0, 100, (2, 3, 2, 2), dtype=torch.uint8)
    assert torch.equal(to_unit(drawn, "pixel"), drawn[:, :1])


def test_nan_scores_are_named():
    scores = torch.zeros(3, 1, 2, 2)
    scores[1, 0, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="image 41 are NaN"):
        rank(scores, torch.arange(40, 43), 0)


def test_removed_works_on_numpy():
    ranking = np.array([0, 49, 50, 99], dtype=np.uint8)
    assert removed(ranking, 50).tolist() == [True, True, False, False]
    assert removed(ranking, 50, "keep").tolist() == [False, False, True, True]
