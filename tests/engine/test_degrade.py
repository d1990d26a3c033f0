"""What is shown of an image is what models see of it."""

import numpy as np
import pytest
import torch
from conftest import tiny_study

from roarlib.data import datasets
from roarlib.engine.degrade import as_seen, degraded, normalise


def test_normalised_images_have_mean_zero_and_the_mean_colour_is_zero():
    found = datasets.load(tiny_study())
    mean, std = torch.from_numpy(found.mean), torch.from_numpy(found.std)
    x = normalise(torch.from_numpy(found.train.images), mean, std)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_one_image_by_hand():
    pixels = np.full((2, 1, 2), 200, np.uint8)  # (C, H, W)
    ranking = np.array([[[0, 99]], [[49, 50]]], np.uint8)
    fill = (10.4, 20.6)
    assert as_seen(pixels, ranking, 50, "remove", fill).tolist() == [[[10, 200]], [[21, 200]]]
    assert as_seen(pixels, ranking, 50, "keep", fill).tolist() == [[[200, 10]], [[200, 21]]]
    assert as_seen(pixels, ranking[:1], 100, "remove", fill).tolist() == [[[10, 10]], [[21, 21]]]
    assert as_seen(pixels, ranking[:1], 50, "mask", fill).tolist() == [[[255, 0]], [[255, 0]]]
    pixels[:, 0, 1] = 100  # the one neighbour of what is removed
    assert as_seen(pixels, ranking[:1], 50, "remove-imputed", fill).tolist() == [[[100, 100]], [[100, 100]]]
    assert as_seen(pixels, ranking[:1], 100, "remove-imputed", fill).tolist() == [[[10, 10]], [[21, 21]]]


@pytest.mark.parametrize("mode", ["remove", "keep", "remove-imputed", "keep-imputed", "mask"])
def test_what_is_shown_is_what_models_see(mode):
    study = tiny_study(imputation_noise=0)
    prepared = datasets.load(study)
    ranking = np.random.default_rng(0).integers(0, 100, (len(prepared.test.images), 1, *prepared.shape[1:]), np.uint8)
    images, _ = degraded(study, prepared, "test", ranking, 40, mode).batch(slice(0, 5))
    if mode == "mask":
        wanted = (images.numpy() + 1) * 127.5
    else:
        wanted = 255 * (images.numpy() * prepared.std[:, None, None] + prepared.mean[:, None, None])
    for k in range(5):
        made = as_seen(prepared.test.images[k], ranking[k], 40, mode, 255 * prepared.mean)
        assert np.abs(made - wanted[k]).max() <= 1.01  # 8 bits, rounded once or twice
