"""Random crops and flips of degraded images, vectorised on the device; drawn on the CPU, so the same on all devices."""

import math

import torch
import torch.nn.functional as F

AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of a random-area crop, as the paper's and torchvision's


def augment(images: torch.Tensor, kind: str, generator: torch.Generator, fill=None) -> torch.Tensor:
    """Augment images that are already degraded, (N, C, H, W) to the same shape. Beyond the edge is `fill`, (C,), or 0.

    kind: `none`; `crop`, shifts by up to 4 pixels; `crop-flip`, also mirrored with probability 1/2; `area-flip`, a crop
    of 8 to 100 percent of the area, stretched to the image's size (Szegedy et al., CVPR 2015), and mirrored likewise.
    """
    if kind == "none":
        return images
    if fill is not None:  # None: zeros
        return augment(images - fill[:, None, None], kind, generator) + fill[:, None, None]
    if kind == "area-flip":
        return _area_flip(images, generator)
    (count, channels, height, width), pad = images.shape, 4
    draws = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    padded = F.pad(images, (pad,) * 4).permute(0, 2, 3, 1).contiguous()  # (N, H + 8, W + 8, C)
    # A row of a crop is a run of W x C numbers in memory: all runs that start at a pixel, of which N x H are taken.
    runs = padded.as_strided((padded.numel() // channels - width + 1, width * channels), (channels, 1))
    rows = torch.arange(count)[:, None] * (height + 2 * pad) + draws[0] + torch.arange(height)  # (N, H)
    starts = (rows * (width + 2 * pad) + draws[1]).flatten().to(images.device)
    crops = runs.index_select(0, starts).view(count, height, width, channels)
    if kind == "crop-flip":
        crops = torch.where(flip[:, :, None, None].to(images.device), crops.flip(2), crops)
    return crops.permute(0, 3, 1, 2)


def _area_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = images.shape
    top, left, tall, wide = boxes(count, height, width, generator)
    flip = torch.rand(count, generator=generator) < 0.5
    rows = _samples(top, tall, height)  # (N, H), pixels
    columns = _samples(left, wide, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    grid = torch.stack(
        [
            ((2 * columns + 1) / width - 1)[:, None, :].expand(count, height, width),
            ((2 * rows + 1) / height - 1)[:, :, None].expand(count, height, width),
        ],
        dim=-1,
    )
    return F.grid_sample(images, grid.to(images.device), align_corners=False, padding_mode="border")


def _samples(start: torch.Tensor, length: torch.Tensor, size: int) -> torch.Tensor:
    """Positions of `size` evenly spaced samples of [start, start + length): (N, size), in pixels, never outside it."""
    at = start[:, None] + (torch.arange(size) + 0.5) * (length / size)[:, None] - 0.5
    return at.maximum(start[:, None]).minimum((start + length - 1)[:, None])


def boxes(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Crops (top, left, height, width), each float (N,) of whole pixels: a random share of the area, a random ratio.

    The first of ten draws that fits into the image, else all of it.
    """
    share = torch.empty(TRIES, count).uniform_(*AREA, generator=generator) * height * width
    ratio = torch.empty(TRIES, count).uniform_(*map(math.log, RATIO), generator=generator).exp()  # wide : tall
    wide, tall = (share * ratio).sqrt().round().clamp(min=1), (share / ratio).sqrt().round().clamp(min=1)
    fits = (wide <= width) & (tall <= height)
    first = fits.int().argmax(0)  # the first that fits
    wide, tall = (t[first, torch.arange(count)] for t in (wide, tall))
    wide = torch.where(fits.any(0), wide, float(width))
    tall = torch.where(fits.any(0), tall, float(height))
    top = (torch.rand(count, generator=generator) * (height - tall + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - wide + 1)).floor()
    return torch.stack([top, left, tall, wide])
