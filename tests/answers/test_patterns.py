"""Patterns of rankings: Moran's I and the lattice, by hand."""

import numpy as np
import pytest
from conftest import tiny_study

from roarlib.answers import patterns
from roarlib.study import rankings


def test_morans_i_by_hand():
    """A 2 x 2 chessboard: mean 0, all four pairs are -1/4: (4 / 4) (4 x -1/4) / (4 / 4) = -1; two halves: 0."""
    chess, halves = np.array([[1, 0], [0, 1]], bool), np.array([[1, 1], [0, 0]], bool)
    assert patterns.moran(chess) == pytest.approx(-1) and patterns.moran(halves) == pytest.approx(0)
    block = np.zeros((3, 32, 32), bool)
    block[0, 8:20, 8:20] = True
    block[1] = np.random.default_rng(0).random((32, 32)) < 0.2
    clumped, scattered, nothing = patterns.moran(block)
    assert clumped > 0.85 and abs(scattered) < 0.1 and np.isnan(nothing)


def test_a_lattice_is_told_by_position():
    """Of an 8 x 8 image, removed: a checkerboard, every second row, the left half, and one pixel in 16."""
    row, column = np.indices((8, 8))
    board, rows, half, one = (row + column) % 2 == 0, row % 2 == 0, column < 4, (row % 4 == 0) & (column % 4 == 0)
    found = [[patterns.by_position(mask, modulus) for modulus in (2, 4)] for mask in (board, rows, half, one)]
    assert found == [[1, 1], [1, 1], [0, 0], [0.25, 1]]
    assert patterns.by_position(np.stack([board, ~board])[:, None], 2) == 0  # images that print it differently


def test_a_sample_of_images_is_of_all_classes(outputs):
    """Folders are sorted by class: scattered in the first class, a solid half in the other."""
    study = tiny_study(estimators=["grad"])
    scattered = np.random.default_rng(0).permutation(64).reshape(8, 8) * 100 // 64
    solid = np.where(np.indices((8, 8))[1] < 4, 0, 99)
    rankings.path(study, "grad", "pixel", "test").parent.mkdir(parents=True)
    made = np.stack([scattered] * 20 + [solid] * 20).astype(np.uint8)[:, None]
    np.save(rankings.path(study, "grad", "pixel", "test"), made)
    alone = patterns.moran(made[:1, 0] < 50).item()
    assert patterns.clumpiness(study, "pixel", 50, count=10)["grad"] == pytest.approx((alone + 1) / 2, abs=0.1)
    assert rankings.evenly(7, 3).tolist() == [0, 3, 6] and rankings.evenly(3, 500).tolist() == [0, 1, 2]


def test_a_ranking_that_spares_every_second_pixel_is_warned_of(outputs):
    """A checkerboard first: 100 points. The left half first: none."""
    study = tiny_study(estimators=["grad", "grad-sg", "random"])
    row, column = np.indices((8, 8))
    ranking = np.where((row + column) % 2 == 0, 0, 99).astype(np.uint8)
    ranks = {"grad": ranking, "grad-sg": np.where(column < 4, 0, 99).astype(np.uint8)}
    file = rankings.path(study, "grad", "pixel", "test")
    file.parent.mkdir(parents=True)
    for name, made in ranks.items():
        np.save(rankings.path(study, name, "pixel", "test"), np.broadcast_to(made, (3, 1, 8, 8)))
    found = patterns.lattice(study, "pixel")
    assert found.loc["grad"].tolist() == [100, 100] and found.loc["grad-sg"].tolist() == [0, 0] and len(found) == 2
    said = patterns.warning(found)
    assert "GRAD (100)" in said and "SG-GRAD" not in said
    assert patterns.clumpiness(study, "pixel", 50)["grad"] == pytest.approx(-1)
    both = ["grad", "grad-sg"]  # Random has no ranking here: 0
    said = patterns.solid(study, "pixel", both)
    assert said.startswith("Solid holes (Moran's I; 0 for Random): SG-GRAD (0.9). ") and '"*-blur"' in said
    assert patterns.solid(study, "pixel", ["grad"]) == "" == patterns.solid(study, "pixel", [])
    control = tiny_study(estimators=["grad", "grad-sg", "random", "random-blur"])
    assert patterns.solid(control, "pixel", both) == said  # blurred Random alone answers nothing
    control = tiny_study(estimators=["grad", "grad-sg", "grad-sg-blur", "random", "random-blur"])
    assert patterns.solid(control, "pixel", both) == "" == patterns.solid(study, "pixel", ["oracle"])
    assert "the rankings are not here" in patterns.solid(study, "pixel", ["ig"])
    file.unlink()
    assert patterns.warning(patterns.lattice(study, "pixel")) == ""  # of what is left
    assert patterns.warning(patterns.lattice(study, "value")) == ""  # of no ranking at all
