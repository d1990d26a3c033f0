import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_study

from roarlib.data import datasets as data, prepare as stored
from roarlib.engine import models, rank as rankings, train
from roarlib.engine.degrade import Degraded
from roarlib.study.params import InputError


def setting(**changes):
    study = tiny_study(train_images=150, estimators=["grad", "grad-sgsq"], units=["pixel", "value"], **changes)
    torch.manual_seed(0)
    found = data.load(study)
    model = models.build("resnet-tiny", 10, found.shape).eval()
    predictions = {s: train.predict(study, model, Degraded(s, found, torch.device("cpu"))) for s in data.SPLITS}
    return study, found, model, predictions


def files(study):
    return {
        (e, u, s): rankings.path(study, e, u, s) for e in study.estimators for u in study.units for s in data.SPLITS
    }


def test_every_image_is_ranked_in_every_unit(outputs):
    study, found, model, predictions = setting()
    seen = []
    cost = rankings.make(study, found, model, predictions, study.estimators, lambda *done: seen.append(done))
    assert cost["images_per_second"] > 0 and seen[-1] == (200, 200)
    for (estimator, unit, split), file in files(study).items():
        ranking = rankings.load(study, estimator, unit, split)
        assert ranking.dtype == np.uint8 and isinstance(ranking, np.memmap) and file.is_file()
        assert ranking.shape == (len(found.split(split)), 1 if unit == "pixel" else 3, 32, 32)
        assert ((ranking < 50).reshape(len(ranking), -1).sum(1) == ranking[0].size // 2).all()
    assert not list(outputs.rglob("*.part")) and not list(outputs.rglob("*.progress.json"))


def test_an_interrupted_run_goes_on_with_the_same_bytes(outputs, monkeypatch):
    study, found, model, predictions = setting()
    rankings.make(study, found, model, predictions, study.estimators)
    wanted = {key: file.read_bytes() for key, file in files(study).items()}
    for file in files(study).values():
        file.unlink()
    ticks = iter(range(0, 10**6, 30))  # every batch is 30 seconds later, so that each leaves a checkpoint
    monkeypatch.setattr(rankings.time, "monotonic", lambda: next(ticks))

    def stop(done, total):
        if done == 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rankings.make(study, found, model, predictions, study.estimators, stop)
    seen = []
    monkeypatch.setattr(rankings, "batch_size", lambda *_: 37)  # a machine with other batches goes on with the old
    rankings.make(study, found, model, predictions, study.estimators, lambda done, total: seen.append(done))
    assert seen[0] == 64 + 64  # at the first checkpoint, with its batch size
    assert {key: file.read_bytes() for key, file in files(study).items()} == wanted


def test_a_killed_run_ends_with_identical_bytes(outputs, monkeypatch):
    study, found, model, predictions = setting()
    rankings.make(study, found, model, predictions, study.estimators)
    wanted = {key: file.read_bytes() for key, file in files(study).items()}
    for file in files(study).values():
        file.unlink()

    def stop(done, total):
        if done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rankings.make(study, found, model, predictions, study.estimators, stop)
    assert not any(file.is_file() for file in files(study).values())  # nothing half-written has the final name
    rankings.make(study, found, model, predictions, study.estimators)
    assert {key: file.read_bytes() for key, file in files(study).items()} == wanted


def test_running_out_of_memory_halves_the_batch_for_good(outputs, monkeypatch):
    study, found, model, predictions = setting()
    original, sizes = rankings.explain_stored, []

    def explain(*args):
        sizes.append(args[-1])
        if args[-1] > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args)

    monkeypatch.setattr(rankings, "explain_stored", explain)
    rankings.make(study, found, model, predictions, ["grad"])
    assert sizes[:4] == [256, 128, 64, 64] and (rankings.load(study, "grad", "pixel", "train") < 100).all()
    monkeypatch.setattr(rankings, "explain_stored", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("tiny")))
    with pytest.raises(torch.OutOfMemoryError):
        rankings.make(study, found, model, predictions, ["grad-sgsq"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_images(outputs):
    """The process's own memory (not the mapped files) at its most, in the first and in the last of 3,000 images."""
    study = tiny_study(train_images=3000, estimators=["random", "sobel"], units=["value"])
    found, used = data.load(study), []
    predictions = {s: np.zeros(len(found.split(s)), np.int64) for s in data.SPLITS}

    def watch(done, total):
        status = Path("/proc/self/status").read_text()
        used.append(int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024)

    rankings.make(study, found, torch.nn.Identity(), predictions, study.estimators, watch)
    third = len(used) // 3  # batches take and give back some megabytes: compare the peaks
    assert third > 13 and max(used[-third:]) - max(used[:third]) < 8  # MB; the rankings are 18 MB


def test_rankings_of_a_few_images_equal_the_stored_ones(outputs):
    study, found, model, _ = setting()
    predictions = train.save_base(study, found, model)
    rankings.make(study, found, model, predictions, study.estimators)
    few = rankings.of_images(study, found, study.estimators, "test", slice(3, 6), "pixel")
    stored = {name: rankings.load(study, name, "pixel", "test")[3:6] for name in study.estimators}
    assert all(np.mean(few[name] == stored[name]) > 0.99 for name in study.estimators)  # folded, so last bits differ


def test_a_stale_checkpoint_is_never_believed(outputs, monkeypatch):
    """Two lists of estimators across two interruptions: the second truncates parts that the first checkpoint knows."""
    study, found, model, predictions = setting()
    ticks = iter(range(0, 10**6, 30))
    monkeypatch.setattr(rankings.time, "monotonic", lambda: next(ticks))

    def stop(done, total):
        if done == 128:
            raise KeyboardInterrupt

    for estimators in (["grad", "grad-sgsq"], ["grad-sgsq"]):
        with pytest.raises(KeyboardInterrupt):
            rankings.make(study, found, model, predictions, estimators, stop)
    rankings.make(study, found, model, predictions, study.estimators)
    assert all((np.load(file).reshape(len(np.load(file)), -1).max(1) == 99).all() for file in files(study).values())


def test_a_new_unit_leaves_finished_rankings_alone(outputs):
    study, found, model, predictions = setting()
    rankings.make(study.model_copy(update={"units": ["pixel"]}), found, model, predictions, study.estimators)
    before = {key: file.stat().st_mtime_ns for key, file in files(study).items() if file.is_file()}
    rankings.make(study, found, model, predictions, study.estimators)
    assert len(before) == 4 and before == {key: files(study)[key].stat().st_mtime_ns for key in before}
    assert all(file.is_file() for file in files(study).values())


def test_train_and_test_images_of_one_number_draw_differently(outputs):
    study, found, model, predictions = setting()
    rankings.make(study, found, model, predictions, ["random"])
    a, b = (rankings.load(study, "random", "pixel", split)[0] for split in data.SPLITS)
    assert abs((a == b).mean() - 0.01) < 0.02


def test_a_full_disk_is_an_error_before_anything_is_written(outputs, monkeypatch):
    study, found, model, predictions = setting()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        rankings.make(study, found, model, predictions, ["grad"])


def test_only_what_is_missing_is_computed(outputs, monkeypatch):
    study, found, model, predictions = setting()
    rankings.make(study, found, model, predictions, ["grad"])
    before = rankings.path(study, "grad", "pixel", "test").stat().st_mtime_ns
    rankings.make(study, found, model, predictions, study.estimators)
    assert rankings.path(study, "grad", "pixel", "test").stat().st_mtime_ns == before
    monkeypatch.setattr(rankings, "explain_stored", None)
    rankings.make(study, found, model, predictions, study.estimators)


def users_estimator(tmp_path, monkeypatch, body):
    (tmp_path / "users.py").write_text(f"def mine(model, images, targets):\n    return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users", raising=False)
    study, found, model, predictions = setting()
    return study, found, model, predictions, ["users:mine"]


@pytest.mark.parametrize(
    "body, says",
    [
        ("images * float('nan')", "users:mine: scores of image 0 are NaN or infinite"),
        ("images * 0 + 1", "users:mine gives every input of an image the same score"),
        ("images.sum(1)", "mine gives scores of shape"),
    ],
)
def test_unusable_attributions_are_named(outputs, tmp_path, monkeypatch, body, says):
    with pytest.raises(InputError, match=says):
        rankings.make(*users_estimator(tmp_path, monkeypatch, body))
    assert not list((outputs / "tiny").rglob("*.npy"))


def test_a_missing_ranking_says_what_to_run(outputs):
    with pytest.raises(LookupError, match="roar run params/tiny.yaml"):
        rankings.load(tiny_study(), "grad", "pixel", "test")


def test_overlap_is_the_share_of_removed_units_in_common():
    a = np.arange(100, dtype=np.uint8).reshape(1, 10, 10)
    assert rankings.overlap(a, a) == pytest.approx(np.ones(100))
    opposite = rankings.overlap(a, 99 - a)
    assert (opposite[:50] == 0).all() and opposite[74] == pytest.approx(50 / 75) and opposite[99] == 1
    b = np.where(a < 10, 0, 99).astype(np.uint8)  # removes 10 units at any t below 100
    assert rankings.overlap(a, b)[[4, 9, 29]] == pytest.approx([10 / 15, 1, 20 / 40])
    few = rankings.overlap(*np.full((2, 1, 2, 2), 24, np.uint8))
    assert np.isnan(few[:24]).all() and (few[24:] == 1).all()


def test_the_overlap_of_unrelated_rankings_is_t_on_average():
    rng = np.random.default_rng(0)
    shuffled = [rng.permuted(np.repeat(np.arange(100, dtype=np.uint8), 10)).reshape(1, 20, 50) for _ in range(200)]
    found = np.mean([rankings.overlap(a, b) for a, b in zip(shuffled[::2], shuffled[1::2], strict=True)], axis=0)
    assert found == pytest.approx(np.arange(1, 101) / 100, abs=0.02)


def test_a_test_images_number_is_told_without_its_splits_bits(outputs, tmp_path, monkeypatch):
    study, found, model, predictions, names = users_estimator(tmp_path, monkeypatch, "images * float('nan')")
    with pytest.raises(InputError, match="scores of image 7 are NaN"):
        rankings.of_images(study, found, names, "test", slice(7, 8), "pixel", (model, predictions))
