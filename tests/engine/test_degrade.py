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
@pytest.mark.parametrize("fill", ["train-mean", "image-mean"])
def test_what_is_shown_is_what_models_see(mode, fill):
    study = tiny_study(imputation_noise=0, fill=fill)
    prepared = datasets.load(study)
    ranking = np.random.default_rng(0).integers(0, 100, (len(prepared.test.images), 1, *prepared.shape[1:]), np.uint8)
    images, _ = degraded(study, prepared, "test", ranking, 40, mode).batch(slice(0, 5))
    if mode == "mask":
        wanted = (images.numpy() + 1) * 127.5
    else:
        wanted = 255 * (images.numpy() * prepared.std[:, None, None] + prepared.mean[:, None, None])
    for k in range(5):
        pixels = prepared.test.images[k]
        filled = pixels.mean((1, 2)) if fill == "image-mean" else 255 * prepared.mean
        np.testing.assert_allclose(filled, prepared.shown_fill(pixels))
        made = as_seen(pixels, ranking[k], 40, mode, filled)
        assert np.abs(made - wanted[k]).max() <= 1.01  # 8 bits, rounded once or twice


def test_holes_of_the_image_mean_whatever_scales_the_images():
    found = []
    for scale in ("train", "0.5"):
        study = tiny_study(fill="image-mean", normalise=scale)
        data = datasets.load(study)
        ranking = np.zeros((len(data.train), 1, *data.shape[1:]), np.uint8)  # all of it goes
        images, _ = degraded(study, data, "train", ranking, 50).batch(slice(0, 4))
        mean, std = data.scale
        found.append(255 * (images.numpy() * std[:, None, None] + mean[:, None, None]))
        wanted = np.broadcast_to(data.train.images[:4].mean((2, 3), keepdims=True), images.shape)
        np.testing.assert_allclose(found[-1], wanted, atol=0.01)
