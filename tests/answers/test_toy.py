from roarlib.answers import toy


def test_without_retraining_the_wrong_ranking_seems_right_and_retraining_tells_them_apart():
    """The claim of the paper's toy figure: 12 useless inputs gone costs nothing if retrained, much if not."""
    table = toy.accuracies(seeds=10)
    mean = table.groupby(["retrained", "ranking", "removed"]).accuracy.mean()
    clean = mean[True, "true", 0]
    assert clean == mean[False, "inverted", 0] and clean > 0.75
    assert mean[False, "inverted", 12] < clean - 0.1  # seems to lose what it never had
    assert mean[True, "inverted", 12] > clean - 0.05  # retrained: the 4 informative inputs suffice
    assert abs(mean[True, "true", 4] - 0.5) < 0.03  # and without them nothing is left
    assert mean[True, "true", 3] < mean[True, "random", 3] < mean[True, "inverted", 3] + 0.01
    assert set(table.removed) == set(range(17)) and len(table) == 10 * 3 * 17 * 2


def test_the_same_seeds_give_the_same_numbers():
    assert toy.accuracies(seeds=2, images=200).equals(toy.accuracies(seeds=2, images=200))
