import numpy as np
import pytest
import torch
from conftest import tiny_study

from roarlib import data, models, rankings, train
from roarlib.params import InputError


def setting(**changes):
    study = tiny_study(train_images=150, estimators=["grad", "grad-sgsq"], units=["pixel", "value"], **changes)
    torch.manual_seed(0)
    found = data.load(study)
    model = models.build("resnet-tiny", 10, found.shape).eval()
    predictions = {
        s: train.predict(study, model, train.Degraded(found.split(s), found, torch.device("cpu"))) for s in data.SPLITS
    }
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
    monkeypatch.setattr(rankings, "batch_size", lambda *_: 37)  # another batch size must not matter either
    rankings.make(study, found, model, predictions, study.estimators, lambda done, total: seen.append(done))
    assert seen[0] == 64 + 37  # the second batch was computed but never checkpointed
    same = [
        np.mean(np.frombuffer(file.read_bytes(), np.uint8) == np.frombuffer(wanted[key], np.uint8))
        for key, file in files(study).items()
    ]
    assert min(same) > 0.999  # float32 sums differ in the last bit between batch sizes


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
    assert not list(outputs.rglob("*.npy"))


def test_a_missing_ranking_says_what_to_run(outputs):
    with pytest.raises(LookupError, match="roar run params/tiny.yaml"):
        rankings.load(tiny_study(), "grad", "pixel", "test")
