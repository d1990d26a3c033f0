"""Imputation against a sparse direct solve in float64, written here from the paper's equations alone."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from roarlib.engine import draws, impute

WEIGHTS = {(dy, dx): 1 / 6 if 0 in (dy, dx) else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}


def direct(image, missing):
    """One channel float64 (H, W) with its missing pixels (H, W) solved for."""
    height, width = image.shape
    number = np.cumsum(missing).reshape(missing.shape) - 1
    matrix, right = sparse.lil_matrix((missing.sum(), missing.sum())), np.zeros(missing.sum())
    for y, x in np.argwhere(missing):
        row = number[y, x]
        for (dy, dx), weight in WEIGHTS.items():
            there = (y + dy, x + dx)
            if not (0 <= there[0] < height and 0 <= there[1] < width):
                continue
            matrix[row, row] += weight
            if missing[there]:
                matrix[row, number[there]] -= weight
            else:
                right[row] += weight * image[there]
    solved = image.copy()
    solved[missing] = spsolve(matrix.tocsc(), right) if missing.any() else []
    return solved


def directs(images, missing):
    missing = missing.expand(images.shape).numpy()
    solved = [
        [direct(*pair) for pair in zip(*both, strict=True)]
        for both in zip(images.double().numpy(), missing, strict=True)
    ]
    return torch.tensor(np.array(solved))


def scattered(height, width, percent, seed=0):
    """Missing (H, W), exactly percent of the pixels."""
    order = np.random.default_rng(seed).permutation(height * width).reshape(height, width)
    return torch.tensor(order < percent * height * width // 100)


def disc(size, radius, y, x):
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def but(size, *known):
    """All missing (size, size) but the pixels at these indices."""
    missing = torch.ones(size, size, dtype=torch.bool)
    for index in known:
        missing[index] = False
    return missing


MASKS = {f"{percent} percent": scattered(32, 32, percent) for percent in (0, 10, 50, 90, 97)} | {
    "solid": disc(32, 13, 15, 17),
    "border": disc(32, 12, 3, 30),
    "one pixel known": but(32, (20, 9)),
    "two pixels known": but(32, (3, 5), (30, 16)),
    "a corner known": but(32, (0, 0)),
    "a side known": but(32, 0),
    "a line known": but(32, (slice(None), 16)),
    "a net known": but(32, slice(0, 32, 5), (slice(None), slice(0, 32, 7))),
    "checks": torch.arange(32)[:, None] // 4 % 2 == torch.arange(32) // 4 % 2,
    "64 px": scattered(64, 64, 95),
    "64 px, solid": disc(64, 30, 32, 20),
    "odd sides": scattered(27, 45, 80),
    "flat": scattered(2, 33, 70),
    "a line": scattered(1, 17, 70),
}


def images_like(mask, count=1, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *mask.shape[-2:], generator=generator)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_solves_the_papers_equations(name, kind, monkeypatch):
    monkeypatch.setattr(impute, "LIMIT", 12)  # iterations are few, or the preconditioner is none
    missing = MASKS[name]
    images = images_like(missing).to(kind)
    made = impute.linear(images, missing[None, None])
    assert made.dtype == kind and torch.equal(made[..., ~missing], images[..., ~missing])
    assert (made - directs(images, missing)).abs().max() < 1e-4


def test_many_masks_at_once_value_by_value():
    missing = torch.stack([scattered(32, 32, p, seed) for seed, p in enumerate((5, 30, 60, 90, 95, 99))]).reshape(
        2, 3, 32, 32
    )
    images = images_like(missing, 2, 3)
    made = impute.linear(images, missing)
    assert torch.equal(made[~missing], images[~missing])
    assert (made - directs(images, missing)).abs().max() < 1e-4


@pytest.mark.parametrize("missing", [disc(224, 90, 100, 130), scattered(224, 224, 90)], ids=["solid", "90 percent"])
def test_photograph_size(missing):
    images = images_like(missing, 1, 1)
    assert (impute.linear(images, missing[None, None]) - directs(images, missing)).abs().max() < 1e-4


def test_one_missing_pixel_by_hand():
    image = torch.tensor([[1.0, 2, 3], [4, 0, 5], [6, 7, 8]])
    for place, wanted in {
        (1, 1): (2 + 4 + 5 + 7) / 6 + (1 + 3 + 6 + 8) / 12,
        (0, 1): ((1 + 3 + 0) / 6 + (4 + 5) / 12) / (3 / 6 + 2 / 12),
        (2, 0): ((4 + 7) / 6 + 0 / 12) / (2 / 6 + 1 / 12),
    }.items():
        made = impute.linear(image[None, None], ~but(3, place)[None, None])
        assert made[0, 0][place].item() == pytest.approx(wanted, abs=1e-5)


def test_nothing_known_gives_the_fill():
    images = torch.randn(2, 3, 32, 32)
    missing = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    missing[1, 0, 4, 4] = False
    made = impute.linear(images, missing, torch.tensor([0.5, -1.0, 2.0]))
    assert torch.equal(made[0], torch.tensor([0.5, -1.0, 2.0])[:, None, None].expand(3, 32, 32))
    assert torch.allclose(made[1], images[1, :, 4, 4][:, None, None].expand(3, 32, 32), atol=1e-5)
    assert torch.equal(impute.linear(images, missing)[0], torch.zeros(3, 32, 32))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_neighbours(channels, monkeypatch):
    missing = torch.stack(
        [scattered(32, 32, 3 + 7 * k, k) for k in range(13)] + [MASKS["one pixel known"], MASKS["solid"]]
    )[:, None]
    images = images_like(missing, len(missing), channels)
    alone = torch.cat([impute.linear(images[k : k + 1], missing[k : k + 1]) for k in range(len(images))])
    for size in (2, 5, len(images)):
        parts = zip(images.split(size), missing.split(size), strict=True)
        assert torch.equal(torch.cat([impute.linear(*part) for part in parts]), alone)
    monkeypatch.setattr(impute, "CHUNK", 4 * channels * 32 * 32)  # four at a time, then the rest
    assert torch.equal(impute.linear(images, missing), alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(impute.linear(images, missing), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [(27, 45), (5, 1), (3, 8)], ids=str)
def test_from_none_to_all_missing_and_in_any_order(size):
    generator = torch.Generator().manual_seed(0)
    missing = torch.rand(12, 3, *size, generator=generator) < torch.linspace(0, 1.1, 12)[:, None, None, None]
    images, fill = torch.randn(12, 3, *size, generator=generator), torch.tensor([1.0, 2, 3])
    made, nothing = impute.linear(images, missing, fill), missing.all(3).all(2)
    assert missing[0].sum() == 0 and missing[-1].all()
    order = torch.randperm(12, generator=generator)
    assert torch.equal(impute.linear(images[order], missing[order], fill), made[order])
    assert torch.equal(made[nothing], fill[:, None, None].expand(images.shape)[nothing])
    images, missing, made = (part[~nothing][:, None] for part in (images, missing, made))
    assert (made - directs(images, missing)).abs().max() < 1e-4


def test_shared_masks_are_those_of_every_channel():
    missing = scattered(32, 32, 80)[None, None]
    images = images_like(missing, 1, 3)
    assert torch.equal(impute.linear(images, missing), impute.linear(images, missing.expand(1, 3, 32, 32)))


def test_noise_belongs_to_the_image():
    missing = torch.stack([scattered(32, 32, 60, k) for k in range(4)])[:, None]
    images, ids, sigma = images_like(missing, 4, 3), torch.tensor([7, 0, 3, 12]), torch.tensor([0.1, 0.2, 0.4])
    plain = impute.linear(images, missing)
    noisy = impute.noisy_linear(images, missing, 0.0, sigma, 5, ids)
    alone = [impute.noisy_linear(images[k, None], missing[k, None], 0.0, sigma, 5, ids[k, None]) for k in range(4)]
    assert torch.equal(noisy, torch.cat(alone))
    missing = missing.expand(images.shape)
    assert torch.equal(noisy[~missing], images[~missing])
    for channel in range(3):
        noise = (noisy - plain)[:, channel][missing[:, channel]]
        assert noise.std().item() == pytest.approx(sigma[channel].item(), rel=0.06)  # 2456 draws: 1.4 percent
        assert abs(noise.mean().item()) < 4 * sigma[channel].item() / len(noise) ** 0.5
    assert not torch.equal(noisy, impute.noisy_linear(images, missing, 0.0, sigma, 6, ids))
    one = draws.normal(5, ids, 0, (3, 32, 32))
    assert not torch.equal(one, draws.normal(5, ids, 0, (3, 32, 32), draws.IMPUTATION))


def test_what_cannot_be_solved_is_told():
    images, missing = torch.randn(1, 1, 8, 8), but(8, (1, 1))[None, None]
    images[0, 0, 1, 1] = float("nan")
    with pytest.raises(ArithmeticError, match="1 channels not imputed"):
        impute.linear(images, missing)
    images, missing = torch.randn(6, 1, 8, 8), missing.expand(6, 1, 8, 8)
    for bad in (float("nan"), float("inf"), 1e30):
        images[1, 0, 1, 1] = bad
        with pytest.raises(ArithmeticError, match="1 channels not imputed"):  # those after it are none the worse
            impute.linear(images, missing)
    with pytest.raises(ArithmeticError, match="not imputed"):
        impute.linear(torch.randn(1, 3, 32, 32), MASKS["90 percent"][None, None], tolerance=0.0)
    with pytest.raises(ValueError, match="does not fit"):
        impute.linear(images, missing[0])
    with pytest.raises(ValueError, match="does not fit"):
        impute.linear(images, missing.float())
    with pytest.raises(ValueError, match="float images are needed"):
        impute.linear(images.to(torch.uint8), missing)
    assert impute.linear(images[:0], missing[:0]).shape == (0, 1, 8, 8)
    images[:] = float("nan")  # where nothing is missing nothing is solved, and what is missing is not looked at
    assert impute.linear(images, torch.zeros_like(missing)).isnan().all()
    assert impute.linear(images, torch.ones_like(missing), 3.0).eq(3).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_callers_images_are_left_alone(kind):
    images, missing = torch.randn(1, 1, 32, 32).to(kind), MASKS["solid"][None, None]
    before = images.clone()
    assert impute.linear(images, missing).dtype == kind and torch.equal(images, before)
