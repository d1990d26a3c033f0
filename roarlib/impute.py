"""Fill removed pixels from their neighbours: ROAD's noisy linear imputation, a whole batch at a time, on its device.

Rong, Leemann, Borisov, Kasneci and Kasneci (ICML 2022, "A Consistent and Efficient Evaluation Strategy for Attribution
Methods"): a removed pixel is the weighted mean of its neighbours, 1/6 for each of the four beside it and 1/12 for each
of the four across its corners; those beyond the border take no part. Times 12, on the missing pixels,

    A u = b,   A = diag(K 1) - K,   K = [1 2 1] x [1 2 1]   (whose centre cancels),

a graph Laplacian, positive definite as soon as one pixel is known. Conjugate gradients solve it, preconditioned by one
multigrid V-cycle (Tatebe 1993): 3 to 11 iterations, whatever mask and size. It takes nothing but sums, products and
maxima of whole arrays, in a fixed order, so that an image's bits do not depend on the images beside it.
"""

import torch
import torch.nn.functional as F

from roarlib import draws

TOLERANCE = 5e-5  # largest error of a pixel, as estimated; true ones were at most 1.2 times that, for 29 kinds of masks
LIMIT = 100  # iterations
SCREEN = 64.0  # at most so firmly known pixels hold a coarse cell, as they screen each other
CHUNK = {"cpu": 2**17, "cuda": 2**24}  # values solved at a time by a thread; more outgrow the caches of a core


def linear(images, missing, fill=0.0, tolerance: float = TOLERANCE) -> torch.Tensor:
    """Images whose missing values are the weighted means of their neighbours; the known ones stay as they are.

    images: float (N, C, H, W), finite, missing values too. missing: bool (N, C, H, W), or (N, 1, H, W) for whole
    pixels. fill: number or (C,), for channels without a known pixel. tolerance: largest error, in the images' units.
    Same shape, type and device as images. ArithmeticError if the tolerance is not reached, ValueError for shapes that
    do not fit.
    """
    count, channels, height, width = images.shape
    if missing.dtype != torch.bool or missing.shape not in (images.shape, (count, 1, height, width)):
        raise ValueError(f"missing {missing.dtype} {tuple(missing.shape)} does not fit images {tuple(images.shape)}")
    fill = torch.as_tensor(fill, dtype=images.dtype, device=images.device).expand(channels)
    threads = torch.get_num_threads() if images.device.type == "cpu" else 1
    size = max(1, CHUNK[images.device.type] * threads // (channels * height * width))
    made, levels = torch.empty_like(images), None
    with torch.inference_mode():
        for image, gone, target in zip(images.split(size), missing.split(size), made.split(size), strict=True):
            if levels is None or len(image) < size:
                levels = _levels(height, width, len(image) * channels, images.device)
            start = image.permute(2, 3, 1, 0).flatten(2).contiguous()  # (H, W, B): columns channel by channel
            mask = gone.permute(2, 3, 1, 0).flatten(2).contiguous().float()
            values = fill[:, None].expand(channels, len(image)).flatten()
            solved = _solved(levels, start, mask, values, tolerance)
            target.copy_(solved.unflatten(2, (channels, -1)).permute(3, 2, 0, 1))
    return made


def noisy_linear(images, missing, fill, sigma, seed: int, ids, tolerance: float = TOLERANCE) -> torch.Tensor:
    """The same, with normal noise added to the imputed values, drawn from (seed, image id) alone.

    sigma: number or (C,), the noise's standard deviation in the images' units (ROAD: 0.01 where white is 1). ids: int64
    (N,), image numbers, on the images' device.
    """
    noise = draws.normal(seed, ids, 0, images.shape[1:], draws.IMPUTATION).to(images.dtype)
    sigma = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).expand(images.shape[1])
    noise.mul_(sigma[:, None, None]).mul_(missing)
    return linear(images, missing, fill, tolerance).add_(noise)


def _solved(levels, start, mask, fill, tolerance):
    """Columns (H, W, B) that solve the system. mask: (H, W, B), or (H, W, n) for channels that share it; 1: missing."""
    height, width, columns = start.shape
    known = 1 - mask
    counts = _sum(known)
    copies = columns // len(counts)
    _set_masks(levels, mask * (counts > 0), copies)
    counts = counts.repeat(copies)
    start = start * known.repeat(1, 1, copies)
    guess = torch.where(counts > 0, _sum(start) / counts.clamp(min=1), fill)  # the answer where nothing is known
    start = _even(start.addcmul_(mask.repeat(1, 1, copies), guess))
    return _conjugate_gradients(levels, start, tolerance)[:height, :width]


def _conjugate_gradients(levels, start, tolerance):
    """Solve from the guess `start` (H, W, B); a column is frozen once its own error is small. Overwrites it."""
    finest = levels[0]
    direction, diagonal, work, image = finest.direction, finest.diagonal, finest.work, finest.out
    update, running = torch.zeros_like(work), work.new_ones(work.shape[2])

    def dot(a, b):
        torch.mul(a, b, out=work)
        return _reduced(finest.halves).clone()  # the buffer is needed again

    direction.inside.copy_(start)
    residual = finest.residual.copy_(direction.blur(out=work).sub_(diagonal * direction.inside))
    z = _cycle(levels)
    energy = dot(residual, z)
    direction.inside.copy_(z)
    for _ in range(LIMIT):
        torch.mul(direction.inside, diagonal, out=image).sub_(direction.blur(out=work))
        length = running * energy / dot(direction.inside, image).clamp_(min=1e-30)
        update.addcmul_(direction.inside, length)
        residual.addcmul_(image, length, value=-1)
        z = _cycle(levels)  # in the place of `image`; the error, by and large
        torch.abs(z, out=work)
        ending = running * (_reduced(finest.halves, torch.maximum) <= tolerance)
        if ending.any():
            update.addcmul_(z, ending)
            running = running - ending
            if not running.any():
                return start.add_(update)
        before, energy = energy, dot(residual, z)
        torch.addcmul(z, direction.inside, running * energy / before.clamp_(min=1e-30), out=direction.inside)
    raise ArithmeticError(f"{int(running.sum())} channels not imputed after {LIMIT} iterations; are the images finite?")


class _Frame:
    """An array (H, W, B), `inside` a frame of zeros; views are cut once, as a cut takes as long as a small sum."""

    def __init__(self, height, width, columns, device, rows=None):
        whole = torch.zeros(height + 2, width + 2, columns, device=device)
        self.inside, self.above, self.middle, self.below = whole[1:-1, 1:-1], whole[:-2], whole[1:-1], whole[2:]
        self.rows = torch.empty_like(self.middle) if rows is None else rows  # a buffer
        self.left, self.centre, self.right = self.rows[:, :-2], self.rows[:, 1:-1], self.rows[:, 2:]

    def blur(self, out):
        """K times the array, into `out`."""
        torch.add(self.above, self.below, out=self.rows).add_(self.middle, alpha=2)
        return torch.add(self.left, self.right, out=out).add_(self.centre, alpha=2)


class _Level:
    """One scale: arrays (H, W, B) with even sides. `mask` and `weight` belong to the images, the rest are buffers."""

    def __init__(self, exists, columns):
        height, width, _ = exists.shape
        self.exists = exists  # (H, W, 1), 0 in a row or column that only makes a side even
        self.diagonal = _blurred(exists).clamp_(min=1)
        self.mask, self.weight, self.residual, self.work, self.out = exists.new_zeros(5, height, width, columns)
        self.frame = _Frame(height, width, columns, exists.device)
        self.cells = self.frame.inside.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
        self.pairs = exists.new_empty(height // 2, width, columns)
        self.halves = _halves(self.work)
        self.coarsest = max(height, width) <= 2


def _levels(height, width, columns, device):
    """Scales from full size to 2 x 2, each with views of the residual and correction of the next."""
    exists, levels = torch.ones(height, width, 1, device=device), []
    while not levels or not levels[-1].coarsest:
        levels.append(_Level(_even(exists), columns))
        exists = _pooled(levels[-1].exists).clamp_(max=1)
    for level, coarser in zip(levels, levels[1:], strict=False):
        rows, columns = len(level.out) // 2, level.out.shape[1] // 2
        level.pooled = coarser.residual[:rows, :columns]
        level.correction = coarser.out[:rows, None, :columns, None]
    levels[0].direction = _Frame(*levels[0].out.shape, device, levels[0].frame.rows)
    return levels


def _set_masks(levels, mask, copies):
    """Give all scales the masks of some images, (H, W, n). A coarse cell is missing where any pixel in it is.

    Known pixels stay out of the coarse systems; what they are worth is added to the diagonal, as conductances to
    ground: `tie` sums the weights between missing pixels of a cell and known ones.
    """
    for level in levels:
        mask = _even(mask)
        if level is levels[0]:
            tie, diagonal = mask * _blurred(level.exists - mask), level.diagonal
        else:
            tie = _even(tie * SCREEN / (tie + SCREEN))
            diagonal = level.diagonal + tie
        for mine, theirs in ((level.mask, mask), (level.weight, mask / diagonal)):
            mine.unflatten(2, (copies, -1)).copy_(theirs[:, :, None])
        if level.coarsest:
            level.softness = 1 / _sum(tie).clamp_(min=1).repeat(copies)  # of a column as a whole
        mask, tie = _pooled(mask).clamp_(max=1), _pooled(tie)


def _cycle(levels, depth=0):
    """One symmetric V-cycle: Jacobi, the coarser scale's correction, Jacobi. Puts about A^-1 residual into `out`."""
    level = levels[depth]
    if level.coarsest:
        torch.mul(level.residual, level.mask, out=level.work)
        constant = _reduced(level.halves) * level.softness
        return torch.mul(level.residual, level.weight, out=level.out).addcmul_(level.mask, constant)
    inside, work, pairs = level.frame.inside, level.work, level.pairs
    torch.mul(level.residual, level.weight, out=inside)
    level.frame.blur(out=work).mul_(level.mask)  # the residual now, as A = diagonal - K
    torch.add(work[0::2], work[1::2], out=pairs)
    torch.add(pairs[:, 0::2], pairs[:, 1::2], out=level.pooled)
    _cycle(levels, depth + 1)
    level.cells.add_(level.correction)
    inside.mul_(level.mask)
    return level.frame.blur(out=level.out).add_(level.residual).mul_(level.weight)


def _blurred(x):
    """K times an array (H, W, B) with zeros around it, for set-up."""
    frame = _Frame(*x.shape, x.device)
    frame.inside.copy_(x)
    return frame.blur(out=torch.empty_like(x))


def _pooled(x):
    """Sums over cells of 2 x 2."""
    rows = x[0::2] + x[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def _even(x):
    """With a row or column of zeros added where a side is odd."""
    height, width, _ = x.shape
    return F.pad(x, (0, 0, 0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


def _halves(work):
    """Views of a buffer (H, W, B) to add up its columns in an order that no batch size or thread changes."""
    flat, pairs = work.view(-1, work.shape[2]), []
    while len(flat) > 1:
        middle = (len(flat) + 1) // 2
        pairs.append((flat[: len(flat) - middle], flat[middle:]))
        flat = flat[:middle]
    return pairs


def _reduced(halves, function=torch.add):
    """The buffer behind these views folded on itself until one row is left, a view of it: (B,)."""
    for low, high in halves:
        function(low, high, out=low)
    return low[0]


def _sum(x):
    """Sum over the pixels: (H, W, B) to (B,)."""
    return _reduced(_halves(_even(x).clone())).clone()
