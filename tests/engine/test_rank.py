"""Scores become rankings of whole percents, image by image; a split's are written batch by batch, resumably."""

import json
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_study

from roarlib.data import datasets
from roarlib.data.datasets import SPLITS
from roarlib.engine import attribute, models, rank, store, train
from roarlib.engine.degrade import degraded
from roarlib.engine.rank import Explainer
from roarlib.study import files, rankings, results
from roarlib.study.params import InputError
from roarlib.study.rankings import removed


@pytest.mark.parametrize("units", [1, 7, 48, 100, 192, 3072])
def test_exact_counts_at_every_percent(units):
    ranking = rank.rank(torch.randn(3, 1, 1, units), torch.arange(3), 0)
    for percent in range(101):
        assert (removed(ranking, percent).flatten(1).sum(1) == percent * units // 100).all()
        assert (removed(ranking, percent, "keep").flatten(1).sum(1) == units - percent * units // 100).all()


def test_largest_scores_go_first_signed():
    scores = torch.tensor([[[[3.0, -5.0], [0.5, -0.1]]]])
    order = rank.rank(scores, torch.zeros(1, dtype=torch.int64), 0).flatten().argsort()
    assert order.tolist() == [0, 2, 3, 1]  # 3, 0.5, -0.1, -5: sign counts, size alone does not


def test_order_agrees_with_a_plain_sort_over_many_magnitudes():
    scores = torch.randn(20, 1, 8, 8) * 10 ** torch.empty(20, 1, 8, 8).uniform_(-30, 30)
    ranking = rank.rank(scores, torch.arange(20), 0).flatten(1).int()
    falling = ranking.gather(1, scores.flatten(1).argsort(1, descending=True))
    assert (falling.diff(dim=1) >= 0).all()


def test_ties_are_shuffled_by_seed_and_image_and_by_nothing_else():
    tied = torch.zeros(400, 1, 4, 4)
    tied[:, 0, 0, 0] = -0.0  # equal to 0.0, so no exception
    ids = torch.arange(400)
    ranking = rank.rank(tied, ids, 0)
    assert torch.equal(ranking[7:9], rank.rank(tied[7:9], ids[7:9], 0))
    assert not torch.equal(ranking, rank.rank(tied, ids, 1))
    share = removed(ranking, 50).float().mean(0)  # of each position over the images
    assert share.min() > 0.38 and share.max() < 0.62  # 400 fair coins: standard deviation 0.025


def test_units():
    scores = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert rank.to_unit(scores, "value") is scores
    assert torch.equal(rank.to_unit(scores, "pixel"), scores.sum(1, keepdim=True))
    drawn = torch.randint(0, 100, (2, 3, 2, 2), dtype=torch.uint8)
    assert torch.equal(rank.to_unit(drawn, "pixel"), drawn[:, :1])


def test_nan_scores_are_named():
    scores = torch.zeros(3, 1, 2, 2)
    scores[1, 0, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="image 41 are NaN"):
        rank.rank(scores, torch.arange(40, 43), 0)


def test_mixing_moves_the_share_it_says_nested_and_image_by_image():
    """Of 10 x 10 units 25 (50) trade places among themselves, so that every percent keeps its count."""
    ids = torch.arange(300)
    before = rank.rank(torch.randn(300, 1, 10, 10), ids, 0)
    quarter, half = (attribute.mixed(f"grad-mix{share}", before, ids, 0) for share in (25, 50))
    moved, more = quarter != before, half != before
    assert moved.flatten(1).sum(1).max() <= 25 and more.flatten(1).sum(1).max() <= 50
    assert abs(moved.sum() / 300 - 24) < 0.3 and abs(more.sum() / 300 - 49) < 0.3  # one stays in place, on average
    stay = attribute.mixed("grad-mix100", torch.arange(100).reshape(1, 1, 10, 10).repeat(300, 1, 1, 1).byte(), ids, 0)
    assert abs(np.corrcoef(stay.flatten(1), np.arange(100))[-1, :-1]).max() < 0.4  # 100 percent: no order is left
    assert (moved & ~more).sum() < 0.06 * moved.sum()  # nested: what is back in its place by chance aside
    for one in (quarter, half, stay):
        assert torch.equal(one.flatten(1).sort(1).values, before.flatten(1).sort(1).values)
    assert torch.equal(attribute.mixed("grad-mix25", before[7:9], ids[7:9], 0), quarter[7:9])
    assert not torch.equal(attribute.mixed("grad-mix25", before, ids, 1), quarter)
    assert attribute.mixed("grad-sg", before, ids, 0) is before


def setting(**changes):
    """A study with two estimators in both units, and an untrained model to be explained."""
    study = tiny_study(train_images=150, estimators=["grad", "grad-sgsq"], units=["pixel", "value"], **changes)
    torch.manual_seed(0)
    found = datasets.load(study)
    model = models.build("resnet-tiny", 10, found.shape).eval()
    predictions = {split: train.predict(study, model, degraded(study, found, split)) for split in SPLITS}
    return study, Explainer(study, found, model, predictions)


def test_the_class_that_is_explained_is_the_predicted_or_the_true_one(outputs):
    scores, index = {}, slice(0, 40)
    for target in ("predicted", "label"):
        _, explainer = setting(target=target)
        classes = explainer.predictions["test"] if target == "predicted" else explainer.data.test.labels
        assert explainer.targets("test", index).tolist() == classes[index].tolist()
        scores[target] = explainer.scores("test", index, ["grad"])["grad"]
    same = (explainer.predictions["test"] == explainer.data.test.labels)[index]
    assert 0 < same.sum() < 40  # an untrained model is right now and then
    equal = (scores["predicted"] == scores["label"]).flatten(1).all(1).numpy()
    assert (equal == same).all()


def files_of(study):
    return {(e, u, s): rankings.path(study, e, u, s) for e in study.estimators for u in study.units for s in SPLITS}


def bytes_of(study):
    return {key: file.read_bytes() for key, file in files_of(study).items()}


def test_every_image_is_ranked_in_every_unit(outputs):
    study, explainer = setting()
    seen = []
    cost = store.make(explainer, study.estimators, lambda *done: seen.append(done))
    assert cost["images_per_second"] > 0 and seen[-1] == (200, 200)
    for (estimator, unit, split), file in files_of(study).items():
        ranking = rankings.load(study, estimator, unit, split)
        assert ranking.dtype == np.uint8 and isinstance(ranking, np.memmap) and file.is_file()
        assert ranking.shape == (len(explainer.data.split(split)), 1 if unit == "pixel" else 3, 32, 32)
        assert ((ranking < 50).reshape(len(ranking), -1).sum(1) == ranking[0].size // 2).all()
    assert not list(outputs.rglob("*.part")) and not list(outputs.rglob("*.progress.json"))


def test_an_interrupted_run_goes_on_with_the_same_bytes(outputs, monkeypatch):
    study, explainer = setting()
    store.make(explainer, study.estimators)
    wanted = bytes_of(study)
    for file in files_of(study).values():
        file.unlink()
    ticks = iter(range(0, 10**6, 30))  # every batch is 30 seconds later, so that each leaves a checkpoint
    monkeypatch.setattr(store.time, "monotonic", lambda: next(ticks))

    def stop(done, total):
        if done == 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make(explainer, study.estimators, stop)
    assert not any(file.is_file() for file in files_of(study).values())  # nothing half-written has the final name
    seen = []
    other = replace(explainer, batch=37)  # a machine with other batches goes on with the old
    store.make(other, study.estimators, lambda done, total: seen.append(done))
    assert seen[0] == 64 + 64  # at the first checkpoint, with its batch size
    assert bytes_of(study) == wanted


@pytest.mark.parametrize("when", ["in the test split", "after both", "before train is deleted"])
def test_both_splits_are_ranked_by_the_network_that_is_there(outputs, when):
    study, explainer = setting()
    weights = results.base_file(study, "model.safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"one")

    def stop(done, total):
        if done > 150 and when == "in the test split":
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        store.make(explainer, study.estimators, stop)
    weights.write_bytes(b"another")
    torch.manual_seed(1)
    other = replace(explainer, model=models.build("resnet-tiny", 10, explainer.data.shape).eval())
    if when == "before train is deleted":
        for (_, _, split), file in files_of(study).items():
            file.unlink() if split == "train" else None
    store.make(other, study.estimators)
    found = bytes_of(study)
    for file in files_of(study).values():
        file.unlink()
    store.make(other, study.estimators)
    assert bytes_of(study) == found


def test_no_ranking_has_its_name_before_it_is_noted_whose_it_is(outputs, monkeypatch):
    study, explainer = setting()
    monkeypatch.setattr(store, "note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.make(explainer, study.estimators)
    assert not any(file.is_file() for file in files_of(study).values())
    monkeypatch.undo()
    monkeypatch.setenv("ROAR_OUTPUTS", str(outputs))
    store.make(explainer, study.estimators)
    names = {file.name for (_, _, split), file in files_of(study).items() if split == "train"}
    assert set(store.noted(study, "grad", "train")) == names


def test_a_gap_is_measured_with_no_more_images_than_memory_allows(outputs):
    study, explainer = setting()
    sizes = []
    explainer.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for batch, count in ((1, 1), (16, 4), (256, 8)):
        sizes.clear()
        assert replace(explainer, batch=batch).gap("captum:DeepLift") is not None
        assert sizes and sizes[-1] == count


def test_running_out_of_memory_halves_the_batch_for_good(outputs, monkeypatch):
    study, explainer = setting()
    original, sizes = Explainer.scores, []

    def scores(self, *args):
        sizes.append(self.batch)
        if self.batch > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args)

    monkeypatch.setattr(Explainer, "scores", scores)
    store.make(explainer, ["grad"])
    assert sizes[:4] == [256, 128, 64, 64] and (rankings.load(study, "grad", "pixel", "train") < 100).all()
    monkeypatch.setattr(Explainer, "scores", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("tiny")))
    with pytest.raises(InputError, match="grad-sgsq: GPU memory too small: lower workers or image_size"):
        store.make(explainer, ["grad-sgsq"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_images(outputs):
    """The process's own memory (not the mapped files) at its most, in the first and in the last of 3,000 images."""
    study = tiny_study(train_images=3000, estimators=["random", "sobel"], units=["value"])
    found, used = datasets.load(study), []
    predictions = {s: np.zeros(len(found.split(s)), np.int64) for s in SPLITS}

    def watch(done, total):
        status = Path("/proc/self/status").read_text()
        used.append(int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024)

    store.make(Explainer(study, found, torch.nn.Identity(), predictions), study.estimators, watch)
    third = len(used) // 3  # batches take and give back some megabytes: compare the peaks
    assert third > 13 and max(used[-third:]) - max(used[:third]) < 8  # MB; the rankings are 18 MB


def test_rankings_of_a_few_images_equal_the_stored_ones(outputs):
    study, explainer = setting()
    train.save_base(study, explainer.data, explainer.model)
    store.make(explainer, study.estimators)
    again = Explainer(study, explainer.data, *train.load_base(study, explainer.data))
    few = again.rankings("test", slice(3, 6), study.estimators, "pixel")
    stored = {name: rankings.load(study, name, "pixel", "test")[3:6] for name in study.estimators}
    assert all(np.mean(few[name] == stored[name]) > 0.99 for name in study.estimators)  # last bits may differ


def test_a_stale_checkpoint_is_never_believed(outputs, monkeypatch):
    """Two lists of estimators across two interruptions: the second truncates parts that the first checkpoint knows."""
    study, explainer = setting()
    ticks = iter(range(0, 10**6, 30))
    monkeypatch.setattr(store.time, "monotonic", lambda: next(ticks))

    def stop(done, total):
        if done == 128:
            raise KeyboardInterrupt

    for estimators in (["grad", "grad-sgsq"], ["grad-sgsq"]):
        with pytest.raises(KeyboardInterrupt):
            store.make(explainer, estimators, stop)
    checkpoint = next(study.folder.glob("02-attribute/*/train.progress.json"))
    state = json.loads(checkpoint.read_text())
    checkpoint.write_text(json.dumps({"done": state.pop("in_turn"), **state}))  # as of a version that went by number
    store.make(explainer, study.estimators)
    assert all((np.load(file).reshape(len(np.load(file)), -1).max(1) == 99).all() for file in files_of(study).values())


def test_a_new_unit_leaves_finished_rankings_alone(outputs):
    study, explainer = setting()
    store.make(replace(explainer, study=study.model_copy(update={"units": ["pixel"]})), study.estimators)
    before = {key: file.stat().st_mtime_ns for key, file in files_of(study).items() if file.is_file()}
    store.make(explainer, study.estimators)
    assert len(before) == 4 and before == {key: files_of(study)[key].stat().st_mtime_ns for key in before}
    assert all(file.is_file() for file in files_of(study).values())


def test_train_and_test_images_of_one_number_draw_differently(outputs):
    study, explainer = setting()
    store.make(explainer, ["random"])
    a, b = (rankings.load(study, "random", "pixel", split)[0] for split in SPLITS)
    assert abs((a == b).mean() - 0.01) < 0.02


def test_a_full_disk_is_an_error_before_anything_is_written(outputs, monkeypatch):
    study, explainer = setting()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device: .*grad-pixel-train.npy"):
        store.make(explainer, ["grad"])
    assert not list(outputs.rglob("*-train.npy"))


def test_only_what_is_missing_is_computed(outputs, monkeypatch):
    study, explainer = setting()
    store.make(explainer, ["grad"])
    before = rankings.path(study, "grad", "pixel", "test").stat().st_mtime_ns
    store.make(explainer, study.estimators)
    assert rankings.path(study, "grad", "pixel", "test").stat().st_mtime_ns == before
    monkeypatch.setattr(Explainer, "scores", None)
    store.make(explainer, study.estimators)


def users_estimator(tmp_path, monkeypatch, body):
    (tmp_path / "users.py").write_text(f"def mine(model, images, targets):\n    return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users", raising=False)
    return setting()[1], ["users:mine"]


@pytest.mark.parametrize(
    "body, says",
    [
        ("images * float('nan')", r"users:mine: scores of image \d+ are NaN or infinite"),
        ("images * 0 + 1", "users:mine gives every input of an image the same score"),
        ("images.sum((1, 2))", "mine gives scores of shape"),
    ],
)
def test_unusable_attributions_are_named(outputs, tmp_path, monkeypatch, body, says):
    with pytest.raises(InputError, match=says):
        store.make(*users_estimator(tmp_path, monkeypatch, body))
    assert not list((outputs / "tiny").rglob("*.npy"))


def test_a_test_images_number_is_told_without_its_splits_bits(outputs, tmp_path, monkeypatch):
    explainer, names = users_estimator(tmp_path, monkeypatch, "images * float('nan')")
    with pytest.raises(InputError, match="scores of image 7 are NaN"):
        explainer.rankings("test", slice(7, 8), names, "pixel")


def test_one_image_is_left_for_the_last_batch(outputs):
    study = tiny_study(train_images=33, test_images=9, estimators=["grad", "oracle"])
    found = datasets.load(study)
    model = train.train(study, found, 0)
    explainer = Explainer(study, found, model, train.save_base(study, found, model), batch=32)
    for name in study.estimators:
        store.make(explainer, [name])
        assert len(rankings.load(study, name, "pixel", "train")) == 33
