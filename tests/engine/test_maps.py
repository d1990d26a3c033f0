"""Finished maps are ranked as the scores they are, matched to their images, and refused where they cannot be."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_study
from PIL import Image

from roarlib.data import datasets, listing
from roarlib.data.datasets import SPLITS
from roarlib.engine import maps, models, store
from roarlib.engine.rank import Explainer
from roarlib.grid import preflight
from roarlib.study import own, params, rankings
from roarlib.study.params import InputError

COUNTS = {"train": 100, "test": 50}


@pytest.fixture
def folder(tmp_path):
    """A folder `mine` of maps in the study's order: image n's largest score lies at pixel n."""
    (tmp_path / "mine").mkdir()
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        found = rng.normal(size=(count, 32, 32)).astype(np.float32)
        found.reshape(count, -1)[np.arange(count), np.arange(count)] = 99
        np.save(tmp_path / "mine" / f"{split}.npy", found)
    return tmp_path / "mine"


def study_of(folder, *names, **changes):
    names = names or ("maps:mine",)
    return tiny_study(estimators=[*names, "random"], files_dir=str(folder.parent), percents=[10], **changes)


def explained(study):
    data = datasets.load(study)
    torch.manual_seed(0)
    model = models.build("resnet-tiny", 10, data.shape).eval()
    return Explainer(study, data, model, {s: np.zeros(len(data.split(s)), np.int64) for s in SPLITS})


def first_pixel(study, name="maps:mine", split="train"):
    """The pixel that each image's ranking puts first, from the largest of the scores."""
    explainer = explained(study)
    scores = explainer.scores(split, slice(0, COUNTS[split]), [name])[name]
    return scores[:, 0].flatten(1).argmax(1).tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_has_its_own_map(folder, split):
    assert first_pixel(study_of(folder), split=split) == list(range(COUNTS[split]))


def test_stored_rankings_are_those_of_the_maps(folder):
    study = study_of(folder, "maps:mine", "maps:mine-reversed")
    explainer = explained(study)
    store.make(explainer, ["maps:mine", "maps:mine-reversed"])
    found = rankings.load(study, "maps:mine", "pixel", "test").reshape(50, -1)
    scores = np.load(folder / "test.npy").reshape(50, -1)
    for image in range(50):
        assert set(np.flatnonzero(found[image] < 10)) == set(np.argsort(-scores[image])[:102])
    other = rankings.load(study, "maps:mine-reversed", "pixel", "test").reshape(50, -1)
    assert not (other[range(50), range(50)] < 99).any()


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("shape", [(32, 32), (1, 32, 32), (3, 32, 32)])
def test_any_float_and_any_layout(folder, kind, shape):
    for split, count in COUNTS.items():
        found = np.zeros((count, *shape), kind)
        found.reshape(count, -1, 1024)[np.arange(count), :, np.arange(count)] = 1
        np.save(folder / f"{split}.npy", found)
    study = study_of(folder)
    assert maps.check(study, "maps:mine", datasets.load(study)).endswith("in the order of `roar images`")
    assert first_pixel(study) == list(range(100))


def shuffled(folder, table, key):
    """Maps and list in another order, under the one key; some of no image of the study among them."""
    for split, count in COUNTS.items():
        order = np.random.default_rng(1).permutation(count)
        found = np.load(folder / f"{split}.npy")[order]
        np.save(folder / f"{split}.npy", np.concatenate([found[:1] * 0, found]))
    parts = []
    for split, count in COUNTS.items():
        mine = table[table["split"] == split].iloc[np.random.default_rng(1).permutation(count)]
        parts += [pd.DataFrame([{"split": split, key: "another"}]), mine[["split", key]]]
    pd.concat(parts).to_csv(folder / "images.csv", index=False)


def test_a_list_matches_maps_in_any_order_by_hash(folder):
    study = study_of(folder)
    shuffled(folder, listing.images(study), "sha256")
    assert maps.check(study, "maps:mine", datasets.load(study)) is None
    assert first_pixel(study) == list(range(100)) and first_pixel(study, split="test") == list(range(50))


@pytest.mark.parametrize("key", ["file", "sha256"])
def test_a_list_matches_maps_of_pictures_and_a_part_of_them_is_enough(folder, key):
    rng = np.random.default_rng(2)
    for split, count in COUNTS.items():
        for k in range(count):
            picture = folder.parent / "photos" / split / f"c{k % 2}" / f"{k}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    whole = study_of(folder, dataset="folder:photos", image_size=32, resize=32, train_images=0, test_images=0)
    table = listing.images(whole)
    assert list(table.columns) == ["index", "split", "file", "label", "sha256"] and len(table) == 150
    assert table.file[0] == "train/c0/0.png" and table.label.tolist()[:51] == [0] * 50 + [1]
    shuffled(folder, table, key)
    few = study_of(folder, dataset="folder:photos", image_size=32, resize=32, train_images=20, test_images=10)
    maps.check(few, "maps:mine", datasets.load(few))
    chosen = listing.images(few).query("split == 'train'").file.tolist()
    wanted = table.query("split == 'train'").set_index("file")["index"]
    explainer = explained(few)
    scores = explainer.scores("train", slice(0, 20), ["maps:mine"])["maps:mine"]
    assert scores[:, 0].flatten(1).argmax(1).tolist() == wanted[chosen].tolist()


def test_a_study_can_be_tried_before_its_pictures_are_prepared(folder):
    for split, k in product(COUNTS, range(12)):
        picture = folder.parent / "photos" / split / f"c{k % 2}" / f"{k}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    (folder / "images.csv").write_text("split,file\n")
    study = study_of(folder, dataset="folder:photos", image_size=32, resize=32, train_images=0, test_images=0)
    assert len(preflight.check(study, whole=False)[0].train) == 12
    assert not datasets.prepared(study).exists()


def test_a_run_with_a_list_is_rehearsed(folder):
    study = study_of(folder, "maps:mine", "maps:mine-blur", modes=["remove", "keep"])
    shuffled(folder, listing.images(study), "sha256")
    said = []
    preflight.check(study, say=said.append)
    assert [line for line in said if "steps of training" not in line] == []


def rewrite(folder, change, split="train"):
    np.save(folder / f"{split}.npy", change(np.load(folder / f"{split}.npy")))


def nan_at_7(found):
    found[7, 3, 3] = np.nan
    return found


FAULTS = {
    "count": (lambda x: x[:90], "train.npy has 90 maps, and the study 100 train images"),
    "size": (lambda x: x[:, :16], r"train.npy has maps of \(16, 32\) for images of \(3, 32, 32\)"),
    "channels": (lambda x: x[:, None].repeat(2, 1), r"maps of \(2, 32, 32\)"),
    "integers": (lambda x: x.astype(np.int32), "holds int32; scores must be floats"),
    "nan": (nan_at_7, "train.npy, map 7 has NaN"),
    "pickle": (lambda x: np.array([None, x], dtype=object), "is not a plain array"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(folder, fault):
    change, says = FAULTS[fault]
    rewrite(folder, change)
    study = study_of(folder)
    with pytest.raises(InputError, match=says) as told:
        maps.check(study, "maps:mine", datasets.load(study))
    assert "\n" not in str(told.value)


def test_what_is_not_there_is_one_line(folder):
    study = study_of(folder, "maps:other")
    with pytest.raises(InputError, match="maps:other: there is no other in .* nor in "):
        preflight.check(study)
    (folder / "test.npy").unlink()
    with pytest.raises(InputError, match="there is no .*test.npy"):
        preflight.check(study_of(folder))


def test_lists_that_do_not_fit_are_one_line(folder):
    study = study_of(folder)
    table, data = listing.images(study), datasets.load(study)
    for change, says in (
        (table.iloc[1:], "names 99 train images, and train.npy has 100 maps"),
        (table.assign(sha256=[f"x{k}" for k in range(150)]), "lacks 100 train images of the study"),
        (table[["split", "label"]], "must have the columns split, and sha256, with a value"),
    ):
        change.to_csv(folder / "images.csv", index=False)
        maps._read.cache_clear()
        with pytest.raises(InputError, match=says):
            maps.check(study, "maps:mine", data)


@pytest.mark.parametrize("name", ["maps:mine-sg", "maps:mine-var", "maps:mine-sgsq-blur", "maps:mine-recursive"])
def test_noise_ensembles_of_finished_maps_are_refused(name):
    with pytest.raises(ValueError, match="finished maps are of untouched images"):
        tiny_study(estimators=[name])


def test_maps_speak_of_one_base_model(folder):
    with pytest.raises(ValueError, match="base_models: each-seed, but maps:mine speaks of one model"):
        study_of(folder, base_models="each-seed")


def test_rows_carry_the_maps_digest(folder):
    study = study_of(folder)
    before = own.source(study, "maps:mine")
    assert own.source(study, "maps:mine-blur") == before and own.source(study, "random") == "ours"
    rewrite(folder, lambda x: -x)
    assert own.source(study, "maps:mine") != before and len(before.split()) == 2
    (folder / "test.npy").unlink()
    assert own.source(study, "maps:mine") is None  # not here: it cannot be told


def test_a_folder_beside_the_yaml_is_found(folder, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('estimators: [random, "maps:mine"]\n')
    assert params.load(file).files_dir == str(tmp_path)
    file.write_text('estimators: [random, "maps:elsewhere"]\n')
    assert params.load(file).files_dir is None


def test_small_halves_keep_their_order_when_squared(folder):
    """Squares of 1e-3 are 0 in half precision."""
    for split, count in COUNTS.items():
        found = np.stack([np.random.default_rng(k).permutation(1024) for k in range(count)]) + 1
        np.save(folder / f"{split}.npy", (found * 1e-6).astype(np.float16).reshape(count, 32, 32))
    explainer = explained(study_of(folder, "maps:mine", "maps:mine-squared"))
    made = explainer.scores("train", slice(0, 5), ["maps:mine", "maps:mine-squared"])
    for one, other in zip(made["maps:mine"], made["maps:mine-squared"], strict=True):
        assert torch.equal(one[0].flatten().argsort(stable=True), other[0].flatten().argsort(stable=True))


def test_a_folder_that_a_variant_would_hide_is_named(folder):
    (folder.parent / "mine-abs").mkdir()
    with pytest.raises(InputError, match="maps:mine-abs means a variant of maps:mine, and the folder mine-abs"):
        preflight.check(study_of(folder, "maps:mine", "maps:mine-abs"))


def test_an_image_listed_twice_has_one_map(folder):
    study = study_of(folder)
    table, maps_of = listing.images(study), np.load(folder / "train.npy")
    train = table[table["split"] == "train"]
    pd.concat([table, train[:1]]).to_csv(folder / "images.csv", index=False)
    np.save(folder / "train.npy", np.concatenate([maps_of, maps_of[:1]]))
    assert maps.check(study, "maps:mine", datasets.load(study)) is None
    np.save(folder / "train.npy", np.concatenate([maps_of, -maps_of[:1]]))
    with pytest.raises(InputError, match="names a train image twice, with two maps"):
        maps.check(study, "maps:mine", datasets.load(study))


@pytest.mark.parametrize("content", [b"", "split,sha256\nträin,1".encode("latin-1"), b'a,b\n1,2,3\n"'])
def test_a_list_that_is_no_table_is_one_line(folder, content):
    (folder / "images.csv").write_bytes(content)
    study = study_of(folder)
    with pytest.raises(InputError, match="images.csv") as told:
        maps.check(study, "maps:mine", datasets.load(study))
    assert "\n" not in str(told.value)


def test_an_archive_is_no_map(folder):
    np.savez(folder / "x.npz", np.zeros(3))
    (folder / "x.npz").rename(folder / "train.npy")
    with pytest.raises(InputError, match="is no array of maps"):
        maps.check(study_of(folder), "maps:mine", datasets.load(study_of(folder)))


def test_maps_that_change_while_they_are_ranked_give_no_ranking(folder, outputs):
    study = study_of(folder)

    def change(done, total):
        rewrite(folder, lambda x: x + 1)

    with pytest.raises(InputError, match="has changed while it was ranked"):
        store.make(explained(study), ["maps:mine"], change)
    assert not list(outputs.rglob("maps.mine-*.npy"))


def test_a_truncated_picture_is_left_out_of_the_list(folder):
    rng = np.random.default_rng(2)
    for split, count in {"train": 240, "test": 4}.items():
        for k in range(count):
            picture = folder.parent / "pics (1)" / split / f"c{k % 2}" / f"{k:03}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    cut = folder.parent / "pics (1)" / "train" / "c1" / "003.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    study = study_of(folder, dataset="folder:pics (1)", image_size=32, resize=32, train_images=0, test_images=0)
    table = listing.images(study)
    assert len(datasets.load(study).train) == 239 == (table["split"] == "train").sum()
    assert "train/c1/003.jpg" not in set(table.file) and "test/c1/003.jpg" in set(table.file)
