"""Folders as people have them: clutter, odd names, other kinds of files; and when prepared pictures have changed."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_photos import CLASSES, folder_of, paint, study_of

from roarlib.data import datasets, photos, prepare
from roarlib.study.params import InputError


def meta_of(study):
    return prepare.meta(datasets.prepared(study))


def test_clutter_is_no_picture_and_no_class(tmp_path):
    folder_of(tmp_path / "clean")
    folder_of(tmp_path / "used")
    train = tmp_path / "used" / "train"
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.ini"):
        (train / "ant" / name).write_bytes(b"no picture")
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        paint(train / "ant" / folder / "0.jpg")
        paint(train / "bee" / "more" / folder / "deep" / "0.jpg")
        paint(train / folder / "0.jpg")
        paint(tmp_path / "used" / "test" / folder / "0.jpg")
    (train / "notes.txt").write_text("beside the classes")
    clean, used = (datasets.load(study_of(tmp_path / name)) for name in ("clean", "used"))
    assert used.classes == CLASSES and np.array_equal(used.train.images, clean.train.images)
    assert np.array_equal(used.test.labels, clean.test.labels)
    assert datasets.notes(study_of(tmp_path / "used")) == ["train: 6 images", "test: 3 images"]


def test_test_images_that_are_train_images_too_are_counted(tmp_path):
    folder_of(tmp_path)
    for name in ("1.jpg", "4.jpg"):
        shutil.copy(tmp_path / "train/bee" / name, tmp_path / "test/ant" / f"copy-{name}")
    study = study_of(tmp_path)
    datasets.load(study)
    said = "  2 test images are among the train images as well"
    assert datasets.notes(study) == ["train: 6 images", "test: 5 images", said]


def test_pictures_of_two_classes_and_of_none_are_counted(tmp_path):
    folder_of(tmp_path)
    shutil.copy(tmp_path / "train/bee/1.jpg", tmp_path / "train/ant/copy.jpg")
    shutil.copy(tmp_path / "train/bee/1.jpg", tmp_path / "train/loose.jpg")
    study = study_of(tmp_path)
    datasets.load(study)
    assert datasets.notes(study) == [
        "train: 7 images",
        "  1 file left out: pictures in no class's folder (1)",
        "test: 3 images",
        "  2 train images are in another class as well",
    ]


def test_a_link_back_into_a_class_repeats_nothing(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train/ant/all").symlink_to(tmp_path / "train/ant", target_is_directory=True)
    (tmp_path / "train/bee/more").mkdir()
    (tmp_path / "train/bee/more/back").symlink_to("..", target_is_directory=True)
    assert len(datasets.load(study_of(tmp_path)).train) == 6


def test_a_hidden_data_folder_is_the_users_choice(tmp_path):
    folder_of(tmp_path / ".data" / "@eaDir")
    assert len(datasets.load(study_of(tmp_path / ".data", "folder:@eaDir")).train) == 6


def test_files_of_other_kinds_are_counted_by_kind(tmp_path):
    folder_of(tmp_path)
    for name in ("ant/1.heic", "bee/2.HEIC", "bee/list.txt", "cat/README", "cat/scan.pdf", "cat/table.h5"):
        (tmp_path / "train" / name).write_bytes(b"something else")
    (tmp_path / "test/ant/a.eps").write_bytes(b"something else")
    study = study_of(tmp_path)
    assert len(datasets.load(study).train) == 6
    assert datasets.notes(study) == [
        "train: 6 images",
        "  6 files left out: .heic (2), .txt (1), no extension (1), .pdf (1), .h5 (1)",
        "test: 3 images",
        "  1 file left out: .eps (1)",
    ]


def test_a_class_of_other_kinds_alone_is_named(tmp_path):
    folder_of(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "dog").mkdir()
        (tmp_path / part / "dog" / "1.heic").write_bytes(b"something else")
    with pytest.raises(InputError, match="train/dog: no picture of a kind that can be read"):
        datasets.load(study_of(tmp_path))


def test_the_order_is_torchvisions(tmp_path):
    """As before it was read by our own function: names of folders and files that sort in unlike ways."""
    from torchvision.datasets import ImageFolder

    for k, name in enumerate(("b/1", "b/c/1", "b-c/1", "b/10", "b/2", "B/x", "a b/1", "b/c.d/0")):
        paint(tmp_path / "train" / f"{name}.png", seed=k)
    ours, _, classes = photos._folder(shutil.copytree(tmp_path / "train", tmp_path / "test").parent, "")
    theirs = ImageFolder(tmp_path / "train")
    assert classes == theirs.classes and list(zip(map(str, ours[0]), ours[1], strict=True)) == theirs.samples


@pytest.mark.parametrize("name", [b"caf\xe9", b"na\xefve \xff", b"\xfcber.alles"])
def test_names_that_are_no_utf8_work(tmp_path, name, capsys):
    root = folder_of(tmp_path / "data", train=300)
    shown = name.decode("utf-8", "backslashreplace")
    for part in ("train", "test"):
        folder = os.fsencode(root / part)
        os.rename(os.path.join(folder, b"ant"), os.path.join(folder, name))
    bee = os.fsencode(root / "train" / "bee")
    os.rename(os.path.join(bee, b"1.jpg"), os.path.join(bee, name + b".jpg"))
    os.rename(os.path.join(bee, b"4.jpg"), os.path.join(bee, b"4." + name))
    with open(os.path.join(bee, name + b"-broken.jpg"), "wb") as file:
        file.write(b"no picture")
    study = study_of(root)
    found = datasets.load(study)
    assert shown in found.classes and len(found.train) == 299
    said = "\n".join(datasets.notes(study))
    said.encode()  # can be printed and stored anywhere
    assert f"{shown}-broken.jpg" in said and "1 file left out" in said
    assert datasets.changed(study) == [] == datasets.changed(study, thorough=True)
    with open(os.path.join(os.fsencode(root / "train"), name, b"float.tif"), "wb") as file:
        Image.fromarray(np.ones((4, 4), np.float32)).save(file, "TIFF")
    assert datasets.changed(study) == ["train"]
    with pytest.raises(InputError) as error:
        datasets.load(study_of(root, name="two", resize=21))
    assert shown in str(error.value) and str(error.value).encode()


def test_spaces_and_unicode_in_paths(tmp_path):
    root = tmp_path / "my data ü" / "фото 写真 100%"
    folder_of(root)
    for part in ("train", "test"):
        (root / part / "ant").rename(root / part / "Ameise (groß) 蟻")
    study = study_of(root.parent, f"folder:{root.name}")
    found = datasets.load(study)
    assert "Ameise (groß) 蟻" in found.classes and len(found.train) == 6
    assert datasets.changed(study, thorough=True) == [] == prepare.damaged(datasets.prepared(study))


def test_a_class_may_have_a_single_picture(tmp_path):
    folder_of(tmp_path, train=30)
    for file in sorted((tmp_path / "train" / "cat").iterdir())[1:]:
        file.unlink()
    assert np.bincount(datasets.load(study_of(tmp_path)).train.labels).tolist() == [10, 10, 1]
    few = datasets.load(study_of(tmp_path, train_images=7)).train.labels
    assert np.bincount(few).tolist() == [3, 3, 1]


@pytest.mark.parametrize("layout", ["val", "valid", "validation", "imagenet"])
def test_a_class_added_later_is_noticed_in_every_layout(tmp_path, layout):
    root = folder_of(tmp_path / "imagenet")
    study = study_of(root)
    if layout == "imagenet":
        study = study_of(root, dataset="imagenet", data_dir=str(tmp_path))
    else:
        (root / "test").rename(root / layout)
    datasets.load(study)
    assert datasets.changed(study) == []
    paint(root / "train" / "cow" / "0.jpg")
    with pytest.raises(InputError, match="differ in classes, for example cow"):
        datasets.changed(study)
    shutil.rmtree(root)
    assert datasets.changed(study) == []  # gone: the prepared pictures are enough


@pytest.fixture
def bitmaps(tmp_path):
    """A study of BMP files, whose sizes do not depend on what is on them, prepared; and one of them."""
    for part in ("train", "test"):
        for k, name in enumerate(CLASSES):
            paint(tmp_path / part / name / "0.bmp", seed=k)
    study = study_of(tmp_path)
    datasets.load(study)
    return study, tmp_path / "test" / "bee" / "0.bmp"


def later(path, seconds=10):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


def test_a_picture_rewritten_at_the_same_size_is_noticed(bitmaps):
    study, file = bitmaps
    size = file.stat().st_size
    assert datasets.changed(study) == []
    paint(file, seed=77)
    later(file)
    assert file.stat().st_size == size and datasets.changed(study) == ["test"]
    assert datasets.changed(study) == ["test"]  # and is so until it is prepared again
    paint(file, seed=1)  # as it was
    assert datasets.changed(study) == []


def test_a_change_that_keeps_the_time_is_noticed_by_a_thorough_look(bitmaps):
    study, file = bitmaps
    stat = file.stat()
    paint(file, seed=77)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert datasets.changed(study) == []
    told = []
    assert datasets.changed(study, thorough=True, progress=lambda *done: told.append(done)) == ["test"]
    assert told == [(3, 3), (3, 3)]
    splits, _ = datasets._sources(study)
    assert prepare.differs(datasets.prepared(study), splits) == ["test"]


def test_touched_pictures_are_decoded_once_and_stay(bitmaps, monkeypatch):
    study, file = bitmaps
    decoded, view = [], photos.view
    monkeypatch.setattr(photos, "view", lambda path, *sizes: (decoded.append(path), view(path, *sizes))[1])
    assert datasets.changed(study) == [] and not decoded
    before = meta_of(study)
    later(file)
    assert datasets.changed(study) == [] and len(decoded) == 3  # of the test split alone
    assert datasets.changed(study) == [] and len(decoded) == 3  # the new time is known by now
    after = meta_of(study)
    assert after["test"].pop("times") != before["test"].pop("times") and after == before


def test_a_renamed_class_and_a_renamed_picture_are_changes(bitmaps):
    study, file = bitmaps
    file.rename(file.with_name("1.bmp"))
    assert datasets.changed(study) == ["test"]
    file.with_name("1.bmp").rename(file)
    for part in ("train", "test"):
        folder = file.parents[2] / part
        (folder / "cat").rename(folder / "cow")
    assert datasets.changed(study) == ["train", "test"]


def test_every_spelling_of_a_folder_shares_one_prepared_copy(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "data" / "photos")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    studies = [
        study_of(tmp_path / "data", "folder:photos"),
        study_of(tmp_path / "data", f"folder:{root}"),
        study_of("/nowhere", f"folder:{root}/"),
        study_of("data", "folder:./photos"),
        study_of(tmp_path, "folder:~/data/photos"),
        study_of(tmp_path / "data", "folder:../link"),
    ]
    datasets.load(studies[0])
    before = meta_of(studies[0])
    for study in studies:
        assert datasets.prepared(study) == datasets.prepared(studies[0])
        assert datasets.changed(study) == []
    for part in ("train", "test"):
        assert meta_of(studies[-1])[part]["times"] == before[part]["times"]
    folder_of(tmp_path / "data" / "others")
    assert datasets.prepared(study_of(tmp_path / "data", "folder:others")) != datasets.prepared(studies[0])
