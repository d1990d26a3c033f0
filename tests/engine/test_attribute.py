import captum.attr
import pytest
import torch
from conftest import Net, tiny_study
from torch import nn

from roarlib.answers import patterns
from roarlib.engine import attribute, draws, estimators, models, rank
from roarlib.engine.attribute import Batch
from roarlib.study.names import BASES, CONTROLS, PAPER, REGISTERED
from roarlib.study.params import InputError

IDS = torch.tensor([4, 9, 2, 0, 7])
FIRST = torch.zeros(5, dtype=torch.int64)  # the first class
NAMES = [name for name in PAPER if name not in CONTROLS]


def images(dtype=torch.float64):
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def explained(model, names, batch=256, **changes):
    study = tiny_study(estimators=list(names), noise_samples=4, ig_steps=5).model_copy(update=changes)
    x = images()
    return attribute.explain(study, model, Batch(x, model(x).argmax(1), IDS), names, -1.5, batch)


def captums(model, base):
    """Captum's estimate of a base as a function of (images, targets)."""
    if base == "ig":
        return lambda x, t: captum.attr.IntegratedGradients(model).attribute(x, torch.full_like(x, -1.5), t, n_steps=5)
    if base == "gb":
        return lambda x, t: captum.attr.GuidedBackprop(model).attribute(x, t)
    return lambda x, t: captum.attr.Saliency(model).attribute(x, t, abs=False)


def same(ours, theirs):
    return (ours - theirs).norm() <= 1e-8 * theirs.norm()


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("base", BASES)
def test_all_six_of_a_base_equal_captum_under_the_same_noise(base):
    model, x = Net(), images()
    targets = model(x).argmax(1)
    theirs = captums(model, base)
    sigma = 0.15 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None]
    noisy = torch.stack([theirs(x + sigma * draws.normal(0, IDS, j, (3, 8, 8)), targets).detach() for j in range(4)])
    ours = explained(model, [n for n in NAMES if n.startswith(base)])
    assert same(ours[base], theirs(x, targets))
    assert same(ours[f"{base}-squared"], theirs(x, targets) ** 2)
    assert same(ours[f"{base}-sg"], noisy.mean(0))
    assert same(ours[f"{base}-sg-squared"], noisy.mean(0) ** 2)
    assert same(ours[f"{base}-sgsq"], noisy.square().mean(0))
    assert same(ours[f"{base}-var"], noisy.var(0, unbiased=False))


def test_gradient_of_a_linear_model_is_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    scores = explained(model, ["grad"])["grad"]
    targets = model(images()).argmax(1)
    assert torch.equal(scores, model[1].weight[targets].reshape(5, 3, 8, 8))


def test_integrated_gradients_sum_to_the_difference_of_logits_the_better_the_more_steps():
    model, x = Net(), images()
    targets = model(x).argmax(1)
    gap = (model(x) - model(torch.full_like(x, -1.5))).gather(1, targets[:, None])[:, 0]
    errors = [(explained(model, ["ig"], ig_steps=k)["ig"].sum((1, 2, 3)) - gap).abs().max() for k in (5, 25, 125, 625)]
    assert errors[3] < errors[1] < errors[0] and errors[3] < 0.02 * gap.abs().max()


def test_without_noise_smoothgrad_is_the_base_and_vargrad_is_nothing():
    scores = explained(Net(), NAMES, noise_level=0.0)
    for base in BASES:
        assert same(scores[f"{base}-sg"], scores[base])
        assert same(scores[f"{base}-sgsq"], scores[f"{base}-squared"])
        assert scores[f"{base}-var"].abs().max() < 1e-25 and scores[f"{base}-var"].min() >= 0


def test_variance_of_nearly_equal_estimates_does_not_cancel():
    study = tiny_study(noise_samples=15, noise_level=1e-6)
    x = images(torch.float32)

    def base(inputs):
        return 1000 + inputs.images  # variance sigma^2, a billionth of a millionth of the square of the mean

    found = attribute.sweep(base, Batch(x.double(), FIRST, IDS), {"var"}, study, 256)["var"]
    sigma = 1e-6 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))
    assert ((found.mean((1, 2, 3)).sqrt() / sigma / (14 / 15) ** 0.5 - 1).abs() < 0.05).all()


@pytest.mark.parametrize("batch", [1, 5, 7, 12, 1000])
def test_scores_do_not_depend_on_the_batch(batch):
    model = Net()
    wanted, found = explained(model, NAMES), explained(model, NAMES, batch=batch)
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-9, atol=1e-14) for n in NAMES)


@pytest.mark.parametrize("base, passes", [("grad", 1 + 4), ("gb", 1 + 4), ("ig", 5 + 5 * 4)])
def test_one_sweep_serves_all_six(base, passes):
    model, inputs = Net(), []
    study = tiny_study(estimators=NAMES, noise_samples=4, ig_steps=5)
    model.register_forward_pre_hook(lambda module, args: inputs.append(len(args[0])))
    family = [n for n in NAMES if n.startswith(base)]
    attribute.explain(study, model, Batch(images(), FIRST, IDS), family, 0.0, 256)
    assert sum(inputs) == 5 * passes


def test_guided_backprop_also_guides_functional_relus():
    torch.testing.assert_close(explained(Net(functional=True), ["gb"])["gb"], explained(Net(), ["gb"])["gb"])


def test_guided_backprop_is_not_silently_the_gradient():
    with pytest.raises(InputError, match="no ReLU"):
        explained(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.GELU()).double(), ["gb"])
    with pytest.raises(InputError, match="TorchScript"):
        explained(torch.jit.trace(Net(), images()), ["gb"])


@pytest.mark.parametrize("fail", [False, True])
def test_the_users_model_is_left_as_it_was(fail):
    model = Net().train()
    model.stem.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes, kinds = [m.training for m in model.modules()], [type(m) for m in model.modules()]
    if fail:
        model.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    study, x = tiny_study(estimators=NAMES), images()
    try:
        attribute.explain(study, model, Batch(x, FIRST, IDS), NAMES, 0.0, 256)
        assert not fail
    except RuntimeError as error:
        assert fail and "boom" in str(error)
    assert [m.training for m in model.modules()] == modes and [type(m) for m in model.modules()] == kinds
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    ]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not x.requires_grad


@pytest.mark.parametrize("precision, tf32", [("float32", False), ("bfloat16", True)])
def test_cudnn_stays_on_and_float32_means_float32(precision, tf32):
    """Only the switch for TF32 moves during a call, and moves back: cudnn.flags() by itself turns cuDNN off."""
    seen, cudnn = [], torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    study = tiny_study().model_copy(update={"attribution_precision": precision})
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model.register_forward_pre_hook(lambda *_: seen.append((cudnn.enabled, cudnn.allow_tf32)))
    attribute.explain(study, model, Batch(images(torch.float32), FIRST, IDS), ["grad"], 0.0, 256)
    assert seen == [(True, tf32)]
    assert before == (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)


def test_random_is_binomial_nested_and_the_same_in_any_batch():
    x = torch.zeros(300, 3, 8, 8)
    ids = torch.arange(300)
    ranking = estimators.random(None, x, None, ids=ids, seed=0)
    assert ranking.dtype == torch.uint8 and ranking.max() <= 99
    assert torch.equal(ranking[5:8], estimators.random(None, x[5:8], None, ids=ids[5:8], seed=0))
    counts = (ranking < 30).flatten(1).sum(1).double()
    assert abs(counts.mean() - 0.3 * 192) < 4 * (192 * 0.21 / 300) ** 0.5
    assert 0.8 < counts.var() / (192 * 0.21) < 1.25  # binomial, not an exact count


def test_sobel_by_hand():
    step = torch.zeros(1, 2, 5, 5)
    step[:, 0, :, 3:] = 1.0  # an upright edge in the first channel
    step[:, 1, 2:, :] = -2.0  # a lying edge of twice the height in the second, downwards
    found = estimators.sobel(None, step, None)
    assert found[0, 0, 2].tolist() == [0, 0, 4, 4, 0]
    assert found[0, 1, :, 2].tolist() == [0, 8, 8, 0, 0]
    assert (found >= 0).all()


def test_oracle_and_anti_oracle_rank_the_mask():
    masks = torch.zeros(5, 1, 8, 8, dtype=torch.bool)
    masks[:, :, :2] = True
    study = tiny_study(estimators=["oracle", "anti-oracle"])
    found = attribute.explain(study, nn.Identity(), Batch(images(), IDS, IDS, masks), study.estimators, 0.0, 256)
    assert torch.equal(found["oracle"], masks.double().expand(5, 3, 8, 8))
    assert torch.equal(found["anti-oracle"], 1 - found["oracle"])
    with pytest.raises(InputError, match="needs the masks"):
        attribute.explain(study, nn.Identity(), Batch(images(), IDS, IDS), ["oracle"], 0.0, 256)


def test_a_users_function_and_a_captum_class_by_name(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def edges(model, images, targets):\n    return images.abs()\n"
        "def flat(model, images, targets):\n    return images.sum((1, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = Net()
    found = explained(model, ["mine:edges", "mine:edges-sgsq", "captum:InputXGradient"])
    assert torch.equal(found["mine:edges"], images().abs())
    assert found["mine:edges-sgsq"].shape == (5, 3, 8, 8)
    assert same(found["captum:InputXGradient"], explained(model, ["grad"])["grad"] * images())
    with pytest.raises(InputError, match="scores of shape"):
        explained(model, ["mine:flat"])
    with pytest.raises(InputError, match="has no nothing"):
        explained(model, ["mine:nothing"])


@pytest.mark.parametrize("functional", [False, True])
def test_folded_batch_norms_change_nothing_but_the_cost(functional):
    model = Net(functional)
    lean = models.folded(model, images())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 2  # the user's model is not touched
    assert "batch_norm" not in str(lean.graph) and len([n for n in lean.graph.nodes if n.op == "call_module"]) < 11
    found, wanted = explained(lean, NAMES), explained(model, NAMES)
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-8, atol=1e-12) for n in NAMES)


def test_ig_passes_the_first_convolution_once_for_all_its_steps():
    lean = models.folded(Net(), images())
    (stem, rest), stems, rests = models.stem_and_rest(lean), [], []
    stem.register_forward_pre_hook(lambda module, args: stems.append(len(args[0])))
    rest.register_forward_pre_hook(lambda module, args: rests.append(len(args[0])))
    explained(lean, [n for n in NAMES if n.startswith("ig")])
    assert type(stem) is nn.Conv2d and sum(rests) == 5 * (5 + 5 * 4)
    # `explained` asks for the classes; then two calls pass images, reference, and one for the precision
    assert sum(stems) == 5 + (5 + 1 + 1) + (5 * 4 + 1 + 1)


def test_only_a_convolution_that_alone_reads_the_images_is_passed_once():
    class Around(Net):
        def forward(self, x):
            return super().forward(x) + x.mean((1, 2, 3))[:, None]

    class Scaled(Net):
        def forward(self, x):
            return super().forward(x * x)

    for kind in (Around, Scaled):
        model = kind()
        lean = models.folded(model, images())
        assert lean is not model and models.stem_and_rest(lean)[1] is lean
        assert torch.allclose(explained(lean, ["ig-sgsq"])["ig-sgsq"], explained(model, ["ig-sgsq"])["ig-sgsq"])
    assert models.stem_and_rest(model)[1] is model  # not traced


def test_a_model_that_cannot_be_traced_or_shares_its_layers_still_works():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(x)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3))

    model, shared = Branching(), Shared().double().eval()
    assert models.folded(model, images()) is model
    torch.testing.assert_close(models.folded(shared, images())(images()), shared(images()))


@pytest.fixture
def registered():
    yield
    estimators.BASES.pop("mine", None)
    REGISTERED.discard("mine")


def test_a_function_registered_in_a_notebook_is_an_estimator_with_its_ensembles(registered):
    with pytest.raises(ValueError, match="unknown estimator 'mine'"):
        tiny_study(estimators=["mine"])
    estimators.register("mine", lambda model, images, targets: 2 * images)
    found = explained(Net(), ["mine", "mine-var"])
    assert torch.equal(found["mine"], 2 * images()) and found["mine-var"].min() >= 0
    for taken in ("grad", "random", "paper", "clean", "My", "a-b"):
        with pytest.raises(InputError, match="cannot name an estimator"):
            estimators.register(taken, None)


def test_options_that_do_not_fit_are_named(tmp_path, monkeypatch):
    (tmp_path / "with_options.py").write_text("def f(model, images, targets, power=1):\n    return images**power\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(
        explained(Net(), ["with_options:f"], estimator_options={"with_options:f": {"power": 2}})["with_options:f"],
        images() ** 2,
    )
    with pytest.raises(InputError, match="with_options:f takes model, images, targets, power; .* give nope"):
        explained(Net(), ["with_options:f"], estimator_options={"with_options:f": {"nope": 3}})


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_captums_classes_by_name_with_arguments_from_the_study():
    model = Net()
    options = {"captum:Occlusion": {"sliding_window_shapes": [3, 2, 2], "strides": [3, 2, 2]}}
    names = ["captum:Occlusion", "captum:DeepLift"]
    found = explained(model, names, estimator_options=options)
    x, targets = images(), model(images()).argmax(1)
    occlusion = captum.attr.Occlusion(model).attribute(
        x, target=targets, sliding_window_shapes=(3, 2, 2), strides=(3, 2, 2)
    )
    assert same(found["captum:Occlusion"], occlusion)
    assert same(found["captum:DeepLift"], captum.attr.DeepLift(model).attribute(x, target=targets))
    with pytest.raises(ValueError, match="grad is no estimator of yours"):
        tiny_study(estimator_options={"grad": {"x": 1}})


@pytest.mark.parametrize("side", [32, 128])
def test_smoothed_random_has_solid_holes_at_every_size(side):
    """Random's ranking has 100 levels: a maximum filter over many pixels would find ties, and leave them scattered."""
    images, ids = torch.zeros(2, 1, side, side), torch.arange(2)
    ranking = estimators.random(None, images, None, ids=ids, seed=0)
    for variant in ("blur", "max"):
        scores = attribute.varied(f"random-{variant}", ranking, ids, 0)
        for percent in (10, 50, 90):
            removed = rank.rank(scores, ids, 0).numpy()[:, 0] < percent
            assert patterns.moran(removed).min() > 0.4
    assert attribute.varied("random-max", ranking[:1], ids[:1], 0).equal(
        attribute.varied("random-max", ranking, ids, 0)[:1]
    )
