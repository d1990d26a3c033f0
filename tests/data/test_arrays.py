"""Arrays of a user's: what fits is taken as it is, what does not is one line."""

import sys

import numpy as np
import pytest
from conftest import tiny_study

from roarlib.data import datasets
from roarlib.engine import degrade
from roarlib.grid import preflight, rehearsal
from roarlib.study import params, results
from roarlib.study.params import InputError
from roarlib.views import sheets


def arrays(shape=(28, 28), train=40, test=20, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for part, count in (("train", train), ("test", test)):
        made[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)  # as MedMNIST has them
    return made


def study_of(folder, **changes):
    values = dict(dataset="npz:mine.npz", files_dir=str(folder), train_images=0, test_images=0)
    return tiny_study(**values | changes)


@pytest.mark.parametrize(
    "shape, stored",
    [((28, 28), (1, 28, 28)), ((28, 28, 1), (1, 28, 28)), ((20, 24, 3), (3, 20, 24)), ((3, 20, 24),) * 2],
)
def test_medmnists_layout_and_torchs(tmp_path, outputs, shape, stored):
    made = arrays(shape)
    np.savez(tmp_path / "mine.npz", **made, val_images=np.zeros(3))
    found = datasets.load(study_of(tmp_path))
    images = made["train_images"]
    wanted = images.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else images.reshape(-1, *stored)
    assert found.shape == stored and (found.train.images == wanted).all()
    assert found.test.labels.tolist() == [0, 1, 2, 3] * 5 and found.classes == ["0", "1", "2", "3"]
    assert np.allclose(found.mean, wanted.mean((0, 2, 3)) / 255, atol=1e-6)


def test_the_first_images_and_names_of_classes(tmp_path, outputs):
    np.savez(tmp_path / "mine.npz", **arrays(), classes=np.array(["a", "b", "c", "d"]))
    found = datasets.load(study_of(tmp_path, train_images=8, test_images=5))
    assert len(found.train) == 8 and len(found.test) == 5 and found.classes == ["a", "b", "c", "d"]


def changed(**more):
    return lambda made: made | more


FAULTS = {
    "lacks": (lambda made: {"train_images": made["train_images"]}, "has no train_labels, test_images, test_labels"),
    "floats": (changed(train_images=np.zeros((40, 28, 28))), "train_images are float64, not uint8 .*scale values in 0"),
    "sixteen bits": (changed(test_images=np.zeros((20, 28, 28), np.uint16)), "test_images are uint16, not uint8"),
    "shape": (changed(train_images=np.zeros((40, 28, 28, 4), np.uint8)), r"shape \(40, 28, 28, 4\); it must be"),
    "either": (changed(train_images=np.zeros((40, 3, 28, 3), np.uint8)), r"shape \(40, 3, 28, 3\); it must be"),
    "several labels": (changed(train_labels=np.zeros((40, 14), int)), r"train_labels are int64 of shape \(40, 14\)"),
    "float labels": (changed(train_labels=np.zeros(40)), "train_labels are float64"),
    "counts": (changed(train_labels=np.zeros(39, int)), "40 images but 39 labels"),
    "from one": (changed(train_labels=np.arange(40) % 4 + 1), "train_labels must be 0 to K - 1.* for 0"),
    "negative": (changed(test_labels=np.full(20, -1)), "test_labels are .* from 0 on"),
    "sizes": (changed(test_images=np.zeros((20, 14, 14), np.uint8)), "train images are .*28, 28.* and test .*14, 14"),
    "a gap": (changed(train_labels=np.arange(40) % 4 * 2), "train_labels must be 0 to K - 1 .* not so for 1"),
    "only tested": (changed(test_labels=np.full(20, 5)), "with every class present; not so for 4"),
    "number of classes": (changed(classes=np.array(2)), "classes has 1 names, and there are 4 classes"),
    "pickle": (changed(train_labels=np.array([{}] * 40)), "cannot be read as .npz without pickle"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(tmp_path, outputs, fault):
    change, says = FAULTS[fault]
    np.savez(tmp_path / "mine.npz", **change(arrays()))
    with pytest.raises(InputError, match=says) as told:
        datasets.load(study_of(tmp_path))
    assert "\n" not in str(told.value)


def test_files_that_are_none(tmp_path, outputs):
    with pytest.raises(InputError, match="npz:mine.npz: there is no mine.npz in "):
        datasets.load(study_of(tmp_path))
    (tmp_path / "mine.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be read as .npz"):
        datasets.load(study_of(tmp_path))
    with pytest.raises(InputError, match="image_size and resize are for photographs"):
        datasets.load(study_of(tmp_path, image_size=32, resize=32))


def test_a_file_that_changed_is_noticed(tmp_path, outputs):
    np.savez(tmp_path / "mine.npz", **arrays())
    study = study_of(tmp_path)
    datasets.load(study)
    assert datasets.changed(study) == []
    np.savez(tmp_path / "mine.npz", **arrays())  # the same, written anew
    assert datasets.changed(study) == []
    np.savez(tmp_path / "mine.npz", **arrays(seed=1))
    assert datasets.changed(study) == ["train", "test"]


def test_mended_names_of_classes_arrive(tmp_path, outputs):
    for names in ("dabc", "abcd"):
        np.savez(tmp_path / "mine.npz", **arrays(), classes=np.array(list(names)))
        assert datasets.current(study_of(tmp_path)).classes == list(names)
        assert datasets.load(study_of(tmp_path)).classes == list(names)


CODE = """
import numpy as np

def load():
    images = np.arange(60 * 16 * 16).reshape(60, 16, 16) % {period}
    images = images.astype(np.uint8)
    return dict(train_images=images[:40], train_labels=np.arange(40) % 4,
                test_images=images[40:], test_labels=np.arange(20) % 4)

def nothing():
    return None

def fails():
    return np.load("no such file")
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(period=251):
        (tmp_path / "mine_arrays.py").write_text(CODE.replace("{period}", str(period)))
        sys.modules.pop("mine_arrays", None)

    write()
    yield write
    sys.modules.pop("mine_arrays", None)


def test_a_function_of_the_users_gives_the_same_and_is_watched(write, outputs):
    study = tiny_study(dataset="mine_arrays:load", train_images=0, test_images=0)
    found = datasets.load(study)
    assert found.shape == (1, 16, 16) and len(found.test) == 20 and found.train.images[0, 0, 0, 5] == 5
    assert datasets.changed(study) == []
    write(7)
    assert datasets.changed(study) == ["train", "test"]


@pytest.mark.parametrize(
    "name, says",
    [
        ("mine_arrays:nothing", "returns a NoneType; it must be a dict"),
        ("mine_arrays:fails", r"mine_arrays:fails fails: mine_arrays.py:14: FileNotFoundError"),
        ("mine_arrays:lode", "mine_arrays has no lode"),
        ("no_such_module:load", "cannot import no_such_module"),
        ("npy:x.npy", "unknown dataset 'npy:x.npy'; did you mean npz:"),
    ],
)
def test_functions_that_are_none(write, outputs, name, says):
    with pytest.raises(InputError, match=says):
        datasets.load(tiny_study(dataset=name, train_images=0, test_images=0))


def test_a_file_beside_the_yaml_is_found(tmp_path, outputs):
    np.savez(tmp_path / "mine.npz", **arrays())
    (tmp_path / "mine.yaml").write_text('dataset: "npz:mine.npz"\nestimators: [random]\n')
    study = params.load(tmp_path / "mine.yaml")
    assert study.files_dir == str(tmp_path) and len(datasets.load(study).train) == 40


def test_grey_images_go_through_every_estimator_unit_and_mode_as_one_channel(tmp_path, outputs):
    made = arrays((16, 16))
    np.savez(tmp_path / "mine.npz", **made)
    every = [
        "paper",
        "grad-blur",
        "grad-recursive",
        "gradcam",
        "hirescam",
        "rise",
        "occlusion",
        "lrp",
        "captum:DeepLift",
    ]
    more = dict(units=["pixel", "value"], modes=["remove", "keep", "mask"], scored_modes=["remove-imputed"])
    study = study_of(tmp_path, estimators=every, batch_size=8, estimator_options={"rise": {"samples": 4}}, **more)
    data = datasets.load(study)
    rehearsal.rehearse(study, data)  # everything at once, as a run would
    images = data.test.images[:1]
    ranking = np.arange(256).reshape(1, 16, 16) * 100 // 256
    shown = sheets.degraded_sheet(images[0], {"grad": ranking}, [50], fill=255 * data.mean)
    assert shown is not None and degrade.as_seen(images[0], ranking, 50, "remove", 255 * data.mean).shape == (1, 16, 16)


def test_a_damaged_archive_is_one_line(tmp_path, outputs):
    np.savez(tmp_path / "mine.npz", **arrays())
    whole = (tmp_path / "mine.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        (tmp_path / "mine.npz").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as .npz"):
            datasets.load(study_of(tmp_path))


def test_results_of_other_data_under_one_name_are_an_error(tmp_path, outputs):
    """Two folders with a study and a file of the same names, and one folder of results."""
    studies = []
    for seed, place in enumerate(("one", "two")):
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "mine.npz", **arrays(seed=seed))
        studies.append(study_of(tmp_path / place))
    one, two = map(datasets.load, studies)
    assert one.digest != two.digest and len(one.digest) == 16
    results.write(studies[0], results.Key("retrain", seed=0), 0.5, **results.context(studies[0], one))
    assert preflight.check(studies[0])[0].digest == one.digest
    with pytest.raises(InputError, match="results of other images or labels than npz:mine.npz has now"):
        preflight.check(studies[1])


def test_a_part_of_arrays_is_taken_evenly_from_all_classes(tmp_path, outputs):
    made = arrays(train=40, test=20)
    for part in ("train", "test"):
        order = np.argsort(made[f"{part}_labels"][:, 0], kind="stable")
        made |= {f"{part}_{what}": made[f"{part}_{what}"][order] for what in ("images", "labels")}
    np.savez(tmp_path / "mine.npz", **made)
    found = datasets.load(study_of(tmp_path, train_images=22, test_images=8))
    assert (
        np.bincount(found.train.labels).tolist() == [6, 6, 5, 5] and np.bincount(found.test.labels).tolist() == [2] * 4
    )
    assert np.array_equal(found.test.images[:2], made["test_images"][:2, None])


def test_arrays_that_no_longer_fit_are_not_taken_for_gone(tmp_path, outputs):
    made = arrays()
    np.savez(tmp_path / "mine.npz", **made)
    datasets.load(study_of(tmp_path))
    np.savez(tmp_path / "mine.npz", **made | {"train_images": made["train_images"].astype(np.float32)})
    with pytest.raises(InputError, match="train_images are float32"):
        preflight.check(study_of(tmp_path))


def test_a_class_without_a_test_image_is_told(tmp_path, outputs):
    made = arrays()
    made["test_labels"] = made["test_labels"] % 3
    np.savez(tmp_path / "mine.npz", **made)
    said = []
    preflight.check(study_of(tmp_path), say=said.append)
    assert said[0] == "note: no image of 1 of 4 classes, for example 3"
    assert said[1:] == [
        "note: 1 step of training in all may teach a network nothing: lower batch_size, or raise epochs"
    ]
