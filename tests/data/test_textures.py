"""Textures: the disc alone tells the class, and the same seed gives the same bytes."""

import numpy as np
import pytest

from roarlib.data import textures

N, SIZE = 3000, 32
CHANCE_ERROR = 4 * np.sqrt(0.1 * 0.9 / (N // 2))  # four standard errors of an accuracy at chance


@pytest.fixture(scope="module")
def drawn():
    return textures.make(N, seed=7)


def accuracy(features, labels):
    """Test accuracy of ridge regression onto one-hot labels, fitted on the first half of the images."""
    half = len(labels) // 2
    features = features.reshape(len(labels), -1).astype(float)
    features = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-9)
    train, test = features[:half], features[half:]
    ridge = train.T @ train + half * np.eye(train.shape[1])
    weights = np.linalg.solve(ridge, train.T @ (np.eye(10)[labels[:half]] - 0.1))
    return ((test @ weights).argmax(1) == labels[half:]).mean()


def spectrum(images):
    """Power of the spatial frequencies of lightness and of red against green, wherever the disc lies."""
    views = np.stack([images.mean(1), images[:, 0].astype(float) - images[:, 1]], axis=1)
    return np.log(abs(np.fft.rfft2(views - views.mean((2, 3), keepdims=True))) + 1)


def test_shapes_types_and_balance(drawn):
    images, labels, masks = drawn
    assert images.shape == (N, 3, SIZE, SIZE) and images.dtype == np.uint8
    assert labels.shape == (N,) and labels.dtype == np.int64
    assert masks.shape == (N, 1, SIZE, SIZE) and masks.dtype == bool
    assert len(textures.CLASSES) == len(set(textures.CLASSES)) == 10
    assert (np.sort(labels.reshape(-1, 10)) == np.arange(10)).all()  # all ten classes in every ten images
    assert len({tuple(ten) for ten in labels.reshape(-1, 10)}) > 290  # in random order


def test_same_seed_same_bytes_and_subsets_agree(drawn):
    for whole, part in zip(drawn, textures.make(130, seed=7), strict=True):
        assert part.tobytes() == whole[:130].tobytes()
    assert not np.array_equal(textures.make(10, seed=8)[0], drawn[0][:10])


@pytest.mark.parametrize("size", [24, 32, 64])
def test_every_disc_is_whole_and_of_one_size(size):
    masks = textures.make(200, seed=1, size=size)[2][:, 0]
    areas = masks.sum((1, 2))
    assert (areas == areas[0]).all() and abs(areas[0] / size**2 - textures.DISC_SHARE) < 0.01
    boxes = [mask[np.ix_(mask.any(1), mask.any(0))] for mask in masks]
    assert all(np.array_equal(box, boxes[0]) for box in boxes)  # the same pixels wherever the disc lies
    assert np.array_equal(boxes[0], boxes[0][::-1]) and np.array_equal(boxes[0], boxes[0].T)


def test_background_and_outline_do_not_tell_the_class(drawn):
    images, labels, masks = drawn
    for filled in (np.where(masks, 127, images), np.where(masks, 127, np.full_like(images, 255))):
        assert abs(accuracy(filled[:, :, ::2, ::2], labels) - 0.1) < CHANCE_ERROR
        assert abs(accuracy(spectrum(filled), labels) - 0.1) < CHANCE_ERROR


def test_place_of_the_disc_is_independent_of_the_class(drawn):
    _, labels, masks = drawn
    rows, columns = masks[:, 0].any(2).argmax(1), masks[:, 0].any(1).argmax(1)
    for place in (rows, columns):
        means = np.array([place[labels == label].mean() for label in range(10)])
        assert abs(means - place.mean()).max() < 4 * place.std() / np.sqrt(N / 10)


def test_mean_colour_and_contrast_of_the_disc_do_not_tell_the_class(drawn):
    images, labels, masks = drawn
    pixels = images.transpose(0, 2, 3, 1)[masks[:, 0]].reshape(N, -1, 3).astype(float)  # (N, area, 3)
    contrast = np.sqrt(pixels.var(1).mean(1, keepdims=True))  # over the three channels together
    moments = np.concatenate([pixels.mean(1), contrast], axis=1)
    assert abs(accuracy(np.concatenate([moments, moments**2], axis=1), labels) - 0.1) < CHANCE_ERROR


def test_the_disc_tells_the_class(drawn):
    images, labels, masks = drawn
    assert accuracy(spectrum(np.where(masks, images, 127)), labels) > 0.5


def test_hardly_anything_is_clipped(drawn):
    images, _, masks = drawn
    assert np.isin(images[np.broadcast_to(masks, images.shape)], (0, 255)).mean() < 0.005


@pytest.mark.parametrize("n, seed, size", [(0, 0, 32), (10, -1, 32), (10, 0, 16)])
def test_bad_values_are_errors(n, seed, size):
    with pytest.raises(ValueError, match="allowed are"):
        textures.make(n, seed, size)


@pytest.mark.parametrize("kind", textures.KINDS)
def test_every_kind_is_seeded_balanced_and_marks_its_object(kind):
    images, labels, masks = textures.make(300, 3, 32, kind)
    again = textures.make(100, 3, 32, kind)
    assert all(np.array_equal(one[:100], other) for one, other in zip((images, labels, masks), again, strict=True))
    assert (np.bincount(labels) == 30).all() and images.shape == (300, 3, 32, 32)
    share = masks.mean((1, 2, 3))
    assert np.allclose(share, 0.075 if kind == "distractor" else 0.15, atol=0.006)


def test_the_outline_alone_tells_its_class():
    """The direction of the mask's longer axis, by its second moments, is 18 degrees times the class."""
    _, labels, masks = textures.make(100, 0, 32, "outline")
    y, x = np.mgrid[:32, :32]
    for label, mask in zip(labels, masks[:, 0], strict=True):
        (a, b), (_, d) = np.cov(x[mask], -y[mask])
        angle = np.degrees(0.5 * np.arctan2(2 * b, a - d)) % 180
        assert min(abs(angle - 18 * label), 180 - abs(angle - 18 * label)) < 6


def test_the_second_object_says_the_same_another_class_or_nothing(monkeypatch):
    seen, real = [], textures._object

    def spy(rng, labels, *rest):
        seen.append(labels)
        return real(rng, labels, *rest)

    monkeypatch.setattr(textures, "_object", spy)
    for kind in ("twice", "against", "distractor"):
        seen.clear()
        _, labels, _ = textures.make(2000, 1, 32, kind)
        second = np.concatenate(seen[1::2])
        assert np.array_equal(np.concatenate(seen[::2]), labels)
        same = (second == labels).mean()
        if kind == "distractor":  # independent of the class: a tenth is the same, and half has the same tint
            assert abs(same - 0.1) < 0.03 and abs((second // 5 == labels // 5).mean() - 0.5) < 0.05
        else:
            assert same == (kind == "twice")
