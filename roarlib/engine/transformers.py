"""Transformers: a small one of ours, and attention rollout, which explains any that has nn.MultiheadAttention."""

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn

from roarlib.study.params import InputError


class ViT(nn.Module):
    """A small vision transformer (Dosovitskiy et al., ICLR 2021) for images of 32 to 64 px, 138,000 weights.

    Patches of 4 x 4 px and a class token pass through four pre-norm layers of attention.

    Positions are sines and cosines of row and column, computed for the grid that comes in: sides of any multiple of 4
    px will do. A side of 32 makes 64 patches; one of 64 makes 256, which cost about six times as much.
    """

    def __init__(self, classes: int, channels: int, width: int = 64, layers: int = 4, heads: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(width))
        made = [
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        ]
        self.layers, self.norm, self.head = nn.Sequential(*made), nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise InputError(f"vit-tiny needs sides that are multiples of 4 px, not {x.shape[2]} x {x.shape[3]}")
        x = self.patches(x)  # (N, D, H/4, W/4)
        x = (x + places(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1).to(x.dtype), x], 1)  # (N, 1 + patches, D)
        return self.head(self.norm(self.layers(x)[:, 0]))


def places(x: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of rows, then of columns, in a quarter of the channels each: (D, H, W) for x (N, D, H, W)."""
    depth, height, width = x.shape[1:]
    rates = 100 ** -torch.linspace(0, 1, depth // 4, device=x.device)
    rows, columns = (torch.arange(k, device=x.device) * rates[:, None] for k in (height, width))  # (D/4, H or W)
    rows, columns = (torch.cat([angles.sin(), angles.cos()]) for angles in (rows, columns))
    grid = [rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)]
    return torch.cat(grid).to(x.dtype)


def rollout(model, images, targets):
    """Attention rollout (Abnar and Zuidema, ACL 2020): how much of every patch reaches the tokens that the logits read.

    Each layer counts as half its attention, the mean over its heads, and half the identity. What is read is the class
    token, first or last, or the mean of the patches. The class that is explained plays no part. Returns (N, 1, H, W),
    patches interpolated bilinearly. InputError for a model without nn.MultiheadAttention over patches, or with logits
    that read something else.
    """
    seen = _attentions(model, images)
    tokens = seen[0].shape[1]
    if any(attention.shape != (len(images), tokens, tokens) for attention in seen):
        raise InputError("rollout needs attention of the same tokens in all layers, not of windows or between others")
    height, width = images.shape[2:]
    token, rows, columns = _grid(tokens, height, width)
    read, last = _read(model, images[:4]), tokens - 1
    if len(read) == 1 and not (token and read <= {0, last}) or token and len(read) > 1 and read >= {0, last}:
        said = f"token {min(read)} of {tokens}" if len(read) == 1 else "a class token and patches alike"
        raise InputError(f"rollout needs logits that read a class token, first or last, or patches; here: {said}")
    behind = read == {last} or len(read) > 1 and last not in read and 0 in read  # the class token
    patches = slice(token * (not behind), tokens - token * behind)
    start = slice(None) if not token else patches if len(read) > 1 else [last if behind else 0]
    with torch.autocast(images.device.type, enabled=False):
        relevance = seen[0].new_zeros(len(images), 1, tokens)
        relevance[:, :, start] = 1
        relevance /= relevance.sum(2, keepdim=True)
        for attention in reversed(seen):
            relevance = (relevance @ (attention / attention.sum(2, keepdim=True)) + relevance) / 2
        maps = relevance[:, 0, patches].reshape(-1, 1, rows, columns)
        return F.interpolate(maps, (height, width), mode="bilinear")


def _attentions(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Attention (N, tokens, tokens), the mean over heads, of every nn.MultiheadAttention in the order of calls."""
    seen = []
    with torch.no_grad():
        _watched(model, images, lambda module, args, out: seen.append(out[1]))
    if not seen:
        raise InputError(
            f"rollout found no nn.MultiheadAttention in {type(model).__name__}: it explains vit-tiny, torchvision's "
            "vit_b_16 and the like; not Swin, timm's transformers, or networks without attention"
        )
    return [attention if attention.dtype == torch.float64 else attention.float() for attention in seen]


def _read(model: nn.Module, images: torch.Tensor) -> set[int]:
    """The numbers of the tokens that the logits of any of the images read behind the last attention.

    Empty where no gradient tells: constant logits, as of torchvision's heads before training, or a part that is frozen.
    """
    seen = []
    try:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            logits = _watched(model, images, lambda m, _, out: seen.append((out[0], m.batch_first)))
            weights = torch.arange(1, 1 + logits.shape[1]).to(logits)  # unequal, as logits may sum to a constant
            slopes = torch.autograd.grad((logits * weights).sum(), seen[-1][0], allow_unused=True)[0]
    except RuntimeError:
        slopes = None
    if slopes is None:
        return set()
    slopes = slopes if seen[-1][1] else slopes.transpose(0, 1)  # (N, tokens, D)
    return set(slopes.abs().sum((0, 2)).nonzero().flatten().tolist())


def _watched(model: nn.Module, images: torch.Tensor, keep: Callable) -> torch.Tensor:
    """Logits; `keep` is a hook of every nn.MultiheadAttention, whose output has its attention, the mean over heads."""

    def ask(module, args, kwargs):  # the caller may have declined the weights, for speed
        call = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs)
        call.arguments |= {"need_weights": True, "average_attn_weights": True}
        return call.args[1:], call.kwargs

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                hooks.enter_context(module.register_forward_pre_hook(ask, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(keep))
        return model(images)


def _grid(tokens: int, height: int, width: int) -> tuple[int, int, int]:
    """(1, rows, columns) of patches in the image's proportions after a class token, (0, rows, columns) without one.

    Both never fit: squares differ by more than 1, and so do their multiples.
    """
    for token in (0, 1):
        rows = max(1, round(math.sqrt((tokens - token) * height / width)))
        columns = round(rows * width / height)
        if rows * columns == tokens - token and rows * width == columns * height:
            return token, rows, columns
    raise InputError(
        f"rollout cannot place {tokens} tokens on images of {height} x {width} px, with or without a class's"
    )
