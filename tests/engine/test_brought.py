"""A trained network that is brought is the one explained; another normalisation leaves the protocol as it is."""

import itertools
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import random_data, tiny_study

from roarlib.data import datasets
from roarlib.engine import degrade, models, train
from roarlib.engine.augment import augment
from roarlib.engine.degrade import Degraded
from roarlib.engine.rank import Explainer
from roarlib.grid import rehearsal
from roarlib.study import own, params, results
from roarlib.study.params import InputError

SHAPE = (3, 32, 32)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    return models.build("resnet-tiny", 10, SHAPE).state_dict()


def study_of(tmp_path, name="net.safetensors", **changes):
    return tiny_study(base_weights=name, files_dir=str(tmp_path), **changes)


def saved(weights, file):
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(contiguous, file)
    else:
        torch.save(contiguous, file)


def wrapped(weights, file):
    """As a training loop with DataParallel leaves it."""
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, file)


@pytest.mark.parametrize("name, save", [("net.safetensors", saved), ("net.pt", saved), ("net.pth", wrapped)])
def test_the_brought_network_is_the_base_model(tmp_path, outputs, weights, name, save):
    save(weights, tmp_path / name)
    study = study_of(tmp_path, name)
    data = datasets.load(study)
    model = train.base_model(study, data)
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    again = train.train(study, data, 0)  # and never the start of a retraining
    assert not torch.equal(again.state_dict()["0.weight"], weights["0.weight"])


def test_weights_in_half_precision_are_taken(tmp_path, outputs, weights):
    saved(
        {name: value.half() if value.is_floating_point() else value for name, value in weights.items()},
        tmp_path / "n.pt",
    )
    study = study_of(tmp_path, "n.pt")
    assert next(train.base_model(study, datasets.load(study)).parameters()).dtype == torch.float32


class Thing:
    pass


def text(weights, file):
    file.write_text("no weights")


FAULTS = {
    "missing": ("net.pt", lambda w, f: None, "base_weights: there is no net.pt in "),
    "lacks": ("net.pt", lambda w, f: saved({k: w[k] for k in list(w)[2:]}, f), "it lacks 0.weight and 1 more"),
    "unknown": ("net.pt", lambda w, f: saved(w | {"more": torch.ones(1)}, f), "the model has no place for more"),
    "classes": (
        "net.safetensors",
        lambda w, f: saved(w | {"9.weight": torch.zeros(1000, 64), "9.bias": torch.zeros(1000)}, f),
        r"does not fit resnet-tiny with 10 classes: 9.weight is \(1000, 64\) and not \(10, 64\)",
    ),
    "nan": ("net.pt", lambda w, f: saved(w | {"0.weight": w["0.weight"] * torch.nan}, f), "0.weight has NaN"),
    "a whole model": ("net.pt", lambda w, f: torch.save(Thing(), f), "holds Python objects.*save model.state_dict"),
    "a pickle": ("net.pt", lambda w, f: f.write_bytes(pickle.dumps(Thing())), "save model.state_dict|cannot be read"),
    "a list": ("net.pt", lambda w, f: torch.save([torch.ones(1)], f), "holds no state dict"),
    "text": ("net.safetensors", text, "cannot be read as weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(tmp_path, outputs, weights, fault):
    name, leave, says = FAULTS[fault]
    leave(weights, tmp_path / name)
    study = study_of(tmp_path, name)
    with pytest.raises(InputError, match=says) as told:
        train.base_model(study, datasets.load(study))
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match=says):  # and before a run
        rehearsal.rehearse(study, datasets.load(study))


def test_rows_rest_on_the_weights(tmp_path, outputs, weights):
    saved(weights, tmp_path / "net.safetensors")
    study = study_of(tmp_path)
    before = own.source(study, "grad")
    assert before == own.source(study, "clean") != "ours"
    saved(weights | {"9.bias": torch.zeros(10)}, tmp_path / "net.safetensors")
    assert own.source(study, "grad") != before


def test_brought_weights_speak_of_one_base_model(tmp_path):
    with pytest.raises(ValueError, match="base_models: each-seed, but base_weights speaks of one model"):
        study_of(tmp_path, base_models="each-seed")


@pytest.mark.parametrize("normalise", ["imagenet", "0.5", 0.5])
def test_a_network_sees_what_it_was_trained_on(outputs, normalise):
    data = datasets.load(tiny_study(normalise=normalise))
    mean, std = (
        np.array(v)[:, None, None] for v in (datasets.IMAGENET if normalise == "imagenet" else ([0.5] * 3,) * 2)
    )
    seen = Degraded("test", data, torch.device("cpu")).images(slice(0, 7)).double().numpy()
    np.testing.assert_allclose(seen, (data.test.images[:7] / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("mode", ["remove", "keep", "remove-imputed", "keep-imputed", "mask"])
def test_removed_inputs_show_the_same_colour_however_images_are_normalised(outputs, mode):
    ranking = np.random.default_rng(0).integers(0, 100, (50, 1, 32, 32), np.uint8)
    ranking[0] = 0  # an image of which nothing is known
    shown = []
    for normalise, room in itertools.product(("train", "imagenet", "0.5"), (None, 0)):
        data = datasets.load(tiny_study(normalise=normalise))
        images = Degraded("test", data, torch.device("cpu"), ranking, 50, mode, room).images(slice(0, 20))
        mean, std = (torch.tensor(values)[:, None, None] for values in data.scale)
        shown.append(images if mode == "mask" else images * std + mean)
    for other in shown[1:]:
        apart = (other - shown[0]).abs()
        assert (apart > 1e-5).float().mean() <= (1e-4 if "imputed" in mode else 0)  # 8-bit values that round otherwise
        assert apart.max() < 1.01 / 255
    if mode == "remove":
        wanted = torch.tensor(data.mean)[:, None, None].expand(3, 32, 32)
        torch.testing.assert_close(shown[-1][0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["crop", "crop-flip", "area-flip"])
def test_beyond_the_edge_lies_the_fill(kind):
    fill = torch.tensor([1.0, -2.0, 3.0])
    images = fill[:, None, None].expand(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(images, kind, torch.Generator().manual_seed(0), fill), images)


@pytest.mark.parametrize("reference, wanted", [("black", 0.0), ("grey", 0.5), ("mean", None)])
def test_igs_reference_is_black_grey_or_the_training_mean(outputs, reference, wanted):
    study = tiny_study(normalise="imagenet", ig_reference=reference)
    data = datasets.load(study)
    predictions = {"train": np.zeros(100, np.int64), "test": np.zeros(50, np.int64)}
    explainer = Explainer(study, data, models.build("resnet-tiny", 10, SHAPE).eval(), predictions)
    mean, std = (torch.tensor(values)[:, None, None] for values in data.scale)
    level = explainer.baseline(study.ig_reference) * std + mean
    colour = torch.tensor(data.mean)[:, None, None] if wanted is None else torch.full((3, 1, 1), wanted)
    torch.testing.assert_close(level, colour, atol=1e-6, rtol=0)


def test_imagenets_colours_are_not_for_grey_images(outputs, monkeypatch):
    grey = random_data(shape=(1, 8, 8))
    with pytest.raises(InputError, match="normalise: imagenet is for colour images, and textures has 1 channel"):
        datasets._scale(tiny_study(normalise="imagenet"), grey.train)


def test_training_with_another_normalisation_learns_as_well(outputs):
    """The fill enters training too: a mask that removes all leaves nothing to learn in any of them."""
    ranking = np.zeros((100, 1, 32, 32), np.uint8)
    for normalise in ("train", "imagenet"):
        study = tiny_study(normalise=normalise, augment="crop-flip")
        data = datasets.load(study)
        images = degrade.degraded(study, data, "train", ranking, 100)
        assert float(images.images(slice(0, 100)).flatten(2).std(-1).max()) < 1e-6
        model = train.train(study, data, 0, ranking, 100)
        assert len(set(train.predict(study, model, degrade.degraded(study, data, "train", ranking, 100)))) == 1


def test_module_is_stripped_only_where_it_is_dataparallels(tmp_path, outputs, weights):
    for name, save in (("net.pt", torch.save), ("net.safetensors", safetensors.torch.save_file)):
        save({f"module.{k}": v.contiguous() for k, v in weights.items()}, tmp_path / name)
        study = study_of(tmp_path, name)
        train.base_model(study, datasets.load(study))


@pytest.mark.parametrize("found", [{1: torch.ones(1)}, {"0.weight": torch.ones(2, 2).to_sparse()}, {}])
def test_odd_state_dicts_are_one_line(tmp_path, outputs, found):
    torch.save(found, tmp_path / "net.pt")
    study = study_of(tmp_path, "net.pt")
    with pytest.raises(InputError, match="holds no state dict|it lacks"):
        train.base_model(study, datasets.load(study))


def test_changed_weights_are_named(tmp_path, outputs, weights):
    saved(weights, tmp_path / "net.safetensors")
    study = study_of(tmp_path)
    results.write(study, results.Key("base", seed=0), 0.5)
    results.write(study, results.Key("retrain", "grad", "pixel", "remove", 50, 0), 0.5)
    results.check_sources(study)
    saved(weights | {"9.bias": torch.ones(10)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="net.safetensors is not what it was .*: the weights are others"):
        results.check_sources(study)


def test_a_relative_files_dir_counts_from_the_study(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "s.yaml").write_text('files_dir: .\nestimators: [random, "maps:mine"]\n')
    monkeypatch.chdir("/")
    assert params.load(tmp_path / "s.yaml").files_dir == str(tmp_path)
    (tmp_path / "s.yaml").write_text('files_dir: /of/another/machine\nestimators: [random, "maps:mine"]\n')
    assert params.load(tmp_path / "s.yaml").files_dir == str(tmp_path)
