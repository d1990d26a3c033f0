"""Captum's methods by name: refused where they would silently be something else, and measured where they promise."""

import captum.attr
import pytest
import torch
from conftest import Net, random_data, tiny_study
from torch import nn
from torch.nn import functional as F

from roarlib.engine import attribute, draws, from_captum, models
from roarlib.engine.rank import Explainer
from roarlib.study.params import InputError


class Functional(Net):
    def forward(self, x):
        return self.head(self.pool(F.relu(self.stem(x) + self.body(self.stem(x)))).flatten(1))


class Mixed(Net):
    """Its ReLUs are modules, and one more is called as a method."""

    def forward(self, x):
        return super().forward(x).relu()


class Twice(nn.Module):
    """One module called twice, which Captum hooks once."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1).double(), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(self.relu(self.conv(x)))).mean((2, 3))


def explained(model, name, **options):
    study = tiny_study(estimators=[name], estimator_options={name: options} if options else {})
    torch.manual_seed(0)
    inputs = attribute.Batch(torch.randn(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    return attribute.explain(study, model, inputs, [name], 0.0, 4)[name]


@pytest.mark.parametrize("method", ["GuidedBackprop", "Deconvolution"])
@pytest.mark.parametrize(
    "kind", [Functional, Mixed, Twice, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()]
)
def test_methods_that_hook_relus_are_refused_where_they_cannot(method, kind):
    with pytest.raises(InputError, match=f"captum:{method} hooks nn.ReLU modules"):
        explained(kind(), f"captum:{method}")


@pytest.mark.parametrize("method", ["DeepLift", "DeepLiftShap", "LayerDeepLift"])
@pytest.mark.parametrize(
    "kind, says",
    [
        (Functional, "this model calls relu as functions"),
        (Mixed, "this model calls relu as functions"),
        (Twice, "knows one call of a module in a pass, and this model calls relu again"),
        (lambda: bending(nn.SiLU()), "this model calls silu as functions or in modules without a rule"),
        (lambda: bending(nn.ReLU6()), "calls (hardtanh|relu6)"),
        (lambda: bending(F.elu), "calls elu"),
        (lambda: bending(torch.tanh), "calls tanh"),
        (lambda: bending(lambda x: F.max_pool2d(x, 2, 1, 1)[:, :, 1:, 1:]), "calls max_pool2d"),
        (lambda: bending(lambda x: x * x.mean((2, 3), True)), "calls mul"),
        (lambda: bending(lambda x: x @ x), "calls matmul"),
        (lambda: bending(lambda x: x.amax((2, 3), True) + x), "calls amax"),
        (lambda: bending(lambda x: torch.maximum(x, -x)), "calls maximum"),
        (lambda: bending(lambda x: x**2), "calls pow"),
        (lambda: bending(nn.Tanhshrink()), "calls tanhshrink"),
        (lambda: bending(nn.Softshrink()), "calls softshrink"),
        (lambda: bending(nn.LogSigmoid()), "calls log_?sigmoid"),
        (lambda: bending(Own()), "calls (mul|relu)"),
    ],
)
def test_deeplift_is_refused_where_it_would_take_something_as_linear(method, kind, says):
    with pytest.raises(InputError, match=f"captum:{method} .*{says}"):
        explained(kind(), f"captum:{method}")


class Own(nn.ReLU):
    def forward(self, x):
        return super().forward(x) * x


def bending(activation):
    """A network with this activation, and more that Captum has a rule for."""

    class Bending(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.elu, self.own = nn.Conv2d(3, 4, 3, padding=1), nn.ELU(), activation
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.pool(self.own(self.elu(self.conv(x)))).mean((2, 3)))

    return Bending().double()


def test_deeplift_of_modules_that_it_has_rules_for_is_complete():
    torch.manual_seed(1)
    images, targets = torch.randn(8, 3, 8, 8).double(), torch.arange(8) % 4
    parts = nn.Conv2d(3, 4, 3), nn.ELU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 4)
    model = nn.Sequential(*parts).double()
    assert from_captum.gap("captum:DeepLift", {}, model, images, targets, lambda word: 0.0) < 1e-9


def test_deeplift_of_a_linear_model_is_allowed_and_exact():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    weights = model[1].weight.reshape(4, 3, 8, 8)[[0, 1, 2, 0]].detach()
    torch.manual_seed(0)  # as `explained` does
    wanted = weights * torch.randn(4, 3, 8, 8).double()
    torch.testing.assert_close(explained(model, "captum:DeepLift"), wanted)


def test_guided_backprop_of_captum_is_ours_where_it_can_hook():
    torch.testing.assert_close(explained(Net(), "captum:GuidedBackprop"), explained(Net(), "gb"))
    assert not any(module._forward_hooks for module in Net().modules())


def test_what_promises_completeness_is_measured():
    torch.manual_seed(1)
    images, targets, model = torch.randn(8, 3, 8, 8).double(), torch.arange(8) % 4, Net()

    def gap(name, **options):
        baseline_of = lambda word: images if word == "train:20" else 0.0  # noqa: E731
        with draws.seeded(0):  # Captum draws samples from NumPy's generator
            return from_captum.gap(name, options, model, images, targets, baseline_of)

    fine, coarse = gap("captum:IntegratedGradients", n_steps=200), gap("captum:IntegratedGradients", n_steps=2)
    assert 0 <= fine < 0.01 < coarse
    assert gap("captum:Saliency") is None and gap("grad") is None and gap("captum:InputXGradient") is None
    assert gap("captum:LayerIntegratedGradients", n_steps=200) < 0.01
    assert gap("captum:GradientShap", n_samples=1000) < 0.1  # a mean per image: single samples miss it by far
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double()
    assert gap("captum:DeepLiftShap") < 1e-9 and gap("captum:LayerDeepLiftShap") < 1e-9


REFUSED = {"DataLoaderAttribution", "FeaturePermutation", "LayerFeaturePermutation", "LimeBase", "NoiseTunnel"}
REFUSED |= {"ShapleyValues", "LLMAttribution", "LLMAttributionResult", "LLMGradientAttribution"}
REFUSED |= {"RemoteLLMAttribution", "RemoteLLMProvider"}


def test_every_class_of_captum_works_or_says_why_not():
    kinds = {name: kind for name in captum.attr.__all__ if isinstance(kind := getattr(captum.attr, name), type)}
    torch.manual_seed(0)
    found = dict(from_captum.table(Net(), torch.randn(3, 3, 8, 8).double(), torch.tensor([0, 1, 2])))
    assert found.keys() == kinds.keys()
    reasons = {*from_captum.REFUSED.values(), "is no method of attribution"}
    reasons.add("needs scikit-learn: pip install scikit-learn")
    assert set(found.values()) <= reasons | {"works"}
    sound = {name for name, kind in kinds.items() if hasattr(kind, "attribute") and not name.startswith("Neuron")}
    working = {name for name, answer in found.items() if answer == "works"}
    assert sound - REFUSED - set(from_captum.WITH_SKLEARN) <= working <= sound - REFUSED


def test_lrp_says_what_it_has_no_rule_for_however_often_it_is_asked():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double()
    for name in ("captum:LRP", "captum:LayerLRP", "captum:LRP"):
        with pytest.raises(InputError, match=f"{name} has no rule for modules of type Flatten"):
            explained(model, name)


@pytest.mark.parametrize("name", ["LayerGradCam", "LayerActivation", "LayerGradientXActivation", "LayerDeepLift"])
def test_layer_methods_are_captums_own_summed_and_enlarged(name):
    model, kind = Net(), getattr(captum.attr, name)
    torch.manual_seed(0)
    x, targets = torch.randn(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0])
    more = {} if name == "LayerActivation" else {"target": targets}
    maps = kind(model, model.pool).attribute(x, **more).sum(1, keepdim=True)  # (4, 1, 4, 4)
    wanted = F.interpolate(maps, (8, 8), mode="bilinear").expand_as(x)
    torch.testing.assert_close(explained(model, f"captum:{name}"), wanted)
    torch.testing.assert_close(explained(model, f"captum:{name}", layer="pool"), wanted)
    assert not torch.allclose(explained(model, f"captum:{name}", layer="body.0"), wanted)


def explainer_of(model, **changes):
    data = random_data(30, 10)
    return Explainer(tiny_study(**changes), data, model, {s: data.split(s).labels for s in ("train", "test")})


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_baselines_by_name():
    model = models.build("resnet-tiny", 4, (3, 8, 8)).eval()
    explainer = explainer_of(model)
    images = explainer._images("train", slice(0, 30))
    assert torch.equal(explainer.baseline("train:3"), images[[0, 14, 29]])
    assert len(explainer.baseline("train:20").unique(dim=0)) == 20 and len(explainer.baseline("train:99")) == 30
    assert (explainer.baseline("mean") == 0).all() and (explainer.baseline("black") == -2).all()  # mean 0.5, std 0.25
    targets = torch.from_numpy(explainer.predictions["train"][:3])

    def found(name, **options):
        own = explainer_of(model, estimators=[name], estimator_options={name: options} if options else {})
        return own.scores("train", slice(0, 3), [name])[name]

    x = images[:3].contiguous()
    black = captum.attr.IntegratedGradients(model).attribute(x, torch.full_like(x, -2), targets)
    torch.testing.assert_close(found("captum:IntegratedGradients", baselines="black"), black)
    assert torch.equal(found("captum:IntegratedGradients", baselines="mean"), found("captum:IntegratedGradients"))
    shap = captum.attr.DeepLiftShap(model).attribute(x, explainer.baseline("train:20"), targets)
    torch.testing.assert_close(found("captum:DeepLiftShap"), shap)
    assert not torch.equal(found("captum:GradientShap", baselines="black"), found("captum:GradientShap"))
    for name, word, says in [
        ("IntegratedGradients", "train:20", "takes one baseline, mean, black or grey, and not train:20"),
        ("DeepLiftShap", "black", "takes several baselines, such as train:20, and not black"),
        ("DeepLift", "white", "baselines: 'white' is not mean, black, grey or train:20"),
        ("GradientShap", "train:0", "'train:0' is not mean"),
    ]:
        with pytest.raises(InputError, match=says):
            found(f"captum:{name}", baselines=word)


def test_options_that_a_class_does_not_take_are_named():
    with pytest.raises(InputError, match="captum:Saliency takes abs, .*; its options give n_steps"):
        explained(Net(), "captum:Saliency", n_steps=3)
    plain = explained(Net(), "captum:IntegratedGradients")
    slopes = explained(Net(), "captum:IntegratedGradients", multiply_by_inputs=False)  # an option of the class itself
    torch.manual_seed(0)
    torch.testing.assert_close(slopes * torch.randn(4, 3, 8, 8).double(), plain)
