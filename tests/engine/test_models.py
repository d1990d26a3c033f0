import pytest
import torch
from torch import nn

from roarlib.engine import models
from roarlib.study.params import InputError


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_ours_map_a_batch_to_logits_and_have_relu_modules_of_their_own(name, shape):
    model = models.build(name, 7, shape)
    assert model(torch.randn(3, *shape)).shape == (3, 7) and model.training
    relus, calls = [m for m in model.modules() if isinstance(m, nn.ReLU)], []
    for relu in relus:
        relu.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, *shape))
    assert len(calls) == len(relus) > 0  # one module a use: Captum's hooks see them all


def test_sizes():
    count = {n: sum(p.numel() for p in models.build(n, 10, (3, 32, 32)).parameters()) for n in models.MODELS}
    tiny = {"resnet-tiny": 78_042, "resnet-tiny-strided": 78_042, "resnet-small": 223_322}
    assert count == tiny | {"resnet9": 6_573_120, "resnet18": 11_173_962}


def test_a_torchvision_classifier_by_name():
    assert models.build("squeezenet1_1", 5, (3, 64, 64))(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_a_users_model_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def good(classes, channels):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
        "def wrong(classes, channels):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes + 1))\n"
        "def takes_none():\n    pass\n"
        "def broken(classes, channels):\n    return nn.Linear(5, 5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert models.build("my_models:good", 4, (3, 8, 8))(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    with pytest.raises(InputError, match=r"gives \(2, 5\) for 2 images; the data has 4 classes"):
        models.build("my_models:wrong", 4, (3, 8, 8))
    with pytest.raises(InputError, match="my_models:broken fails on images of shape"):
        models.build("my_models:broken", 4, (3, 8, 8))
    with pytest.raises(InputError, match="my_models:takes_none fails"):
        models.build("my_models:takes_none", 4, (3, 8, 8))
    (tmp_path / "typo.py").write_text("def net(:")
    with pytest.raises(InputError, match="cannot import typo .SyntaxError"):
        models.build("typo:net", 4, (3, 8, 8))
    with pytest.raises(InputError, match="my_models has no nothing"):
        models.build("my_models:nothing", 4, (3, 8, 8))
    with pytest.raises(InputError, match="cannot import no_such_module"):
        models.build("no_such_module:good", 4, (3, 8, 8))


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(InputError, match="unknown model 'resnet-tyni'; did you mean resnet-tiny?"):
        models.build("resnet-tyni", 10, (3, 32, 32))


def test_resnet18_has_the_stem_that_suits_the_images():
    assert models.build("resnet18", 10, (3, 32, 32))[0].stride == (1, 1)
    large = models.build("resnet18", 10, (3, 128, 128))
    assert large.conv1.stride == (2, 2) and large.conv1.kernel_size == (7, 7)
