"""Fill removed pixels from their neighbours: ROAD's noisy linear imputation, on the images' device.

Rong, Leemann, Borisov, Kasneci and Kasneci (ICML 2022, "A Consistent and Efficient Evaluation Strategy for Attribution
Methods"): a removed pixel is the weighted mean of its neighbours, 1/6 for each of the four beside it and 1/12 for each
of the four at its corners; those beyond the border do not count. Multiplied by 12, on the missing pixels,

    A u = b,   A = diag(K 1) - K,   K = [1 2 1] x [1 2 1]   (whose centre cancels),

a graph Laplacian, positive definite as soon as one pixel is known. Conjugate gradients solve it, preconditioned by one
multigrid V-cycle (Tatebe 1993): at most 11 iterations for all masks tried at 32 to 224 pixels. It takes only sums and
products of whole arrays, on any device. On one kind of device an image's bits do not depend on the other images.
"""

import torch
import torch.nn.functional as F

from roarlib.engine import draws

TOLERANCE = 5e-5  # largest error of a pixel, as estimated; true ones were below it for all kinds of masks tried
LIMIT = 100  # iterations
SCREEN = 64.0  # bounds how firmly known pixels hold a coarse cell, as they screen each other
CHUNK = 2**24  # values per array, at most


def linear(images, missing, fill=0.0, tolerance: float = TOLERANCE) -> torch.Tensor:
    """Images whose missing values are the weighted means of their neighbours; the known ones stay as they are.

    images: float (N, C, H, W), the known values finite. missing: bool (N, C, H, W), or (N, 1, H, W) for whole pixels.
    fill: number or (C,), for channels without a known pixel. tolerance: largest error as estimated, in the images'
    units; computed in float32, so not below a millionth of their values. Same shape, type and device as images.
    ArithmeticError if the tolerance is not reached, ValueError for shapes or types that do not fit.
    """
    count, channels, height, width = images.shape
    if not images.is_floating_point():
        raise ValueError(f"images of {images.dtype}: imputed values are means, so float images are needed")
    if missing.dtype != torch.bool or missing.shape not in (images.shape, (count, 1, height, width)):
        raise ValueError(f"missing {missing.dtype} {tuple(missing.shape)} does not fit images {tuple(images.shape)}")
    fill = torch.as_tensor(fill, dtype=torch.float32, device=images.device).expand(channels)
    size, solved, failed = max(1, CHUNK // max(1, images.shape[1:].numel())), torch.empty_like(images), 0
    with torch.no_grad():
        for image, gone, target in zip(images.split(size), missing.split(size), solved.split(size), strict=True):
            start = image.float().permute(2, 3, 1, 0).flatten(2)  # (H, W, B): columns channel by channel
            mask = gone.expand_as(image).permute(2, 3, 1, 0).flatten(2).float()
            made, unsolved = _solved(start, mask, fill.repeat_interleave(len(image)), tolerance)
            target.copy_(made.unflatten(2, (channels, -1)).permute(3, 2, 0, 1))
            failed += unsolved
    if failed:
        raise ArithmeticError(f"{failed} channels not imputed after {LIMIT} iterations; are the images finite?")
    return torch.where(missing, solved, images)


def noisy_linear(images, missing, fill, sigma, seed: int, ids) -> torch.Tensor:
    """`linear`, with normal noise added to the imputed values, drawn from (seed, image id) alone.

    sigma: number or (C,), the noise's standard deviation in the images' units (ROAD: 0.01 where white is 1). ids: int64
    (N,), image numbers, on the images' device.
    """
    noise = draws.normal(seed, ids, 0, images.shape[1:], draws.IMPUTATION).to(images.dtype)
    sigma = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).expand(images.shape[1])
    noise.mul_(sigma[:, None, None]).mul_(missing)
    return linear(images, missing, fill) + noise


def _solved(start, mask, fill, tolerance):
    """Columns (H, W, B) that solve the system, and how many do not. mask: (H, W, B), 1: missing. fill: (B,)."""
    counts = _folded(1 - mask)
    start = torch.where(mask > 0, 0, start)
    start = start + mask * torch.where(counts > 0, _folded(start) / counts.clamp(min=1), fill)
    mask = mask * (counts > 0)  # a column without known pixels becomes its fill
    diagonal = _blurred(torch.ones_like(mask[..., :1]))
    levels = _levels(mask, diagonal)
    residual = torch.where(mask > 0, _blurred(start) - diagonal * start, 0)
    direction = z = _cycle(levels, residual)
    energy, running = _folded(residual * z), torch.ones_like(fill)  # a column is frozen once its own error is small
    for _ in range(LIMIT):
        image = diagonal * direction - _blurred(direction)
        length = running * energy / _folded(direction * image).clamp(min=1e-30)
        start, residual = start + length * direction, residual - length * image
        z = _cycle(levels, residual)  # roughly the error
        ending = running * (_folded(z.abs(), torch.maximum) <= tolerance)
        start, running = start + ending * z, running - ending
        if not running.any():
            break
        before, energy = energy, _folded(residual * z)
        direction = z + running * energy / before.clamp(min=1e-30) * direction
    return start, int(running.sum())


def _levels(mask, diagonal):
    """(mask, Jacobi weight) of every scale down to 2 x 2, and the inverse of what a constant costs there, (B,).

    A coarse cell is missing if any pixel in it is. Known pixels stay out of the coarse systems; their effect is added
    to the diagonal, as conductances to ground: `tie` sums the weights between missing and known pixels.
    """
    tie = mask * (diagonal - _blurred(mask))
    levels = [(mask, mask / diagonal)]
    while max(mask.shape[:2]) > 2:
        mask, tie = _pooled(mask).clamp(max=1), _pooled(tie)
        tie = tie * SCREEN / (tie + SCREEN)
        levels.append((mask, mask / (_blurred(torch.ones_like(mask[..., :1])) + tie)))
    return levels, 1 / _folded(tie).clamp(min=1)


def _cycle(system, residual, depth=0):
    """Approximates A^-1 residual by one symmetric V-cycle: Jacobi, the coarser scale's correction, Jacobi."""
    levels, softness = system
    mask, weight = levels[depth]
    x = residual * weight
    if depth == len(levels) - 1:
        return x + mask * (_folded(residual * mask) * softness)
    coarse = _cycle(system, _pooled(_blurred(x) * mask), depth + 1)  # the residual now, as A = diagonal - K
    finer = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1)[: len(mask), : mask.shape[1]]
    return (_blurred((x + finer) * mask) + residual) * weight


def _blurred(x):
    """K x of an array (H, W, B)."""
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    x = x[:-2] + x[2:] + 2 * x[1:-1]
    return x[:, :-2] + x[:, 2:] + 2 * x[:, 1:-1]


def _pooled(x):
    """Sums over cells of 2 x 2; where a side is odd, the last cells are half as wide."""
    x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, len(x) % 2))
    x = x[0::2] + x[1::2]
    return x[:, 0::2] + x[:, 1::2]


def _folded(x, function=torch.add):
    """(H, W, B) to (B,) by halving, in an order that, unlike torch.sum's, no number of columns or threads changes."""
    x = x.flatten(0, 1)
    while len(x) > 1:
        half = len(x) // 2
        x = torch.cat([function(x[:half], x[half : 2 * half]), x[2 * half :]])
    return x[0]
