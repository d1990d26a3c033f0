import numpy as np
import pytest
import torch
from conftest import random_data, tiny_study

from roarlib.data import datasets
from roarlib.engine import train
from roarlib.engine.degrade import Degraded, placed
from roarlib.study.machine import device_of, room
from roarlib.study.params import InputError

CPU = torch.device("cpu")


def overfitting(**changes):
    return tiny_study(epochs=40, batch_size=16, learning_rate=0.1, label_smoothing=0.0, weight_decay=0.0, **changes)


def test_it_overfits_32_images():
    found = random_data(train=32, test=8, shape=(3, 16, 16))
    losses = []
    model = train.train(overfitting(), found, 0, progress=losses.append)
    whole = datasets.Data(found.train, found.train, found.classes, found.mean, found.std)
    assert train.tested(overfitting(), model, whole)["accuracy"] == 1
    assert len(losses) == 40 and losses[-1] < 0.05 < losses[0]


def test_same_seed_same_numbers_to_the_bit_whatever_ran_before():
    found, study = random_data(shape=(3, 16, 16)), tiny_study(batch_size=8, epochs=2, augment="crop-flip")

    def weights(seed):
        return torch.cat([p.detach().flatten() for p in train.train(study, found, seed).parameters()])

    first = weights(5)
    torch.rand(17)
    assert torch.equal(weights(5), first) and not torch.equal(weights(6), first)


def test_a_model_that_draws_is_seeded_too_and_pairs(tmp_path, monkeypatch):
    (tmp_path / "dropping.py").write_text(
        "from torch import nn\n"
        "def net(classes, channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found, study = random_data(), tiny_study(batch_size=8, model="dropping:net")
    first = train.train(study, found, 0)[2].weight
    torch.rand(5)
    assert torch.equal(train.train(study, found, 0)[2].weight, first)


def test_a_diverged_training_is_an_error_and_not_a_perfect_estimator():
    with pytest.raises(InputError, match="diverged in epoch 1: lower learning_rate"):
        train.train(tiny_study(batch_size=8, learning_rate=1e30), random_data(shape=(3, 16, 16)), 0)


def test_logits_that_are_not_finite_are_an_error_and_not_the_first_class():
    found = random_data(shape=(3, 16, 16))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, len(found.classes)))
    study = tiny_study()
    assert 0 <= train.tested(study, model, found)["accuracy"] <= 1
    model[1].bias.data[1] = torch.nan
    with pytest.raises(InputError, match="resnet-tiny gives NaN or infinite logits for some test images"):
        train.tested(study, model, found)


def test_too_little_memory_is_an_error_that_names_the_key_to_lower(monkeypatch):
    monkeypatch.setattr(
        train, "augment", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    for changes, count in (({}, 25), ({"micro_batch": 5}, 5)):
        with pytest.raises(InputError, match=f"GPU memory too small for {count} images a pass: lower micro_batch"):
            train.train(tiny_study(**changes), random_data(train=50, shape=(3, 16, 16)), 0)


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    train.train(tiny_study(batch_size=8), random_data(shape=(3, 16, 16)), 0)
    assert torch.equal(torch.rand(3), wanted)


def test_first_weights_and_order_do_not_depend_on_the_ranking(monkeypatch):
    found, study, seen = random_data(shape=(3, 16, 16)), tiny_study(batch_size=8), []
    original = Degraded.batch
    monkeypatch.setattr(Degraded, "batch", lambda self, i: (seen.append(i.tolist()), original(self, i))[1])
    nothing = np.full((20, 1, 16, 16), 99, np.uint8)
    plain, ranked = train.train(study, found, 3), train.train(study, found, 3, nothing, 50)
    assert seen[:2] == seen[2:]  # two batches each
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ranked.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["remove", "keep"])
def test_removed_inputs_take_the_training_mean_and_the_others_stay(mode):
    found = random_data()
    ranking = np.random.default_rng(1).integers(0, 100, (20, 3, 8, 8), dtype=np.uint8)
    x, y = Degraded("train", found, CPU, ranking, 30, mode).batch(slice(0, 20))
    clean, _ = Degraded("train", found, CPU).batch(slice(0, 20))
    gone = torch.from_numpy(ranking < 30 if mode == "remove" else ranking >= 30)
    assert (x[gone] == 0).all() and torch.equal(x[~gone], clean[~gone])
    assert y.tolist() == found.train.labels.tolist()


def test_a_pixel_ranking_removes_all_channels():
    found = random_data()
    ranking = np.random.default_rng(1).integers(0, 100, (20, 1, 8, 8), dtype=np.uint8)
    x, _ = Degraded("train", found, CPU, ranking, 50).batch(slice(0, 20))
    assert ((x == 0).all(1, keepdim=True).numpy() == (ranking < 50)).all()


def test_a_ranking_of_another_split_is_refused():
    found = random_data()
    with pytest.raises(ValueError, match="ranking of 10 images for a split of 20"):
        Degraded("train", found, CPU, np.zeros((10, 1, 8, 8), np.uint8), 50)


def test_evaluation_counts_right_answers_on_degraded_test_images():
    found = random_data()

    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), 2), 4).float() + x.mean() * 0

    share = (found.test.labels == 2).mean()
    assert train.tested(tiny_study(), Constant(), found)["accuracy"] == share


def test_base_model_comes_back_as_it_was(outputs):
    found, study = datasets.load(tiny_study()), tiny_study()
    model = train.train(study, found, 0)
    kept = train.save_base(study, found, model)
    again, predictions = train.load_base(study, found)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert np.array_equal(predictions["test"], kept["test"]) and len(predictions["train"]) == 100
    assert not again.training


def test_without_a_base_model_the_error_says_what_to_run(outputs):
    with pytest.raises(LookupError, match="of tiny yet; `roar run`"):
        train.load_base(tiny_study(), random_data())


def test_an_unusable_device_is_named():
    with pytest.raises(InputError, match="device 'cuda:99' is not usable"):
        device_of(tiny_study(device="cuda:99"))


def test_learning_rate_rises_then_falls_to_nothing():
    model = torch.nn.Linear(2, 2)
    optimiser, schedule = train._optimiser(tiny_study(warmup=0.2, learning_rate=1.0), model, 100)
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert np.argmax(rates) == 20 and rates[20] == 1 and 0 < rates[-1] < 0.02 and 0 < rates[0] < 0.06
    assert [g["weight_decay"] for g in optimiser.param_groups] == [5e-4, 0]


def test_the_first_step_of_adamw_is_the_rate_and_only_matrices_decay():
    """Its moments, both corrected for their start, divide to the sign of the gradient."""
    model = torch.nn.Linear(3, 2)
    weight, bias = (p.detach().clone() for p in (model.weight, model.bias))
    study = tiny_study(optimiser="adamw", learning_rate=0.01, weight_decay=0.5, momentum=0.8, warmup=0.0)
    optimiser, _ = train._optimiser(study, model, 10)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    (model(x) @ torch.tensor([1.0, -1.0])).sum().backward()
    optimiser.step()
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
    torch.testing.assert_close(model.weight.detach(), (1 - 0.01 * 0.5) * weight - 0.01 * signs)
    torch.testing.assert_close(model.bias.detach(), bias - 0.01 * torch.tensor([1.0, -1.0]))
    assert all(group["betas"] == (0.8, 0.999) for group in optimiser.param_groups)


def test_learning_rate_drops_to_a_tenth_at_the_given_epochs():
    study = tiny_study(epochs=10, warmup=0.2, learning_rate=1.0, drop_epochs=[5, 8])
    optimiser, schedule = train._optimiser(study, torch.nn.Linear(2, 2), 100)
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert np.allclose([rates[20], rates[49], rates[50], rates[79], rates[80], rates[99]], [1, 1, 0.1, 0.1, 0.01, 0.01])
    assert 0 < rates[0] < rates[10] < 1


def test_micro_batches_give_the_gradients_of_the_whole(tmp_path, monkeypatch):
    (tmp_path / "linear.py").write_text(
        "from torch import nn\n"
        "def net(classes, channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = random_data()
    models = [
        train.train(tiny_study(batch_size=10, micro_batch=m, model="linear:net", epochs=3), found, 0) for m in (0, 4)
    ]
    assert torch.allclose(models[0][1].weight, models[1][1].weight, atol=1e-6)
    assert not torch.equal(models[0][1].weight, train.train(tiny_study(model="linear:net"), found, 0)[1].weight)


@pytest.mark.parametrize("unit_channels", [1, 3])
def test_streamed_training_gives_the_very_numbers_of_a_resident_one(outputs, unit_channels):
    study, rng = tiny_study(batch_size=10, epochs=2, augment="crop-flip"), np.random.default_rng(0)
    found = datasets.load(study)
    outputs.mkdir(exist_ok=True)
    for name in datasets.SPLITS:
        ranks = rng.integers(0, 100, (len(found.split(name)), unit_channels, 32, 32), np.uint8)
        np.save(outputs / f"{name}.npy", ranks)
    ranking = {name: np.load(outputs / f"{name}.npy", mmap_mode="c") for name in datasets.SPLITS}
    made = []
    for memory in (1.0, 1e-9):
        chosen = study.model_copy(update={"memory_gb": memory})
        model = train.train(chosen, found, 0, ranking["train"], 50)
        made.append((train.tested(chosen, model, found, ranking["test"], 50)["accuracy"], *model.state_dict().values()))
    assert made[0][0] == made[1][0]
    assert all(torch.equal(a, b) for a, b in zip(made[0][1:], made[1][1:], strict=True))
    few = Degraded("train", found, CPU, ranking["train"], 50, room=room(chosen, CPU))
    assert not few.resident and Degraded("train", found, CPU, ranking["train"], 50, room=10**7).resident


def test_streamed_batches_come_in_order_while_the_next_are_read():
    found = random_data(train=40)
    indices = list(torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(6))
    streamed = Degraded("train", found, CPU, room=0)
    resident = Degraded("train", found, CPU)
    for made, index in zip(streamed.batches(indices), indices, strict=True):
        wanted = resident.batch(index)
        assert torch.equal(made[0], wanted[0]) and torch.equal(made[1], wanted[1])
        assert made[0].is_contiguous(memory_format=torch.channels_last)


def test_flip_averaging_adds_the_mirror_images_logits():
    found = random_data(train=20, test=30)

    class Left(torch.nn.Module):
        """Class 1 if the left half is lighter, else class 0: undone by averaging with the mirror image."""

        def forward(self, x):
            lighter = x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3))
            return torch.stack([torch.full_like(lighter, -1e-4), lighter, *[torch.full_like(lighter, -9)] * 2], 1)

    images = Degraded("test", found, CPU)
    plain, both = (train.predict(tiny_study(), Left(), images, flip) for flip in (False, True))
    assert 5 < plain.sum() < 25 and (both == 1).all()  # the two halves' differences cancel to 0 > -2e-4


def test_where_images_will_be_is_said():
    found = random_data()
    assert placed(tiny_study(memory_gb=1.0), found.train).endswith("are kept on cpu")
    words = placed(tiny_study(memory_gb=1e-6), found.train, np.zeros((20, 1, 8, 8), np.uint8))
    assert "stream from the disk" in words and "0.00 GB" in words


@pytest.mark.parametrize("mode", ["remove", "keep-imputed", "mask"])
def test_predictions_are_the_same_from_the_disk_though_the_last_batch_is_short(mode):
    study, found = tiny_study(precision="float32"), random_data()
    ranking = np.random.default_rng(1).integers(0, 100, (len(found.test), 1, 8, 8), dtype=np.uint8)
    model = train.train(study.model_copy(update={"epochs": 1}), found, 0)
    resident, streamed = (Degraded("test", found, CPU, ranking, 50, mode, room) for room in (None, 0))
    assert not streamed.resident
    assert np.array_equal(train.predict(study, model, resident), train.predict(study, model, streamed))
