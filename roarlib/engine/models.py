"""Classifiers by name: small residual nets of ours, any torchvision classifier, any `module:function` of the user's.

Every model maps normalised images (N, C, H, W) to pre-softmax logits (N, classes). ReLUs are modules, one a use.
"""

import copy
import difflib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from roarlib.study import own
from roarlib.study.names import USERS_OWN
from roarlib.study.params import InputError


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (at stride 1), and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Basic residual block (He et al., CVPR 2016): two 3 x 3 convolutions and a shortcut, projected where it must."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(True), *conv_bn(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
        self.relu = nn.ReLU(True)

    def forward(self, x):
        return self.relu(self.body(x) + self.shortcut(x))


class Scale(nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * self.by


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def resnet_tiny(classes: int, channels: int) -> nn.Module:
    """79,000 weights at 16-32-64 channels behind a stride-2 stem: a retraining takes seconds on one CPU core."""
    return nn.Sequential(
        *conv_bn(channels, 16, 3, 2),
        nn.ReLU(True),
        Residual(16, 16),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        *_head(64, classes),
    )


def resnet9(classes: int, channels: int) -> nn.Module:
    """Page's 9-layer residual net, the usual fast one on CIFAR-10 (DAWNBench, 2018): 6.6 million weights."""

    def down(inputs, outputs):
        return [*conv_bn(inputs, outputs), nn.ReLU(True), nn.MaxPool2d(2)]

    def residual(width):
        body = nn.Sequential(*conv_bn(width, width), nn.ReLU(True), *conv_bn(width, width), nn.ReLU(True))
        return Shortcut(body)

    return nn.Sequential(
        *conv_bn(channels, 64),
        nn.ReLU(True),
        *down(64, 128),
        residual(128),
        *down(128, 256),
        *down(256, 512),
        residual(512),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes, bias=False),
        Scale(0.125),
    )


class Shortcut(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


def resnet18(classes: int, channels: int) -> nn.Module:
    """ResNet-18 with the CIFAR stem (3 x 3, stride 1, no pooling), as the literature trains it on 32 x 32 images.

    For images of 64 pixels and more `build` takes torchvision's, which has the original stem (7 x 7, stride 2).
    """
    widths, layers = (64, 64, 128, 256, 512), []
    for stage, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers += [Residual(inputs, outputs, 1 if stage == 0 else 2), Residual(outputs, outputs)]
    return nn.Sequential(*conv_bn(channels, 64), nn.ReLU(True), *layers, *_head(512, classes))


# name -> function (classes, channels) -> module
MODELS: dict[str, Callable] = {"resnet-tiny": resnet_tiny, "resnet9": resnet9, "resnet18": resnet18}


def build(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A fresh model with random weights for images of `shape` (C, H, W), checked on one blank image.

    Weights come from torch's global generator: seed it before. Raises InputError for an unknown name and for a model
    that does not map a batch to (N, classes).
    """
    make = _torchvision(name) if name == "resnet18" and shape[1] >= 64 else constructor(name)
    try:
        model = make(classes, shape[0]).eval()
        with torch.no_grad():
            out = model(torch.zeros(2, *shape))
    except Exception as error:  # the user's code: anything may come of it
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"model {name} fails on images of shape {tuple(shape)}: {reason}") from error
    if not isinstance(out, torch.Tensor) or out.shape != (2, classes):
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(
            f"model {name} gives {got} for 2 images; the data has {classes} classes, so (2, {classes}) is needed"
        )
    return model.train()


def constructor(name: str) -> Callable:
    """The function (classes, channels) -> module behind a name; InputError for a name that is none."""
    if name in MODELS:
        return MODELS[name]
    if USERS_OWN.fullmatch(name):
        return own.load(name)
    import torchvision

    if name in torchvision.models.list_models(module=torchvision.models):
        return _torchvision(name)
    near = difflib.get_close_matches(name, [*MODELS, *torchvision.models.list_models()], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(
        f"unknown model '{name}'{hint} Known: {', '.join(MODELS)}, any torchvision classifier, or your own"
        " as module:function"
    )


def _torchvision(name: str) -> Callable:
    import torchvision

    return lambda classes, channels: torchvision.models.get_model(name, weights=None, num_classes=classes)


def folded(model: nn.Module) -> nn.Module:
    """A copy of the model with every batch norm folded into the convolution before it, for faster passes.

    The same function in evaluation mode up to rounding: w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta.
    A model that torch.fx cannot trace comes back as it is.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(model).eval())
    except Exception:  # tracing runs the user's forward on proxies: anything may come of it
        return model
    modules, calls = dict(traced.named_modules()), Counter(node.target for node in traced.graph.nodes)
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        conv, norm = modules[before.target], modules[node.target]
        alone = calls[before.target] == calls[node.target] == 1  # a module that is called twice must stay
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats and alone:
            parent, _, name = before.target.rpartition(".")
            setattr(modules[parent], name, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced.requires_grad_(False)


@functools.lru_cache(maxsize=2)  # a batch asks for each of its noisy copies
def stem_and_rest(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A traced model as rest(stem(images)), the stem its first convolution; (identity, model) where that is not so.

    The stem is affine: what lies on a straight line between images lies on one behind it as well. It is all that reads
    the images. The weights are the model's own.
    """
    inputs = model.graph.find_nodes(op="placeholder") if isinstance(model, fx.GraphModule) else []
    if len(inputs) != 1 or len(inputs[0].users) != 1:
        return nn.Identity(), model
    (first,) = inputs[0].users
    stem = model.get_submodule(first.target) if first.op == "call_module" else None
    if type(stem) is not nn.Conv2d or first.args != (inputs[0],):
        return nn.Identity(), model
    rest = fx.GraphModule(model, copy.deepcopy(model.graph))
    (passed,) = rest.graph.find_nodes(op="placeholder")[0].users
    passed.replace_all_uses_with(passed.args[0])
    rest.graph.erase_node(passed)
    rest.recompile()
    return stem, rest


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and back to what it was, whatever happens."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
