"""Folders of photographs: every layout, every kind of picture, prepared once, whole after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import tiny_study
from PIL import Image
from torchvision import transforms
from torchvision.datasets import Food101, ImageFolder
from torchvision.datasets.folder import pil_loader

from roarlib.data import datasets, photos, prepare
from roarlib.engine import train
from roarlib.engine.degrade import degraded
from roarlib.engine.rank import Explainer
from roarlib.grid import preflight
from roarlib.study.params import InputError

CLASSES = ["ant", "bee", "cat"]


def paint(path, size=(40, 30), mode="RGB", seed=0, **options):
    """A picture of smooth random colours, which JPEG hardly changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(path, **options)
    return image


def folder_of(root, train=6, test=3, name="test"):
    for part, count in (("train", train), (name, test)):
        for k in range(count):
            paint(root / part / CLASSES[k % 3] / f"{k}.jpg", seed=k + 100 * (part == "train"))
    return root


def study_of(root, dataset="folder:.", **more):
    values = dict(dataset=dataset, data_dir=str(root), train_images=0, test_images=0, image_size=16, resize=20)
    return tiny_study(**values | more)


@pytest.mark.parametrize("name", photos.TEST_FOLDERS)
def test_a_plain_folder_equals_torchvision(tmp_path, name):
    found = datasets.load(study_of(folder_of(tmp_path, name=name)))
    assert found.classes == CLASSES and found.shape == (3, 16, 16)
    view = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16), transforms.PILToTensor()])
    for split, part in (("train", "train"), ("test", name)):
        direct = ImageFolder(tmp_path / part, view)
        ours = found.split(split)
        assert len(ours) == len(direct) and ours.labels.tolist() == direct.targets
        assert all(np.array_equal(ours.images[k], direct[k][0].numpy()) for k in range(len(ours)))
    pixels = found.train.images / 255
    assert np.allclose(found.mean, pixels.mean((0, 2, 3))) and np.allclose(found.std, pixels.std((0, 2, 3)))


def test_the_default_view_is_the_papers(tmp_path):
    paint(tmp_path / "a.png", (500, 333))
    ours = photos.view(tmp_path / "a.png", 256, 224)
    steps = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    assert np.array_equal(ours, steps(Image.open(tmp_path / "a.png")).numpy())
    folder_of(tmp_path / "data")
    found = datasets.load(study_of(tmp_path / "data", image_size=0, resize=0))
    assert found.shape == (3, 224, 224)
    assert np.array_equal(found.train.images[0], photos.view(tmp_path / "data/train/ant/0.jpg", 256, 224))


def test_imagenet_is_train_and_val(tmp_path):
    folder_of(tmp_path / "imagenet", name="val")
    study = study_of(tmp_path, "imagenet")
    assert len(datasets.load(study).test) == 3
    assert datasets.notes(study)[0] == "train: 6 images (the paper's count: 1281167)"


def test_food101_follows_its_official_lists(tmp_path):
    base = tmp_path / "food-101"
    lists = {"train": {"pie": ["pie/1", "pie/2"], "cake": ["cake/1"]}, "test": {"pie": ["pie/3"], "cake": ["cake/2"]}}
    (base / "meta").mkdir(parents=True)
    for name, entries in lists.items():
        (base / "meta" / f"{name}.json").write_text(json.dumps(entries))
        (base / "meta" / f"{name}.txt").write_text("\n".join(e for part in entries.values() for e in part))
        for k, entry in enumerate(e for part in entries.values() for e in part):
            paint(base / "images" / f"{entry}.jpg", seed=k)
    (base / "meta" / "classes.txt").write_text("cake\npie\n")
    found = datasets.load(study_of(tmp_path, "food101"))
    assert found.classes == ["cake", "pie"]
    assert sorted(found.train.labels.tolist()) == sorted(Food101(tmp_path, "train")._labels) == [0, 1, 1]
    assert np.array_equal(found.test.images[0], photos.view(base / "images/cake/2.jpg", 20, 16))


def test_food101_as_a_pair_of_folders(tmp_path):
    folder_of(tmp_path / "food101")
    assert datasets.load(study_of(tmp_path, "food101")).classes == CLASSES


def test_birdsnap_as_released_with_missing_pictures(tmp_path):
    base = tmp_path / "birdsnap"
    base.mkdir()
    (base / "species.txt").write_text("id\tcommon\tscientific\tdir\n7\tBlue Jay\tC c\tBlue_Jay\n2\tCoot\tF a\tCoot\n")
    rows = [("Blue_Jay/1.jpg", 7), ("Blue_Jay/2.jpg", 7), ("Coot/1.jpg", 2), ("Coot/2.jpg", 2), ("Coot/3.jpg", 2)]
    (base / "images.txt").write_text("url\tmd5\tpath\tspecies_id\n" + "".join(f"u\tm\t{p}\t{s}\n" for p, s in rows))
    (base / "test_images.txt").write_text("path\nBlue_Jay/2.jpg\nCoot/3.jpg\n")
    for k, (name, _) in enumerate(rows):
        if name != "Coot/2.jpg":
            paint(base / "download/images" / name, seed=k)
    study = study_of(tmp_path, "birdsnap")
    found = datasets.load(study)
    assert found.classes == ["Blue Jay", "Coot"]
    assert found.train.labels.tolist() == [0, 1] and found.test.labels.tolist() == [0, 1]
    assert np.array_equal(found.test.images[1], photos.view(base / "download/images/Coot/3.jpg", 20, 16))
    said = datasets.notes(study)
    assert said[0] == "train: 2 images (the paper's count: 47386), 1 listed but not there" and "Coot/2.jpg" in said[1]


@pytest.mark.parametrize("dataset", ["imagenet", "food101", "birdsnap", "folder:birds"])
def test_absent_data_say_what_to_put_where(tmp_path, dataset):
    with pytest.raises(InputError, match="put ") as error:
        datasets.load(study_of(tmp_path, dataset))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_unlike_classes_and_empty_folders_are_named(tmp_path):
    folder_of(tmp_path)
    paint(tmp_path / "test" / "dog" / "1.jpg")
    with pytest.raises(InputError, match="differ in classes, for example dog"):
        datasets.load(study_of(tmp_path))
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(InputError, match="dog"):
        datasets.load(study_of(tmp_path))


@pytest.mark.parametrize("mode, suffix", [("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("1", "png")])
def test_every_colour_mode_comes_out_as_rgb(tmp_path, mode, suffix):
    image = paint(tmp_path / f"a.{suffix}", mode=mode)
    ours = photos.view(tmp_path / f"a.{suffix}", 30, 30).astype(int)
    steps = transforms.Compose([transforms.Resize(30), transforms.CenterCrop(30), transforms.PILToTensor()])
    theirs = steps(pil_loader(tmp_path / f"a.{suffix}")).numpy()
    assert np.array_equal(ours, theirs)
    before = np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:, :, 5:35].astype(int)
    assert np.abs(ours - before).mean() < 4  # and not inverted, as a CMYK JPEG easily is


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    assert np.array_equal(photos.view(tmp_path / "a.png", 8, 8), np.full((3, 8, 8), 100))


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    image = paint(tmp_path / "a.png", (24, 24))
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise to see it upright
    turned.save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(photos.view(tmp_path / "b.png", 24, 24), photos.view(tmp_path / "a.png", 24, 24))


def test_broken_pictures_are_left_out_and_named(tmp_path):
    folder_of(tmp_path, train=300)
    whole = (tmp_path / "train/ant/0.jpg").read_bytes()
    (tmp_path / "train/ant/0.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/bee/1.jpg").write_bytes(b"not a picture")
    study = study_of(tmp_path)
    found = datasets.load(study)
    assert len(found.train) == len(found.train.labels) == 298
    kept = sorted(p for p in (tmp_path / "train").rglob("*.jpg") if p.name not in ("0.jpg", "1.jpg"))
    assert all(np.array_equal(found.train.images[k], photos.view(kept[k], 20, 16)) for k in (0, 99, 150, 297))
    said = "\n".join(datasets.notes(study))
    assert "2 unreadable and left out" in said and "ant/0.jpg" in said and "bee/1.jpg" in said
    assert not prepare.damaged(datasets.prepared(study))


def test_many_broken_pictures_are_an_error(tmp_path):
    folder_of(tmp_path, train=30)
    for k in range(3):
        (tmp_path / f"train/{CLASSES[k]}/{k}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="train: 3 of 30 pictures cannot be read, .*ant/0.jpg"):
        datasets.load(study_of(tmp_path))


def test_a_part_takes_all_classes_alike(tmp_path):
    folder_of(tmp_path, train=30)
    found = datasets.load(study_of(tmp_path, train_images=9, test_images=3))
    assert np.bincount(found.train.labels).tolist() == [3, 3, 3] and found.test.labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="40 images asked for, but the data set has only 30"):
        datasets.load(study_of(tmp_path, train_images=40))


KILLED = """
import os, signal, sys
from roarlib.data import datasets, prepare
from roarlib.study import params
prepare.CHUNK = 8
def stop(done, total):
    if done >= 40:
        os.kill(os.getpid(), signal.SIGKILL)
prepare.time.monotonic = iter(range(0, 10**6, 10)).__next__
datasets.load(params.Study(**eval(sys.argv[1])), stop)
"""


def test_preparing_goes_on_after_a_kill_to_the_same_bytes(tmp_path, outputs, monkeypatch):
    folder_of(tmp_path / "photos", train=60)
    study = study_of(tmp_path / "photos")
    folder = datasets.prepared(study)
    died = subprocess.run([sys.executable, "-c", KILLED, repr(study.model_dump())], env=os.environ)
    assert died.returncode == -signal.SIGKILL and not (folder / "meta.json").exists()
    seen = json.loads((folder / "train.progress.json").read_text())["seen"]
    assert 0 < seen <= 40
    decoded, view = [], photos.view
    monkeypatch.setattr(photos, "view", lambda path, *sizes: (decoded.append(path), view(path, *sizes))[1])
    resumed = datasets.load(study)
    assert len(decoded) == 60 - seen + 3 and not list(folder.glob("*.progress.json"))
    monkeypatch.setenv("ROAR_OUTPUTS", str(outputs / "again"))
    fresh = datasets.load(study)
    assert np.array_equal(resumed.train.images, fresh.train.images) and np.array_equal(resumed.mean, fresh.mean)
    assert prepare.meta(folder) == prepare.meta(datasets.prepared(study))


def test_damage_is_noticed(tmp_path):
    study = study_of(folder_of(tmp_path))
    datasets.load(study)
    folder = datasets.prepared(study)
    assert prepare.damaged(folder) == []
    with (folder / "test-images.npy").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\0\1\2")
    assert prepare.damaged(folder) == ["test"]


def test_other_studies_share_what_is_prepared(tmp_path):
    folder_of(tmp_path)
    one, two = study_of(tmp_path), study_of(tmp_path, name="two", seeds=[5], batch_size=2)
    datasets.load(one)
    folder = datasets.prepared(one)
    at = (folder / "meta.json").stat().st_mtime_ns
    time.sleep(0.01)
    datasets.load(two)
    assert datasets.prepared(two) == folder and (folder / "meta.json").stat().st_mtime_ns == at
    assert datasets.prepared(study_of(tmp_path, image_size=12)) != folder


def test_resnet50_trains_and_is_explained_at_224_pixels(tmp_path):
    """The paper's model and view, a few steps of it: the loss falls, and all of GRAD's family ranks every pixel."""
    folder_of(tmp_path, train=24, test=3)
    names = ["grad", "grad-sgsq", "gb"]
    study = study_of(tmp_path, image_size=224, resize=256, model="resnet50", batch_size=12, micro_batch=6, epochs=2,
                     augment="area-flip", learning_rate=0.001, drop_epochs=[1], estimators=names)  # fmt: skip
    found, losses = datasets.load(study), []
    model = train.train(study, found, 0, progress=losses.append)
    assert len(losses) == 2 and all(0 < loss < 2 for loss in losses)
    predictions = {"test": train.predict(study, model, degraded(study, found, "test"))}
    scores = Explainer(study, found, model, predictions, batch=4).scores("test", slice(0, 2), names)
    for name in names:
        assert scores[name].shape == (2, 3, 224, 224) and scores[name].isfinite().all() and scores[name].std() > 0
    assert not (scores["gb"] == scores["grad"]).all()


def test_work_is_not_gone_on_with_for_other_pictures(tmp_path, monkeypatch):
    """Interrupted, then a picture is deleted: labels must not shift against images."""
    folder_of(tmp_path, train=40, test=9)
    study = study_of(tmp_path)
    monkeypatch.setattr(prepare, "CHUNK", 4)
    monkeypatch.setattr(prepare.time, "monotonic", iter(range(0, 10**6, 10)).__next__)

    def stop(done, total):
        if done >= 45:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.load(study, stop)
    assert (datasets.prepared(study) / "test.progress.json").is_file()
    (tmp_path / "test/ant/0.jpg").unlink()
    found = datasets.load(study)
    kept = sorted(p for p in (tmp_path / "test").rglob("*.jpg"))
    assert len(found.test) == len(kept) == 8
    for k, path in enumerate(kept):
        assert np.array_equal(found.test.images[k], photos.view(path, 20, 16))
        assert CLASSES[found.test.labels[k]] == path.parent.name


def test_other_pictures_than_those_prepared_are_noticed(tmp_path):
    root, study = folder_of(tmp_path), study_of(tmp_path)
    datasets.load(study)
    assert datasets.changed(study) == []
    paint(root / "test" / "bee" / "new.jpg", seed=7)
    assert datasets.changed(study) == ["test"]
    for read in (preflight.check, datasets.current):  # the latter for `roar images`
        with pytest.raises(InputError, match="the test pictures are not those that were prepared"):
            read(study)
    root.joinpath("test").rename(root / "elsewhere")  # prepared arrays are enough
    assert datasets.changed(study) == []


def test_more_classes_than_pictures_that_are_tried_first(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "TRIED", 2)
    folder_of(tmp_path)
    found, _ = preflight.check(study_of(tmp_path), whole=False)
    assert found.classes == CLASSES and len(found.train) == 3 and len(found.test) == 2


def test_mended_pictures_are_looked_at_again(tmp_path):
    folder_of(tmp_path, train=30)
    broken = [tmp_path / f"train/{CLASSES[k]}/{k}.jpg" for k in range(3)]
    whole = [file.read_bytes() for file in broken]
    for file in broken:
        file.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        datasets.load(study_of(tmp_path))
    for file, content in zip(broken, whole, strict=True):
        file.write_bytes(content)
    assert len(datasets.load(study_of(tmp_path)).train) == 30


def test_a_failing_disk_is_not_taken_for_a_broken_picture(tmp_path, monkeypatch):
    folder_of(tmp_path)
    monkeypatch.setattr(photos, "view", lambda *a: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(InputError, match="Input/output error"):
        datasets.load(study_of(tmp_path))
