"""Classifiers by name: small nets of ours, torchvision's and timm's, any `module:function` of the user's.

Every model maps normalised images (N, C, H, W) to pre-softmax logits (N, classes). In ours, each ReLU is a module.
"""

import copy
import difflib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.parametrize import is_parametrized

from roarlib.engine import zoo
from roarlib.engine.transformers import ViT
from roarlib.study import own
from roarlib.study.params import InputError


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (at stride 1), and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class Blur(nn.Module):
    """Halves the size with the binomial filter [1 3 3 1] in both directions (Zhang, ICML 2019).

    Every input pixel has the same total weight. A 3 x 3 convolution of stride 2 does not grant that, so it prints a
    lattice on gradients, and rankings inherit it. Never in bfloat16: processors have no fast depthwise bfloat16.
    """

    def __init__(self, channels: int):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", (taps[:, None] * taps).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            return F.conv2d(x, self.kernel.to(x.dtype), stride=2, padding=1, groups=x.shape[1])


class Residual(nn.Module):
    """Basic residual block (He et al., CVPR 2016): two 3 x 3 convolutions and a shortcut, projected if sizes differ.

    down: first blur and halve the input. stride: of the first convolution and the shortcut, as an alternative.
    """

    def __init__(self, inputs: int, outputs: int, down: bool = False, stride: int = 1):
        super().__init__()
        self.down = Blur(inputs) if down else nn.Identity()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(True), *conv_bn(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
        self.relu = nn.ReLU(True)

    def forward(self, x):
        x = self.down(x)
        return self.relu(self.body(x) + self.shortcut(x))


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def resnet_tiny(classes: int, channels: int, widths=(16, 32, 64)) -> nn.Module:
    """78,000 weights at 16-32-64 channels behind a blurred stem: a retraining takes seconds on one CPU core."""
    stem = [*conv_bn(channels, 16), nn.ReLU(True), Blur(16), Residual(16, widths[0])]
    blocks = [Residual(i, o, down=True) for i, o in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, *_head(widths[-1], classes))


def resnet_tiny_strided(classes: int, channels: int) -> nn.Module:
    """resnet-tiny with convolutions of stride 2 in stem and blocks, which print a lattice; for comparison."""
    stem = [*conv_bn(channels, 16, 3, 2), nn.ReLU(True)]
    blocks = [Residual(16, 16), Residual(16, 32, stride=2), Residual(32, 64, stride=2)]
    return nn.Sequential(*stem, *blocks, *_head(64, classes))


def resnet9(classes: int, channels: int) -> nn.Module:
    """Page's 9-layer residual net (DAWNBench, 2018) with blurs in place of its poolings: 6.6 million weights."""

    def conv(inputs, outputs):
        return [*conv_bn(inputs, outputs), nn.ReLU(True)]

    def shortcut(width):
        return Shortcut(nn.Sequential(*conv(width, width), *conv(width, width)))

    down = [*conv(64, 128), Blur(128), shortcut(128), *conv(128, 256), Blur(256), *conv(256, 512), Blur(512)]
    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(512, classes, bias=False), Scale(0.125)]
    return nn.Sequential(*conv(channels, 64), *down, shortcut(512), *head)


class Shortcut(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Scale(nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * self.by


def resnet18(classes: int, channels: int) -> nn.Module:
    """ResNet-18 with the CIFAR stem (3 x 3, stride 1, no pooling) and blurs before its strides, for 32 x 32 images.

    For images of 64 pixels and more `build` takes torchvision's, which has the original stem (7 x 7, stride 2);
    `torchvision:resnet18` is that one at any size.
    """
    layers = [Residual(64, 64), Residual(64, 64)]
    for inputs, outputs in pairwise((64, 128, 256, 512)):
        layers += [Residual(inputs, outputs, down=True), Residual(outputs, outputs)]
    return nn.Sequential(*conv_bn(channels, 64), nn.ReLU(True), *layers, *_head(512, classes))


# name -> function (classes, channels) -> module
MODELS: dict[str, Callable] = {
    "resnet-tiny": resnet_tiny,
    "resnet-small": functools.partial(resnet_tiny, widths=(16, 32, 64, 96)),  # 223,000 weights: for 64 px and more
    "resnet9": resnet9,
    "resnet18": resnet18,
    "resnet-tiny-strided": resnet_tiny_strided,
    "vit-tiny": ViT,
}


def build(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A fresh model with random weights for images of `shape` (C, H, W), checked on blank images, in its `layout`.

    Weights come from torch's global generator: seed it first. Raises InputError for an unknown name and for a model
    that does not map a batch to (N, classes); logits are extracted from the outputs of Hugging Face's models.
    """
    make = constructor(name, shape[1:])
    with own.told(f"model {name} fails on images of shape {tuple(shape)}"):
        if not isinstance(model := make(classes, shape[0]), nn.Module):
            raise InputError(f"model {name} gives a {type(model).__name__}, and not a torch.nn.Module")
        model, blank = model.eval(), torch.zeros(2, *shape)
        with torch.no_grad():
            if not isinstance(out := model(blank), torch.Tensor):
                model.register_forward_hook(zoo.give_logits)
                out = model(blank)
            try:
                model.to(memory_format=torch.channels_last)(blank.contiguous(memory_format=torch.channels_last))
            except RuntimeError:  # for instance x.view(-1, 400), which needs channels first
                model.to(memory_format=torch.contiguous_format).roar_layout = torch.contiguous_format
    if not isinstance(out, torch.Tensor) or out.shape != (2, classes):
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(
            f"model {name} gives {got} for 2 images; the data has {classes} classes, so (2, {classes}) is needed"
        )
    return model.train()


def layout(model: nn.Module) -> torch.memory_format:
    """The memory format of the model's images: channels last, which is faster, unless `build` found that this fails."""
    return getattr(model, "roar_layout", torch.channels_last)


def constructor(name: str, size: tuple[int, int]) -> Callable:
    """The function (classes, channels) -> module behind a name, for images of this size; InputError if unknown."""
    if name in MODELS and not (name == "resnet18" and size[0] >= 64):
        return MODELS[name]
    if name.startswith("timm:"):
        return zoo.from_timm(name.removeprefix("timm:"), size)
    if own.is_own(name):
        return own.load(name)
    if (theirs := name.removeprefix("torchvision:")) in (known := zoo.TORCHVISION):
        return zoo.from_torchvision(theirs, size)
    hint = f"; did you mean {near[0]}?" if (near := difflib.get_close_matches(theirs, [*MODELS, *known], 1)) else ""
    raise InputError(
        f"unknown model '{name}'{hint} Known: {', '.join(MODELS)}, torchvision's (torchvision:NAME), timm:NAME, or"
        " your own as module:function"
    )


def folded(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy of the model with every batch norm folded into the convolution before it, for faster passes.

    The same function in evaluation mode up to rounding: w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta.
    The model itself is returned if the copy might be another function: if torch.fx cannot trace it, it has hooks or
    parametrisations, or the two disagree on these few images (normalised, (N, C, H, W)), in float64 or in precision.
    """
    try:
        exact = copy.deepcopy(model).double().eval()
        same = not _hooked(model) and _same(exact, _fold(copy.deepcopy(exact)), images.double())
        lean = _fold(copy.deepcopy(model).eval())
        return lean if same and _as_precise(copy.deepcopy(model).eval(), lean, images) else model
    except Exception:  # tracing runs the user's forward on proxies, which may raise anything
        return model


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Blur) or super().is_leaf_module(module, name)  # its autocast must not be lost


def _hooked(model: nn.Module) -> bool:
    """Whether calling the model runs more than its forward: hooks of any kind, weight_norm and the like among them."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.modules())
    return any(getattr(m, kind) for m in modules for kind in kinds) or any(map(is_parametrized, modules))


def _fold(model: nn.Module) -> fx.GraphModule:
    lean = fuse(fx.GraphModule(model, _Tracer().trace(model)), no_trace=True)  # its own trace would enter Blur
    lean = fx.GraphModule(lean, lean.graph, type(model).__name__)
    lean.roar_folded = True
    return lean.requires_grad_(False)


def _same(model: nn.Module, other: nn.Module, images: torch.Tensor) -> bool:
    """Whether two models in float64 give the same logits and input gradients, to a billionth of the largest."""
    found = []
    for net in (model, model, other):  # the model twice: its forward may draw random numbers
        x = images.detach().requires_grad_()
        logits = net(x)
        found.append((logits, torch.autograd.grad(logits.square().sum(), x)[0]))
    pairs = [pair for one in found[1:] for pair in zip(found[0], one, strict=True)]
    return all(bool((a - b).abs().max() <= 1e-9 * a.abs().max()) for a, b in pairs)


@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 rounds far more than is allowed here
def _as_precise(model: nn.Module, other: nn.Module, images: torch.Tensor) -> bool:
    """Whether two models compute in the same precision, alone and under autocast; tracing drops a model's own."""
    for half in (False, True):
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            a, b = model(images), other(images)
        if a.dtype != b.dtype or not half and bool((a - b).abs().max() > 1e-4 * a.abs().max()):
            return False
    return True


@functools.lru_cache(maxsize=2)  # called again for every noisy copy of a batch
def stem_and_rest(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A folded model as rest(stem(images)), the stem being its first convolution; else (identity, model).

    The stem is affine: a straight line between images is a straight line behind it as well. Nothing else reads the
    images. The weights are the model's own.
    """
    inputs = model.graph.find_nodes(op="placeholder") if getattr(model, "roar_folded", False) else []
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
    """Every module in evaluation mode; afterwards modes and weights' gradients are restored, whatever happens."""
    modes, grads = [(m, m.training) for m in model.modules()], [(p, p.grad) for p in model.parameters()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in grads:
            parameter.grad = gradient
