import shutil
import struct

import numpy as np
import pytest
import torchvision
from conftest import REAL_CIFAR10, tiny_study

from roarlib.data import datasets
from roarlib.data.datasets import Split
from roarlib.study.params import InputError


def test_textures_load_with_masks_and_moments():
    found = datasets.load(tiny_study())
    assert found.shape == (3, 32, 32) and len(found.train) == 100 and len(found.test) == 50
    assert found.train.masks.shape == (100, 1, 32, 32) and len(found.classes) == 10
    pixels = found.train.images / 255
    assert np.allclose(found.mean, pixels.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(found.std, pixels.std((0, 2, 3)), atol=1e-6)
    assert not np.array_equal(found.train.images[:50], found.test.images)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(dataset="cifar"), "unknown dataset 'cifar'; did you mean cifar10?"),
        (dict(dataset="fashion-mnist", data_dir="/nowhere"), "put FashionMNIST/raw/ there"),
    ],
)
def test_bad_data_is_one_line(changes, says, monkeypatch):
    monkeypatch.setattr(
        torchvision.datasets.FashionMNIST, "download", lambda self: (_ for _ in ()).throw(RuntimeError("no network"))
    )
    with pytest.raises(InputError) as error:
        datasets.load(tiny_study(**changes))
    assert says in str(error.value) and "\n" not in str(error.value)


def with_splits(monkeypatch, train, test=None):
    monkeypatch.setitem(datasets.ARRAYS, "textures", lambda study: (train, test or train, ["a", "b"]))


def images(count):
    return np.zeros((count, 3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    "split, says",
    [
        (Split(images(5), np.zeros(5, np.int64)), "no image of class b"),
        (Split(images(0), np.zeros(0, np.int64)), "no images"),
    ],
)
def test_inconsistent_data_is_named(monkeypatch, split, says):
    with_splits(monkeypatch, split)
    with pytest.raises(InputError, match=says):
        datasets.load(tiny_study(train_images=0, test_images=0))


def test_more_images_than_there_are(monkeypatch):
    with_splits(monkeypatch, Split(images(5), np.array([0, 1, 0, 1, 0])))
    with pytest.raises(InputError, match="textures: 50 images asked for, but the data set has only 5"):
        datasets.load(tiny_study(train_images=50, test_images=0))


@pytest.fixture
def fashion(tmp_path):
    """A data folder with a FashionMNIST of 20 + 20 images in the official files' format."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels, labels = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 20, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 20) + labels.tobytes())
    return tmp_path


def test_fashion_mnist_from_its_files(fashion):
    found = datasets.load(tiny_study(dataset="fashion-mnist", data_dir=str(fashion), train_images=0, test_images=10))
    assert found.train.images.shape == (20, 1, 28, 28) and len(found.test) == 10
    assert found.classes[0] == "T-shirt/top" and found.train.labels.tolist() == [*range(10)] * 2
    direct = torchvision.datasets.FashionMNIST(fashion).data
    assert np.array_equal(found.train.images[:, 0], direct.numpy())


def test_the_environment_variable_names_the_folder(fashion, monkeypatch):
    monkeypatch.setenv("ROAR_DATA", str(fashion))
    assert len(datasets.load(tiny_study(dataset="fashion-mnist", train_images=0, test_images=0)).train) == 20


def test_a_truncated_file_is_an_error(fashion, monkeypatch):
    file = fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", lambda self: None)  # the file is there
    with pytest.raises(InputError, match="fashion-mnist: missing or damaged"):
        datasets.load(tiny_study(dataset="fashion-mnist", data_dir=str(fashion), train_images=0, test_images=0))


real = pytest.mark.skipif(
    not any((p / "cifar-10-batches-py").is_dir() for p in REAL_CIFAR10),
    reason="REAL DATA NOT TESTED: no cifar-10-batches-py/ under $ROAR_DATA or data/",
)


@real
def test_real_cifar10_matches_torchvision_and_damage_is_noticed(tmp_path, monkeypatch):
    folder = next(p for p in REAL_CIFAR10 if (p / "cifar-10-batches-py").is_dir())
    found = datasets.load(tiny_study(dataset="cifar10", data_dir=str(folder), train_images=0, test_images=0))
    assert found.train.images.shape == (50_000, 3, 32, 32) and found.test.images.shape == (10_000, 3, 32, 32)
    assert np.allclose(found.mean, [0.4914, 0.4822, 0.4465], atol=1e-4)  # the published channel means
    image, label = torchvision.datasets.CIFAR10(folder, train=False)[7]
    assert np.array_equal(found.test.images[7].transpose(1, 2, 0), np.asarray(image)) and found.test.labels[7] == label
    broken = tmp_path / "cifar-10-batches-py"
    shutil.copytree(folder / "cifar-10-batches-py", broken)
    (broken / "data_batch_3").chmod(0o644)
    with (broken / "data_batch_3").open("r+b") as file:
        file.truncate(1000)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda self: None)
    with pytest.raises(InputError, match="cifar10: missing or damaged"):
        datasets.load(tiny_study(dataset="cifar10", data_dir=str(tmp_path)))
