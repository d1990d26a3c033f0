"""Captum's methods by name: refused where they would silently be something else, and measured where they promise."""

import pytest
import torch
from conftest import Net, tiny_study
from torch import nn
from torch.nn import functional as F

from roarlib.engine import attribute, estimators
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


def test_guided_backprop_of_captum_is_ours_where_it_can_hook():
    torch.testing.assert_close(explained(Net(), "captum:GuidedBackprop"), explained(Net(), "gb"))
    assert not any(module._forward_hooks for module in Net().modules())


def test_what_promises_completeness_is_measured():
    torch.manual_seed(1)
    images, targets, model = torch.randn(8, 3, 8, 8).double(), torch.arange(8) % 4, Net()

    def gap(name, **options):
        return estimators.gap(name, options, model, images, targets)

    fine, coarse = gap("captum:IntegratedGradients", n_steps=200), gap("captum:IntegratedGradients", n_steps=2)
    assert 0 <= fine < 0.01 < coarse
    assert gap("captum:Saliency") is None and gap("grad") is None and gap("captum:InputXGradient") is None
