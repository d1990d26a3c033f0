"""Anybody's model and estimator: what is not ours gets the right answer, or an error; never a wrong one in silence."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from conftest import Net, random_data, tiny_study
from torch import nn

from roarlib.engine import attribute, models, rank, store, train
from roarlib.engine.rank import Explainer
from roarlib.study import rankings
from roarlib.study.params import InputError


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A function that writes the module `mine` for an estimator or a model."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        (tmp_path / "mine.py").write_text("import numpy as np\nimport torch\nfrom torch import nn\n" + code)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)


def explainer_of(model, shape=(3, 8, 8), count=20, **changes):
    data = random_data(count, 10, shape)
    predictions = {"train": np.arange(count) % 4, "test": np.arange(10) % 4}
    return Explainer(tiny_study(**changes), data, model, predictions)


def gradient(explainer):
    """GRAD of the first five training images by autograd, of the model itself in float64."""
    images = explainer._images("train", slice(0, 5)).double().requires_grad_()
    logits = explainer.model.double()(images)
    found = torch.autograd.grad(logits.gather(1, torch.arange(5)[:, None] % 4).sum(), images)[0]
    explainer.model.float()
    return found


class Plain(nn.Module):
    """A convolutional net in float32 whose last layer reads an activation of its own class."""

    class Squash(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), self.Squash()
        self.norm.running_mean.normal_(0, 0.3)
        self.norm.running_var.uniform_(0.5, 2)
        self.head = nn.Linear(8 * 64, 4)
        self.eval()

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).flatten(1))


def grey(module, args):
    return (args[0].mean(1, keepdim=True).expand_as(args[0]),)


HOOKS = {
    "of the model": lambda m: m.register_forward_pre_hook(grey),
    "of a convolution": lambda m: m.conv.register_forward_hook(lambda module, args, out: 2 * out),
    "of a batch norm": lambda m: m.norm.register_forward_hook(lambda module, args, out: out.abs()),
    "backward": lambda m: m.conv.register_full_backward_hook(lambda module, gi, go: (gi[0] * 3,)),
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.conv),
    "spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m.conv),
}


@pytest.mark.parametrize("where", HOOKS)
def test_hooks_and_parametrisations_count(where):
    model = Plain()
    HOOKS[where](model)
    explainer = explainer_of(model)
    found = explainer.scores("train", slice(0, 5), ["grad"])["grad"]
    torch.testing.assert_close(found.double(), gradient(explainer), rtol=1e-4, atol=1e-6)
    assert explainer.folded is explainer.model


def test_a_model_without_hooks_is_folded_and_a_random_one_is_not():
    class Noisy(Plain):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.rand_like(x))

    class Frozen(Plain):
        def forward(self, x):
            return super().forward(x * float(torch.rand(())))

    assert explainer_of(Plain()).folded is not explainer_of(Plain()).model
    for kind in (Noisy, Frozen):
        explainer = explainer_of(kind())
        assert explainer.folded is explainer.model


@pytest.mark.parametrize("where", ["everywhere", "features", "switched off"])
def test_a_model_with_an_autocast_of_its_own_is_not_folded(where):
    class Mixed(Plain):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16, enabled=where != "switched off"):
                x = self.act(self.norm(self.conv(x)))
                if where != "features":
                    return self.head(x.flatten(1))
            return self.head(x.float().flatten(1))

    explainer = explainer_of(Mixed())
    assert explainer.folded is explainer.model


def test_a_users_function_gets_the_very_model(mine):
    mine(
        "def cam(model, images, targets):\n"
        "    seen = []\n"
        "    hook = model.act.register_forward_hook(lambda module, args, out: seen.append(out))\n"
        "    model(images)\n"
        "    hook.remove()\n"
        "    assert type(model).__name__ == 'Plain' and type(model.act).__name__ == 'Squash'\n"
        "    return seen[0].mean(1)\n"
    )
    explainer = explainer_of(Plain())
    found = explainer.scores("train", slice(0, 5), ["mine:cam"])["mine:cam"]
    act = []
    explainer.model.act.register_forward_hook(lambda module, args, out: act.append(out))
    explainer.model(explainer._images("train", slice(0, 5)))
    torch.testing.assert_close(found[:, 0], act[0].mean(1))


VIEWS = {
    "view": "x.view(len(x), -1)",
    "view with numbers": "x.view(-1, 512)",
    "as_strided": "x.view(len(x), 8, 64).view(len(x), -1)",
}


@pytest.mark.parametrize("how", VIEWS)
def test_views_of_a_users_forward_work_everywhere(mine, outputs, how):
    mine(
        "class Viewing(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()\n"
        "        self.head = nn.Linear(512, 4)\n"
        "    def forward(self, x):\n"
        f"        x = self.relu(self.norm(self.conv(x)))\n        return self.head({VIEWS[how]})\n"
        "def net(classes, channels):\n    return Viewing()\n"
    )
    study, data = tiny_study(model="mine:net", batch_size=5, modes=["remove"]), random_data()
    model = train.train(study, data, 0)
    assert models.layout(model) == torch.contiguous_format
    train.save_base(study, data, model)
    model, predictions = train.load_base(study, data)
    explainer = Explainer(study, data, model, predictions)
    store.make(explainer, ["grad"])
    ranking = {split: rankings.load(study, "grad", "pixel", split) for split in ("train", "test")}
    again = train.train(study, data, 0, ranking["train"], 50)
    assert 0 <= train.tested(study, again, data, ranking["test"], 50)["accuracy"] <= 1


SPOILERS = {
    "in place": "    images.zero_()\n    return scores\n",
    "requires_grad_ and backward": (
        "    images.requires_grad_()\n    model(images).sum().backward()\n    return images.grad\n"
    ),
    "targets": "    targets.fill_(0)\n    return scores\n",
    "mode": "    model.train()\n    return scores\n",
}


@pytest.mark.parametrize("what", SPOILERS)
def test_what_an_estimator_does_to_its_inputs_changes_nothing_for_others(mine, what):
    mine("def f(model, images, targets):\n    scores = images.clone()\n" + SPOILERS[what])
    explainer = explainer_of(Plain(), noise_samples=2)
    wanted = explainer.scores("train", slice(0, 5), ["grad", "grad-sg"])
    for names in (["mine:f", "mine:f-sg", "grad", "grad-sg"], ["grad", "mine:f-sg", "mine:f", "grad-sg"]):
        found = explainer.scores("train", slice(0, 5), names)
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
        assert found["mine:f-sg"].isfinite().all()
    assert not explainer.model.training and all(p.grad is None for p in explainer.model.parameters())


@pytest.mark.parametrize(
    "draw", ["torch.rand_like(images)", "np.random.rand(*images.shape)", "images + torch.randn(())"]
)
def test_a_function_that_draws_gives_the_same_in_any_order(mine, draw):
    mine(f"def f(model, images, targets):\n    return {draw}\ndef g(model, images, targets):\n    return {draw}\n")
    explainer = explainer_of(Plain())
    torch.manual_seed(5)
    one = explainer.scores("train", slice(0, 5), ["mine:f", "mine:g"])
    other = explainer.scores("train", slice(0, 5), ["mine:g", "mine:f"])
    assert torch.equal(one["mine:f"], other["mine:f"])
    state = torch.random.get_rng_state()
    explainer.scores("train", slice(0, 5), ["mine:f"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_a_function_draws_for_a_batch_tells_neither_class_nor_seed(mine, outputs):
    """Files are sorted by class: batches in their order would each have one class, and one draw."""
    mine(
        "import torch\nSEEN, DRAWN = [], []\n"
        "def f(model, images, targets, *, ids):\n"
        "    SEEN.append(ids)\n    DRAWN.append(torch.rand(()).item())\n    return images * torch.rand(())\n"
    )
    explainer = explainer_of(Plain(), count=200, name="tiny", estimators=["mine:f-sg"], noise_samples=3)
    explainer.batch = 32
    for seed in (0, 1):
        study = explainer.study.model_copy(update={"base_seed": seed, "base_models": "each-seed"})
        store.make(dataclasses.replace(explainer, study=study), ["mine:f-sg"])
    module = sys.modules["mine"]
    spread = [int(ids.max() - ids.min()) for ids in module.SEEN if ids[0] < 200]
    assert min(spread) > 50 and len(module.SEEN) == 2 * (25 + 2)  # batches of 8, in one pass with noise
    rising = [(ids.diff() > 0).float().mean().item() for ids in module.SEEN if ids[0] < 200]
    assert 0.4 < sum(rising) / len(rising) < 0.6  # an image's place in its batch tells nothing either
    assert len(set(module.DRAWN)) == len(module.DRAWN)  # no call, batch or network has the draw of another


def test_masks_with_a_default_are_the_functions_own(mine):
    mine("def f(model, images, targets, masks=None, ids=None):\n    assert masks is ids is None\n    return images\n")
    assert explainer_of(Plain()).scores("train", slice(0, 5), ["mine:f"])["mine:f"].shape == (5, 3, 8, 8)


def test_what_the_user_writes_in_the_options_wins(mine):
    mine(
        "def f(model, images, targets, steps=3, seed=None, batch=1, reference=None, level=1):\n"
        "    f.got = steps, seed, batch, reference, level\n    return images\n"
        "f.got = None\n"
    )
    explainer = explainer_of(Plain(), estimators=["mine:f"], estimator_options={"mine:f": {"steps": 200, "batch": 7}})
    explainer.scores("train", slice(0, 5), ["mine:f"])
    steps, seed, batch, reference, level = sys.modules["mine"].f.got
    assert (steps, batch, seed, level) == (200, 7, 0, 1) and reference is not None


def test_defaults_of_a_function_are_its_own(mine):
    mine(
        "def f(model, images, targets, steps=200, seed=42, reference=0.0, batch=None):\n"
        "    f.got = steps, seed, reference, batch\n    return images\n"
    )
    explainer_of(Plain(), estimators=["mine:f"]).scores("train", slice(0, 5), ["mine:f"])
    *own, batch = sys.modules["mine"].f.got
    assert own == [200, 42, 0.0] and batch > 0


def test_squares_of_half_precision_are_not_0(mine):
    mine("def f(model, images, targets):\n    return (1e-5 * images).half()\n")
    found = explainer_of(Plain(), estimators=["mine:f"]).scores("train", slice(0, 5), ["mine:f-squared"])
    assert found["mine:f-squared"].dtype == torch.float32 and (found["mine:f-squared"] > 0).float().mean() > 0.9


MAPS = {
    "(N, 1, H, W)": "images.mean(1, keepdim=True)",
    "(N, H, W)": "images.mean(1)",
    "NumPy": "images.mean(1).numpy()",
    "float64": "images.mean(1).double()",
    "uint8": "(40 * images.mean(1)).clamp(-3, 3).add(100).to(torch.uint8)",
    "int64": "(1000 * images.mean(1)).long()",
    "bool": "images.mean(1) > 0",
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("unit", ["pixel", "value"])
def test_one_score_per_pixel_and_any_number_type(mine, kind, unit):
    mine(f"def f(model, images, targets):\n    return {MAPS[kind]}\n")
    explainer = explainer_of(Plain(), units=[unit])
    found = explainer.rankings("train", slice(0, 5), ["mine:f"], unit)["mine:f"]
    images = explainer._images("train", slice(0, 5)).mean(1)
    score = {
        "uint8": (40 * images).clamp(-3, 3).add(100).to(torch.uint8).double(),
        "int64": (1000 * images).long().double(),
        "bool": (images > 0).double(),
    }.get(kind, images).numpy()
    assert found.shape == (5, 1 if unit == "pixel" else 3, 8, 8)
    for ranking, scores in zip(found, score, strict=True):  # never is a lower score ranked before a higher one
        first, last = ranking.max(0), ranking.min(0)
        low, high = np.meshgrid(scores.ravel(), scores.ravel())
        before = first.ravel()[None] < last.ravel()[:, None]
        assert not (before & (low < high)).any()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_function_may_write_all_its_maps_into_one_array(mine, kind):
    """Its noisy maps would overwrite the plain one before that is ranked."""
    out = {"numpy": "np.zeros((9, 8, 8), np.float32)", "torch": "torch.zeros(9, 8, 8)"}[kind]
    mine(
        f"OUT = {out}\n"
        "def f(model, images, targets):\n    found = OUT[: len(images)]\n"
        "    found[:] = images.sum(1).numpy() if isinstance(found, np.ndarray) else images.sum(1)\n    return found\n"
    )
    images = torch.randn(5, 3, 8, 8)
    inputs = attribute.Batch(images, torch.zeros(5, dtype=torch.int64), torch.arange(5))
    names = ["mine:f", "mine:f-sgsq"]
    found = attribute.explain(tiny_study(estimators=names), Net().float(), inputs, names, 0.0, 5)
    torch.testing.assert_close(found["mine:f"], images.sum(1, keepdim=True).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("scale", [1e-60, 1e60, 1e-300, 1.0])
def test_scores_are_ranked_in_their_own_precision(scale):
    torch.manual_seed(0)
    scores = torch.randperm(192, dtype=torch.float64).reshape(1, 3, 8, 8)
    ids = torch.zeros(1, dtype=torch.int64)
    assert torch.equal(rank.rank(scores * scale, ids, 0), rank.rank(scores.float(), ids, 0))
    close = 1 + scores * 1e-12  # equal in float32
    assert torch.equal(rank.rank(close, ids, 0), rank.rank(scores.float(), ids, 0))


def test_ties_in_float64_are_broken_by_chance_and_not_by_place():
    ids = torch.arange(200)
    found = rank.rank(torch.zeros(200, 1, 4, 5, dtype=torch.float64), ids, 3).flatten(1).double()
    assert torch.equal(found, rank.rank(torch.zeros(200, 1, 4, 5), ids, 3).flatten(1).double())
    assert (found.mean(0) - found.mean()).abs().max() < 10


@pytest.mark.parametrize("share, fits", [(0.25, True), (0.5, True), (0.75, False)])
def test_constant_maps_are_counted_over_the_whole_split(mine, outputs, share, fits):
    """The first images may be all right, as in a folder sorted by class."""
    mine(
        "def f(model, images, targets, ids):\n"
        f"    dead = (ids % (1 << 40)) >= {1 - share} * 200\n"
        "    return images * ~dead[:, None, None, None]\n"
    )
    explainer = explainer_of(Plain(), count=200, estimators=["mine:f", "mine:f-abs"])
    explainer.predictions["train"] = np.arange(200) % 4
    if not fits:
        with pytest.raises(InputError, match=r"mine:f gives every input of an image the same score in 1\d\d of 200"):
            store.make(explainer, ["mine:f", "mine:f-abs"])
        return
    made = store.make(explainer, ["mine:f", "mine:f-abs"])
    assert made["constant"]["mine:f", "pixel"] == pytest.approx(200 * share / 210)
    assert store.make(explainer, ["mine:f", "mine:f-abs"])["constant"] == made["constant"]  # nothing left to do


def test_shared_weights_are_saved_and_loaded(mine, outputs):
    mine(
        "class Sharing(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))\n"
        "        self.features = self.net[:3]\n"
        "    def forward(self, x):\n        return self.net[3](self.features(x))\n"
        "def net(classes, channels):\n    return Sharing()\n"
    )
    study, data = tiny_study(model="mine:net", batch_size=5), random_data()
    model = train.train(study, data, 0)
    train.save_base(study, data, model)
    loaded, _ = train.load_base(study, data)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_float64_nets_are_explained_as_they_are():
    scores = attribute.explain(
        tiny_study(), Net(), attribute.Batch(torch.randn(2, 3, 8, 8).double(), torch.tensor([0, 1]), torch.arange(2)),
        ["grad"], 0.0, 8,
    )  # fmt: skip
    assert scores["grad"].dtype == torch.float64


def test_an_edit_between_two_splits_ranks_both_anew(mine, outputs):
    """No row exists yet, so nothing else would notice."""
    code = "def f(model, images, targets):\n    return {}images\n"
    mine(code.format(""))
    explainer, seen = explainer_of(Plain(), estimators=["mine:f"]), []

    def stop(done, total):
        seen.append(done)
        if done > 20:
            raise KeyboardInterrupt

    explainer.batch = 20  # five images at a time
    with pytest.raises(KeyboardInterrupt):
        store.make(explainer, ["mine:f"], stop)
    train_ = np.array(rankings.load(explainer.study, "mine:f", "pixel", "train"))
    mine(code.format("-"))
    store.make(explainer, ["mine:f"])
    again = np.array(rankings.load(explainer.study, "mine:f", "pixel", "train"))
    assert (again != train_).mean() > 0.5
    wanted = explainer.rankings("train", slice(0, 20), ["mine:f"], "pixel")["mine:f"]
    assert np.array_equal(again, wanted)
