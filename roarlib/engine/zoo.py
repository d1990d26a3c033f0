"""Classifiers of other packages by name: torchvision's and timm's, given the images' size where they need it."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from roarlib.study.params import InputError

Size = tuple[int, int]  # height and width of the images, in px


TORCHVISION = torchvision.models.list_models(module=torchvision.models)  # names of its classifiers


def from_torchvision(name: str, size: Size) -> Callable:
    """The function (classes, channels) -> module of one of torchvision's classifiers, with random weights."""
    more: dict[str, Any] = {}
    if name.startswith("vit_"):
        _patches_fit(name, int(name.rpartition("_")[2]), size)
        more = {"image_size": size[0]}
    elif name.startswith("maxvit"):
        more = {"input_size": size}
    elif name in ("googlenet", "inception_v3"):  # else training would return auxiliary logits too
        more = {"aux_logits": False, "init_weights": True}

    def make(classes: int, channels: int) -> nn.Module:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes, **more)
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))  # made for RGB
        first.in_channels, first.weight = channels, nn.Parameter(first.weight[:, :channels].detach().clone())
        return model

    return make


def from_timm(name: str, size: Size) -> Callable:
    """The function (classes, channels) -> module of one of timm's models, with random weights; name without `timm:`.

    InputError where timm is missing or has no such model.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise InputError(f"timm:{name} needs timm: pip install -e '.[timm]'") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise InputError(f"timm has no model '{name}'" + (f"; did you mean {' or '.join(near)}?" if near else ""))

    def make(classes: int, channels: int) -> nn.Module:
        given = dict(pretrained=False, num_classes=classes, in_chans=channels)
        try:
            model = timm.create_model(name, img_size=size, **given)
        except TypeError:  # most convolutional ones have no such argument, and take any size
            return timm.create_model(name, **given)
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
        _patches_fit(f"timm:{name}", patch[0] if isinstance(patch, tuple) else patch, size)
        return model

    return make


def _patches_fit(name: str, patch: int, size: Size) -> None:
    if size[0] % patch or size[1] % patch:  # timm would silently leave out the rest of the image
        raise InputError(
            f"{name} cuts images into patches of {patch} px: both sides must be multiples of {patch} px, and the "
            f"images are {size[0]} x {size[1]}"
        )


def give_logits(model: nn.Module, args: tuple, out: Any) -> torch.Tensor | None:
    """A forward hook: the logits in Hugging Face's ModelOutput, a dict with "logits", or anything with `.logits`.

    A hook, not a module around the model, so that names of weights, attributes and the class stay the model's own.
    """
    return out.get("logits") if isinstance(out, dict) else getattr(out, "logits", None)
