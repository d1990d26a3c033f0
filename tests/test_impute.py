"""Imputation beside a direct sparse solve in float64, written here for this purpose."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from roarlib import impute, textures

WEIGHTS = {(i, j): (1 / 6 if 0 in (i, j) else 1 / 12) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)}


def direct(image, missing):
    """One channel (H, W): d_i u_i - sum over missing j of w_ij u_j = sum over known j of w_ij x_j, solved at once."""
    height, width = image.shape
    number = {tuple(place): k for k, place in enumerate(np.argwhere(missing))}
    rows, columns, values, right = [], [], [], np.zeros(len(number))
    for (i, j), k in number.items():
        total = 0.0
        for (di, dj), weight in WEIGHTS.items():
            there = (i + di, j + dj)
            if not (0 <= there[0] < height and 0 <= there[1] < width):
                continue
            total += weight
            if there in number:
                rows.append(k), columns.append(number[there]), values.append(-weight)
            else:
                right[k] += weight * image[there]
        rows.append(k), columns.append(k), values.append(total)
    out = image.copy()
    if not number:
        return out
    out[missing] = spsolve(coo_matrix((values, (rows, columns))).tocsc(), right)
    return out


def images(count, size=32, seed=0):
    pixels = textures.make(count, seed, size)[0].astype(np.float64)
    return torch.from_numpy((pixels - pixels.mean()) / pixels.std()).float()


def hole(kind, size):
    y, x = np.mgrid[:size, :size]
    scattered = np.random.default_rng(5).random((size, size))
    return {
        "scattered 10": scattered < 0.1,
        "scattered 50": scattered < 0.5,
        "scattered 90": scattered < 0.9,
        "scattered 97": scattered < 0.97,
        "disc": (x - size / 2) ** 2 + (y - size / 2) ** 2 < (0.4 * size) ** 2,
        "border": x < 0.6 * size,
        "all but one": (x != 3) | (y != 7),
        "chessboard": (x + y) % 2 == 0,
        "nothing": x < 0,
    }[kind]


KINDS = ["scattered 10", "scattered 50", "scattered 90", "scattered 97", "disc", "border", "all but one", "chessboard",
         "nothing"]  # fmt: skip


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_sparse_solve(kind, size):
    x, missing = images(2, size), hole(kind, size)
    found = impute.linear(x, torch.from_numpy(missing).expand(2, 1, size, size))
    assert torch.equal(found[:, :, ~missing], x[:, :, ~missing])
    for got, given in zip(found.flatten(0, 1), x.flatten(0, 1), strict=True):
        assert np.abs(got.numpy() - direct(given.numpy().astype(np.float64), missing)).max() < 1e-4


def test_each_channel_may_have_a_mask_of_its_own():
    x, missing = images(2), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.8
    found = impute.linear(x, missing)
    for got, given, gone in zip(*(t.flatten(0, 1).numpy() for t in (found, x, missing)), strict=True):
        assert np.abs(got - direct(given.astype(np.float64), gone)).max() < 1e-4


@pytest.mark.parametrize("kind", ["scattered 90", "disc"])
def test_large_images(kind):
    x, missing = images(1, 224)[:, :1], hole(kind, 224)
    found = impute.linear(x, torch.from_numpy(missing)[None, None])[0, 0].numpy()
    assert np.abs(found - direct(x[0, 0].numpy().astype(np.float64), missing)).max() < 1e-4


def test_one_missing_pixel_by_hand():
    """Amid ones, with a 13 on its right: 1 + 12 / 6 = 3; in a corner: (1/6 a + 1/6 b + 1/12 c) / (5/12)."""
    x = torch.ones(1, 1, 3, 3)
    x[0, 0, 1, 2] = 13
    missing = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    missing[0, 0, 1, 1] = True
    assert impute.linear(x, missing)[0, 0, 1, 1] == pytest.approx(3, abs=1e-4)
    corner = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    missing = torch.tensor([[[[True, False], [False, False]]]])
    assert impute.linear(corner, missing)[0, 0, 0, 0] == pytest.approx((1 / 6 + 2 / 6 + 4 / 12) / (5 / 12), abs=1e-4)


def test_where_nothing_is_known_there_is_the_fill():
    x, missing = images(3), torch.zeros(3, 3, 32, 32, dtype=torch.bool)
    missing[1], missing[2, 1] = True, True
    found = impute.linear(x, missing, torch.tensor([0.5, -1.0, 2.0]))
    assert torch.equal(found[0], x[0]) and torch.isfinite(found).all()
    assert torch.allclose(found[1], torch.tensor([0.5, -1.0, 2.0])[:, None, None].expand(3, 32, 32), atol=1e-5)
    assert torch.allclose(found[2, 1], torch.full((32, 32), -1.0), atol=1e-5) and torch.equal(found[2, 0], x[2, 0])


def test_an_image_does_not_depend_on_those_beside_it():
    """To the bit, alone or among images that need more steps, with whole pixels or values missing."""
    x = images(70)
    for shape in ((70, 1, 32, 32), (70, 3, 32, 32)):
        share = torch.linspace(0, 1, 70)[:, None, None, None]
        missing = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
        whole = impute.linear(x, missing)
        for size in (1, 7, 33):
            parts = zip(x.split(size), missing.split(size), strict=True)
            assert torch.equal(torch.cat([impute.linear(*part) for part in parts]), whole)


def test_noise_belongs_to_the_image_and_to_what_is_missing():
    x, ids = images(40), torch.arange(40)
    missing = torch.rand(40, 1, 32, 32, generator=torch.Generator().manual_seed(2)) < 0.5
    sigma = torch.tensor([0.01, 0.1, 1.0])
    noise = impute.noisy_linear(x, missing, 0.0, sigma, 3, ids) - impute.linear(x, missing)
    assert not noise[(~missing).expand_as(noise)].any()
    spread = [noise[:, c][missing[:, 0]].std().item() for c in range(3)]
    assert spread == pytest.approx(sigma.tolist(), rel=0.03)
    few = impute.noisy_linear(x[10:12], missing[10:12], 0.0, sigma, 3, ids[10:12]) - impute.linear(x, missing)[10:12]
    assert torch.equal(few, noise[10:12])
    other = impute.noisy_linear(x, missing, 0.0, sigma, 4, ids) - impute.linear(x, missing)
    assert not torch.equal(other, noise)


def test_what_cannot_be_solved_is_an_error():
    x = images(1)
    with pytest.raises(ValueError, match="does not fit"):
        impute.linear(x, torch.zeros(1, 2, 32, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not fit"):
        impute.linear(x, torch.zeros(1, 1, 32, 32))
    with pytest.raises(ArithmeticError):
        impute.linear(x * float("nan"), torch.from_numpy(hole("disc", 32))[None, None])


def test_float64_is_solved_as_float64():
    x = images(1).double()
    before = x.clone()
    found = impute.linear(x, torch.from_numpy(hole("disc", 32))[None, None])
    assert found.dtype == torch.float64 and torch.equal(x, before)  # the caller's images are left alone
    assert np.abs(found[0, 0].numpy() - direct(x[0, 0].numpy(), hole("disc", 32))).max() < 1e-4
