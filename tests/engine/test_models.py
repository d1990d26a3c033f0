import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from conftest import random_data, tiny_study
from torch import nn

from roarlib.engine import models, train
from roarlib.engine.rank import Explainer
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
    assert len(calls) == len(relus) and (relus or name == "vit-tiny")  # one module a use: Captum's hooks see them all


def test_sizes():
    count = {n: sum(p.numel() for p in models.build(n, 10, (3, 32, 32)).parameters()) for n in models.MODELS}
    tiny = {"resnet-tiny": 78_042, "resnet-tiny-strided": 78_042, "resnet-small": 223_322}
    assert count == tiny | {"resnet9": 6_573_120, "resnet18": 11_173_962, "vit-tiny": 137_866}


def test_a_torchvision_classifier_by_name():
    assert models.build("squeezenet1_1", 5, (3, 64, 64))(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "densenet121", "googlenet"])
def test_torchvisions_classifiers_take_grey_images(name):
    assert models.build(name, 5, (1, 64, 64))(torch.randn(2, 1, 64, 64)).shape == (2, 5)


def test_the_resnet18_for_small_images_is_ours_unless_torchvisions_is_asked_for():
    ours, theirs = (models.build(name, 10, (3, 32, 32)) for name in ("resnet18", "torchvision:resnet18"))
    assert ours[0].kernel_size == (3, 3) and models.build("resnet18", 10, (3, 128, 128)).conv1.stride == (2, 2)
    assert theirs.conv1.kernel_size == (7, 7) and theirs.conv1.stride == (2, 2)
    with pytest.raises(InputError, match="unknown model 'torchvision:resnet19'; did you mean"):
        models.build("torchvision:resnet19", 10, (3, 32, 32))


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_torchvisions_transformers_fit_small_images(name):
    assert models.build(name, 5, (3, 64, 64))(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_patches_must_divide_the_images():
    with pytest.raises(
        InputError, match="vit_b_16 cuts images into patches of 16 px: .* multiples of 16 px, .* 40 x 40"
    ):
        models.build("vit_b_16", 5, (3, 40, 40))
    with pytest.raises(InputError, match="vit-tiny needs sides that are multiples of 4 px, not 30 x 30"):
        models.build("vit-tiny", 5, (3, 30, 30))


def test_networks_with_auxiliary_heads_train_as_they_test():
    model = models.build("googlenet", 5, (3, 64, 64))
    assert model.training and model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


class Output(dict):
    """As Hugging Face's ModelOutput: a dict whose entries are attributes as well."""

    __getattr__ = dict.__getitem__


class Tuple(NamedTuple):
    logits: torch.Tensor
    others: torch.Tensor


OUTPUTS = {
    "ModelOutput": lambda y: Output(loss=None, logits=y),
    "dict": lambda y: {"logits": y},
    "named tuple": lambda y: Tuple(y, 2 * y),
}


class Wrapping(nn.Module):
    kind = "dict"

    def __init__(self, classes):
        super().__init__()
        self.conv, self.layer4, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(144, classes)

    def forward(self, x):
        return OUTPUTS[self.kind](self.head(self.layer4(self.conv(x)).flatten(1)))


@pytest.fixture
def wrapping(monkeypatch):
    """The model `wrapped:net`, whose outputs are no tensors."""

    def make(kind):
        monkeypatch.setattr(Wrapping, "kind", kind)
        monkeypatch.setitem(sys.modules, "wrapped", SimpleNamespace(net=lambda classes, channels: Wrapping(classes)))
        return "wrapped:net"

    return make


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_taken_out_of_outputs_that_are_no_tensors(wrapping, kind):
    model, x = models.build(wrapping(kind), 4, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), model.forward(x)["logits"] if kind != "named tuple" else model.forward(x).logits)
    assert type(model) is Wrapping and isinstance(model.layer4, nn.ReLU)
    assert set(model.state_dict()) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


def test_an_output_without_logits_is_named(wrapping, monkeypatch):
    monkeypatch.setitem(OUTPUTS, "none", lambda y: {"scores": y})
    with pytest.raises(InputError, match=r"gives dict for 2 images; the data has 4 classes"):
        models.build(wrapping("none"), 4, (3, 8, 8))


def test_such_a_model_is_trained_stored_and_explained(wrapping, outputs):
    study, data = tiny_study(model=wrapping("ModelOutput"), batch_size=5, epochs=2), random_data()
    model = train.train(study, data, 0)
    train.save_base(study, data, model)
    model, predictions = train.load_base(study, data)
    explainer = Explainer(study, data, model, predictions)
    assert explainer.folded is model
    found = explainer.scores("test", slice(0, 4), ["grad", "ig", "gb"])
    x = explainer._images("test", slice(0, 4)).requires_grad_()
    logits = model.forward(x).logits.gather(1, torch.from_numpy(predictions["test"][:4, None]))
    torch.testing.assert_close(found["grad"], torch.autograd.grad(logits.sum(), x)[0])
    assert found["ig"].abs().sum() > 0 < found["gb"].abs().sum()


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm:resnet10t needs timm: pip install -e '.\[timm\]'"):
        models.build("timm:resnet10t", 5, (3, 64, 64))


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="MODELS OF TIMM NOT TESTED: the package timm is missing")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_a_model_of_timms_by_name(timm, name):
    """Transformers are told the images' size, and grey images have one channel."""
    model = models.build(f"timm:{name}", 5, (1, 64, 64))
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)


def test_timms_patches_must_divide_the_images(timm):
    with pytest.raises(InputError, match="timm:vit_tiny_patch16_224 cuts images into patches of 16 px"):
        models.build("timm:vit_tiny_patch16_224", 5, (3, 40, 40))


def test_an_unknown_model_of_timms_gets_hints(timm):
    with pytest.raises(InputError, match="timm has no model 'resnet10'; did you mean .*resnet10t"):
        models.build("timm:resnet10", 5, (3, 64, 64))


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


def test_folding_is_judged_in_full_float32():
    """TF32, a GPU's default for convolutions, rounds far more than the folding, which would always be turned down."""
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
                seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(x)

    model = Watched(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert models.folded(model, torch.randn(2, 3, 8, 8)) is not model
    assert seen == [False]
