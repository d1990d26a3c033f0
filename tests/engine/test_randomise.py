"""Rankings of a model with random weights: by hand on a linear model, and what small networks must show."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Net, random_data, tiny_study
from scipy.stats import spearmanr
from torch import nn

from roarlib.data.datasets import SPLITS
from roarlib.engine import models, randomise, store
from roarlib.engine.rank import Explainer
from roarlib.study.names import DEPTHS, asks_model, group_of


def linear(classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes))


def setting(monkeypatch, model, names, shape=(3, 8, 8), **changes):
    """An explainer of an untrained model, the study's estimators ranked by it; predictions are the labels."""
    monkeypatch.setitem(models.MODELS, "mine", model)
    study, data = tiny_study(estimators=names, model="mine", **changes), random_data(train=80, test=10, shape=shape)
    torch.manual_seed(5)
    net = models.build("mine", 4, shape).eval()
    explainer = Explainer(study, data, net, {split: data.split(split).labels for split in SPLITS})
    for group in {group_of(name) for name in names}:
        store.make(explainer, [name for name in names if group_of(name) == group])
    return explainer


def found(explainer, names, count=10):
    return dict(randomise.compare(explainer, names, count))


def test_a_linear_models_ranking_becomes_that_of_the_fresh_weights(outputs, monkeypatch):
    """GRAD is the weights of the predicted class: before and after they are known, and nothing else changes."""
    explainer = setting(monkeypatch, linear, ["grad"], (1, 8, 8))
    alike = found(explainer, ["grad"])
    torch.manual_seed(explainer.study.base_seed + 1)
    before, after = (net[1].weight.detach().numpy() for net in (explainer.model, models.build("mine", 4, (1, 8, 8))))
    labels = explainer.predictions["test"]
    wanted = [spearmanr(before[c], after[c]).statistic for c in labels]
    top = [np.intersect1d(before[c].argsort()[-19:], after[c].argsort()[-19:]).size / 19 for c in labels]  # 30 percent
    assert alike["grad", "pixel", "top0"]["rho"] == pytest.approx(1)
    assert alike["grad", "pixel", "top0"]["overlap"][29] == 1
    for depth in list(DEPTHS)[1:]:  # there is one layer
        assert alike["grad", "pixel", depth]["rho"] == pytest.approx(np.mean(wanted), abs=1e-2)  # in whole percents
        assert alike["grad", "pixel", depth]["overlap"][29] == pytest.approx(np.mean(top))


def test_layers_come_in_the_order_of_the_images_last_first():
    net = Net()
    names = randomise.layers(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert names == ["head", "body.3", "body.1", "body.0", "stem.1", "stem.0"]
    assert not any(module._forward_pre_hooks for module in net.modules())
    attention = nn.TransformerEncoderLayer(8, 2, 16)  # its out_proj is never called
    found = randomise.layers(attention, torch.zeros(1, 3, 8))
    assert found.index("linear1") < found.index("self_attn.out_proj") and len(found) == 6


def test_only_the_top_is_drawn_anew_and_its_norms_are_measured(outputs, monkeypatch):
    explainer = setting(monkeypatch, lambda *_: Net().float(), ["grad"])
    with torch.no_grad():
        for values in explainer.model.parameters():
            values.mul_(3)  # Net's own weights have one seed: let the fresh ones be others
    before = {k: v.clone() for k, v in explainer.model.state_dict().items()}
    half, whole = (randomise.randomised(explainer, share) for share in (50, 100))
    changed = {k.rpartition(".")[0] for k, v in half.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head", "body.3", "body.1"}  # three of six; below all is as it was
    assert all(torch.equal(v, before[k]) for k, v in explainer.model.state_dict().items())
    x = explainer.baseline("train:80")
    inside = whole.stem[0](x)
    torch.testing.assert_close(whole.stem[1].running_mean, inside.mean((0, 2, 3)), atol=0.02, rtol=0.02)
    torch.testing.assert_close(whole.stem[1].running_var, inside.var((0, 2, 3)), atol=0.02, rtol=0.1)
    assert not any(module.training for module in whole.modules())


def test_weights_that_two_names_share_are_drawn_anew_and_so_are_norms_without_weights(outputs, monkeypatch):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, affine=False), nn.ReLU())
            self.blocks, self.head = nn.ModuleList([block, block]), nn.Linear(3, 4)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

    explainer = setting(monkeypatch, lambda *_: Shared(), ["grad"])
    with torch.no_grad():
        explainer.model.blocks[0][1].running_var.fill_(1e6)
    before, after = (net.state_dict() for net in (explainer.model, randomise.randomised(explainer, 100)))
    assert not any(torch.equal(values, after[name]) for name, values in before.items() if values.is_floating_point())
    assert after["blocks.1.1.running_var"].max() < 100
    kept = randomise.randomised(explainer, 1).state_dict()  # norms without weights are no layers
    assert [name for name, values in before.items() if not torch.equal(values, kept[name])] == [
        "head.weight", "head.bias",
    ]  # fmt: skip


def test_guided_backprop_hardly_minds_random_weights_and_the_gradient_forgets_all(outputs, monkeypatch):
    """What Adebayo et al. (2018) saw on ImageNet, between two nets that have learnt nothing: it is the architecture."""
    explainer = setting(monkeypatch, models.resnet_tiny, ["grad", "gb"], (3, 16, 16))
    for depth, kept in (("top1", 0.8), ("top100", 0.4)):
        alike = {n: dict(randomise.compare(explainer, [n], 10, [depth]))[n, "pixel", depth] for n in ("grad", "gb")}
        assert alike["gb"]["rho"] > kept > 0.25 > abs(alike["grad"]["rho"])
        assert alike["gb"]["overlap"][9] > alike["grad"]["overlap"][9] + 0.15


def test_rows_do_not_depend_on_the_batch_and_random_is_the_floor(outputs, monkeypatch):
    names = ["grad-sgsq", "random"]
    explainer = setting(monkeypatch, lambda *_: Net().float(), names)
    one, other = found(explainer, names[:1]), found(replace(explainer, batch=12), names[:1])
    assert all(abs(one[key]["rho"] - other[key]["rho"]) < 2e-3 for key in one)
    assert 0.5 < one["grad-sgsq", "pixel", "top0"]["rho"] < 0.99  # other noise: a ceiling below 1
    floor = found(explainer, names[1:])
    assert all(abs(alike["rho"]) < 0.15 and abs(alike["overlap"][29] - 0.3) < 0.1 for alike in floor.values())


def test_whom_the_check_is_for():
    names = ["grad-sg-blur", "mine:f", "random", "maps:mine", "maps:mine-squared", "grad-recursive", "ig-mix25"]
    assert [name for name in names if asks_model(name)] == names[:3]
