"""Removed inputs filled from their neighbours: ROAD's noisy linear imputation (Rong et al., ICML 2022), in batches."""

import torch
import torch.nn.functional as F

from roarlib import draws


def linear(images: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Each missing input as the weighted mean of its neighbours (1/6 direct, 1/12 diagonal), by conjugate gradients."""
    channels = images.shape[1]
    near = images.new_tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    kernel = near.expand(channels, 1, 3, 3)
    total = F.conv2d(torch.ones_like(images[:1]), kernel, padding=1, groups=channels)
    gone = missing.expand_as(images).to(images.dtype)

    def apply(x):
        return gone * (total * x - F.conv2d(x, kernel, padding=1, groups=channels))

    def dot(a, b):
        return (a * b).sum((1, 2, 3), keepdim=True)

    known = images * (1 - gone)
    x = torch.zeros_like(images)
    r = gone * F.conv2d(known, kernel, padding=1, groups=channels)
    p, rr = r.clone(), dot(r, r)
    for _ in range(10 * max(images.shape[2:])):
        if float(rr.max()) < 1e-10:
            break
        ap = apply(p)
        alpha = rr / dot(p, ap).clamp_min(1e-30)
        x, r = x + alpha * p, r - alpha * ap
        rr, old = dot(r, r), rr
        p = r + rr / old.clamp_min(1e-30) * p
    return known + gone * x


def noisy_linear(images, missing, ids, seed: int, sigma: torch.Tensor) -> torch.Tensor:
    """`linear`, and normal noise on what was missing: sigma (C,) in the images' units, seeded by seed and image id."""
    noise = draws.normal(seed, ids, 1_000_000, images.shape[1:]).to(images.dtype)
    return linear(images, missing) + missing * sigma[:, None, None] * noise
