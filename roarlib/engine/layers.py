"""Looking into a model while it runs: the layer that an estimator reads, its maps, and every ReLU."""

import difflib
from collections import Counter
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from roarlib.study.params import InputError


class Guided(TorchFunctionMode):
    """While active, every ReLU call, module or functional, in place or not, passes on only positive gradients.

    Calls are intercepted, so the model itself is not changed, and a ReLU that is used twice is guided each time.
    """

    RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}
    OTHERS = {"celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu6", "selu", "silu"}
    OTHERS |= {"clamp", "clamp_min", "softplus", "threshold"}

    def __init__(self):
        super().__init__()
        self.others = Counter()  # calls of other activations, by name: these are not guided
        self.guided = self.reached = 0  # ReLU calls, and gradients that reached one

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if (name := getattr(function, "__name__", "").rstrip("_")) in self.OTHERS:
            self.others[name] += 1
        if function in self.RELUS and out.requires_grad:
            out.register_hook(self.guide)
            self.guided += 1
        return out

    def guide(self, gradient):
        self.reached += 1
        return gradient.clamp(min=0)


def relus_are_modules(model: nn.Module, image: torch.Tensor) -> bool:
    """Whether the model calls ReLUs, and only as nn.ReLU modules, each of them once."""
    calls, relus = [], [module for module in model.modules() if isinstance(module, nn.ReLU)]
    with ExitStack() as hooks, Guided() as mode, torch.enable_grad():
        for module in relus:
            hooks.enter_context(module.register_forward_hook(lambda *_: calls.append(1)))
        model(image.detach().requires_grad_())
    return mode.guided == len(calls) == len(relus) > 0


class Mixing(TorchFunctionMode):
    """While active, notes calls of some names, and products of activations, outside of the modules that have a rule.

    It counts the calls of these modules. For scores that are passed back by rules: without one they would follow the
    gradient, and nobody would know.
    """

    BENT = Guided.OTHERS | {"tanh", "sigmoid", "hardsigmoid", "softsign", "softmax", "scaled_dot_product_attention"}
    BENT |= {"multi_head_attention_forward", "layer_norm", "group_norm", "instance_norm", "normalize"}
    WEIGHED = BENT | {"linear", "conv1d", "conv2d", "conv3d", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d"}
    WEIGHED |= {"interpolate", "matmul", "bmm", "einsum"}  # not relu and maxima, whose rule is their gradient
    CURVED = {"abs", "adaptive_max_pool2d", "addcmul", "amax", "amin", "clamp_max", "clip", "exp", "fmax"}
    CURVED |= {"fmin", "glu", "hardshrink", "log", "log1p", "log_sigmoid", "logsigmoid", "logsumexp"}
    CURVED |= {"lp_pool2d", "max", "max_pool1d", "max_pool2d", "max_pool3d", "maximum", "min", "minimum"}
    CURVED |= {"norm", "pow", "relu", "rms_norm", "rrelu", "rsqrt", "softmin", "softshrink", "sqrt", "square"}
    CURVED |= {"std", "tanhshrink", "var", "where"}
    PRODUCTS = {"mul", "imul", "rmul", "multiply", "div", "truediv", "itruediv", "divide"}  # if of two activations
    PRODUCTS |= {"matmul", "rmatmul", "bmm", "einsum"}

    def __init__(self, model: nn.Module, ruled: tuple[type, ...], names: set[str]):
        super().__init__()
        self.inside, self.found, self.hooks, self.names, self.calls = [], [], ExitStack(), names, Counter()
        for module in model.modules():
            if type(module) in ruled or isinstance(module, ruled) and not names & self.CURVED:
                self.hooks.enter_context(module.register_forward_pre_hook(lambda *_: self.inside.append(1)))
                self.hooks.enter_context(module.register_forward_hook(self._leave))

    def _leave(self, module, *_):
        self.inside.pop()
        self.calls[module] += 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "").strip("_")
        given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
        moving = [a for a in given if a.requires_grad and not a.is_leaf]
        if moving and not self.inside and (name in self.names or name in self.PRODUCTS and len(moving) > 1):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def refuse_mixing(
    what: str, model: nn.Module, image: torch.Tensor, ruled: tuple[type, ...], once: tuple = (), bent: bool = False
) -> None:
    """InputError if a model averages, multiplies, normalises or bends activations outside of modules of these types.

    once: those whose rule knows what came in last, so InputError if one is called twice in a pass. bent: averages and
    other linear functions are in order, but neither ReLUs nor maxima, nor subclasses of these types.
    """
    mixing = Mixing(model, ruled, Mixing.BENT | Mixing.CURVED if bent else Mixing.WEIGHED)
    with mixing.hooks, torch.enable_grad(), mixing:
        model(image.detach().requires_grad_() * 1)
    if mixing.found:
        raise InputError(
            f"{what} has rules for modules, and this model calls {', '.join(dict.fromkeys(mixing.found))} as functions "
            "or in modules without a rule: it would follow the gradient there"
        )
    names = {module: name for name, module in model.named_modules()}
    if again := [names[m] for m, times in mixing.calls.items() if times > 1 and isinstance(m, once)]:
        raise InputError(f"{what} knows one call of a module in a pass, and this model calls {again[0]} again")


def find(model: nn.Module, image: torch.Tensor, name: str | None = None) -> tuple[str, nn.Module]:
    """A layer by its dotted name, or the last one whose output is maps (N, K, h, w) with h w > 1: (name, module).

    image: (1, C, H, W). The last layer is the one that ends last in a pass, so of nested ones the outermost. InputError
    for an unknown name, if no layer has such an output, and for a layer that a pass does not call exactly once.
    """
    modules, calls, ended = {n: m for n, m in model.named_modules() if n}, [], []
    if name is not None and str(name) not in modules:
        near = difflib.get_close_matches(str(name), modules, 3) or [n for n, _ in model.named_children()]
        raise InputError(f"{type(model).__name__} has no layer '{name}'; it has {', '.join(near[:12])}")

    def note(module, args, out):
        calls.append(module)
        if isinstance(out, torch.Tensor) and out.ndim == 4 and out.shape[2:].numel() > 1 and like(out, image):
            ended.append(module)

    with ExitStack() as hooks, torch.no_grad():
        for module in modules.values():
            hooks.enter_context(module.register_forward_hook(note))
        model(image)
    ended = [module for module in ended if calls.count(module) == 1] or ended
    if name is None and not ended:
        raise InputError(f"no layer of {type(model).__name__} has spatial output, maps (N, K, h, w), to explain")
    name = next(n for n, m in modules.items() if m is ended[-1]) if name is None else str(name)
    if (times := calls.count(modules[name])) != 1:
        raise InputError(f"layer {name} is called {times} times in a pass; name one that is called once")
    return name, modules[name]


def like(out: torch.Tensor, images: torch.Tensor) -> bool:
    """Whether maps (N, K, h, w) have the images' proportions, to within a pixel; with channels last they do not."""
    (h, w), (height, width) = out.shape[2:], images.shape[2:]
    return abs(h * width - w * height) <= max(height, width)


def enlarged(what: str, out, images: torch.Tensor) -> torch.Tensor:
    """Maps (N, K, h, w) as one score per pixel, (N, 1, H, W): summed over K, then interpolated bilinearly.

    InputError for an output that is not such maps of the images.
    """
    if not isinstance(out, torch.Tensor) or out.ndim != 4:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise InputError(f"{what} gives {got}; maps (N, K, h, w) are needed")
    if not like(out, images):
        raise InputError(
            f"{what} gives {tuple(out.shape)} for images of {tuple(images.shape[2:])}, which are no maps (N, K, h, w) "
            "of them; channels seem to come last: name a layer whose output has channels first"
        )
    return F.interpolate(out.sum(1, keepdim=True).to(images.dtype), images.shape[2:], mode="bilinear")
