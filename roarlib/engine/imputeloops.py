"""The imputation of `impute` for processors: the same iterations an image at a time, as loops that Numba compiles.

An image's arrays stay in the first caches of a core, which whole batches of them do not. All scales lie in flat arrays,
one after the other, each h x w with a frame of zeros around it. A loop runs over the frame's sides as well, so that it
is one long loop; what it leaves there is wiped out by the mask or the weight, which are zero in the frame. Numba checks
no bounds: run the tests with NUMBA_BOUNDSCHECK=1 after a change.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from llvmlite.binding import get_host_cpu_name
from numba import config, njit

# a folder a kind of processor: nodes that share this one could take each other's code, and die of it
config.CACHE_DIR = config.CACHE_DIR or str(Path(__file__).with_name("__pycache__") / get_host_cpu_name())


def compiled(function):
    """Compiled at its first call and kept on the disk, where anything can be. Sums may be vectorised; NaN counts."""
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(**options)(function)


ZERO, ONE, TWO, FOUR, TINY = (np.float32(v) for v in (0, 1, 2, 4, 1e-30))  # times a bare 2, Numba computes in float64


def solve(images, missing, fill, tolerance: float, screen: float, limit: int, threads: int) -> tuple[np.ndarray, int]:
    """Imputed float32 images (N, C, H, W), and how many channels did not reach the tolerance.

    images: float32 (N, C, H, W). missing: bool (N, C or 1, H, W). fill: float32 (C,). The rest as in `impute`. Images
    are shared out among threads; on one kind of processor an image's bits depend on nothing but the image.
    """
    made = np.empty_like(images)
    share = -(-len(images) // threads) or 1
    parts = [slice(i, i + share) for i in range(0, len(images), share)]
    numbers = np.float32(tolerance), np.float32(screen), limit

    def work(part):
        return _images(images[part], missing[part], fill, *numbers, made[part])

    if len(parts) <= 1:
        return made, sum(map(work, parts))
    with ThreadPoolExecutor(threads) as pool:
        return made, sum(pool.map(work, parts))


@compiled
def _scales(height, width):
    """Height, width, start and end of every scale, from full size to 2 x 2 at most: int64 (scales, 4)."""
    found = [(height, width, 0, (height + 2) * (width + 2))]
    while max(found[-1][:2]) > 2:
        h, w, start = (found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2, found[-1][3]
        found.append((h, w, start, start + (h + 2) * (w + 2)))
    return np.array(found)


@compiled
def _zeros(size):
    return np.zeros(size, np.float32)  # each its own: where arrays may overlap, loops are not vectorised


@compiled
def _row(framed, i, width):
    """A framed array from the first inner value of inner row i on."""
    return framed[(i + 1) * (width + 2) + 1 :]


@compiled
def _images(images, missing, fill, tolerance, screen, limit, made):
    count, channels, height, width = images.shape
    scales = _scales(height, width)
    framed, size = scales[0, 3], scales[-1, 3]
    mask, weight, tie, residual = _zeros(size), _zeros(size), _zeros(size), _zeros(size)
    x, z, work, rows = _zeros(size), _zeros(size), _zeros(size), _zeros(size)
    buffers = mask, weight, residual, x, z, work, rows
    solved, direction, diagonal = _zeros(framed), _zeros(framed), _zeros(framed)
    _diagonal(height, width, diagonal)
    failed, known, softness = 0, 0, ONE
    for n in range(count):
        for c in range(channels):
            image, target = images[n, c], made[n, c]
            if c < missing.shape[1]:
                known, softness = _set_masks(missing[n, c], scales, mask, weight, tie, rows, screen)
            if known == 0:
                target[:] = fill[c]
            elif known == height * width:
                target[:] = image
            else:
                _start(image, mask, known, direction)
                reached = _conjugate_gradients(
                    scales, softness, buffers, diagonal, direction, solved, tolerance, limit
                )
                _copy(solved, target)
                if not reached:
                    failed += 1
                    for buffer in buffers[2:]:
                        buffer[:] = ZERO  # NaN would survive in the frames: 0 x NaN = NaN
    return failed


@compiled
def _start(image, mask, known, out):
    """The first guess: the image, and the mean of its known pixels where it is missing."""
    height, width = image.shape
    total = ZERO
    for i in range(height):
        gone, row = _row(mask, i, width), image[i]
        for j in range(width):
            total += row[j] if gone[j] == ZERO else ZERO
    mean = total / np.float32(known)
    out[:] = ZERO
    for i in range(height):
        gone, row, made = _row(mask, i, width), image[i], _row(out, i, width)
        for j in range(width):
            made[j] = row[j] if gone[j] == ZERO else mean


@compiled
def _copy(framed, target):
    height, width = target.shape
    for i in range(height):
        row, made = _row(framed, i, width), target[i]
        for j in range(width):
            made[j] = row[j]


@compiled
def _diagonal(height, width, out):
    """K 1: what a pixel's neighbours and itself weigh together."""
    for i in range(height):
        across = FOUR - (ONE if i == 0 else ZERO) - (ONE if i == height - 1 else ZERO)
        row = _row(out, i, width)
        for j in range(width):
            row[j] = across * (FOUR - (ONE if j == 0 else ZERO) - (ONE if j == width - 1 else ZERO))


@compiled
def _set_masks(missing, scales, mask, weight, tie, rows, screen):
    """Masks and Jacobi weights of all scales; returns the number of known pixels and the coarsest scale's softness.

    A coarse cell is missing where any pixel in it is. `tie` sums the weights between its missing and known pixels.
    """
    height, width = missing.shape
    known, ties = 0, ZERO
    for i in range(height):
        gone, row = missing[i], _row(mask, i, width)
        for j in range(width):
            row[j] = ONE if gone[j] else ZERO
            known += not gone[j]
    for level in range(len(scales)):
        h, w, start, end = scales[level]
        m, t, s = mask[start:end], tie[start:end], weight[start:end]
        _diagonal(h, w, s)
        if level == 0:
            _blur(m, w, rows, t)
            for p in range(len(m)):
                t[p] = m[p] * (s[p] - t[p])
        else:
            _, above, finer, _ = scales[level - 1]
            _pool(mask[finer:], above, m, h, w)
            _pool(tie[finer:], above, t, h, w)
            for p in range(len(m)):
                m[p] = min(m[p], ONE)
                t[p] *= screen / (t[p] + screen)
                s[p] += t[p]
        ties = ZERO
        for p in range(len(m)):
            s[p] = m[p] / max(s[p], ONE)
            ties += t[p]
    return known, ONE / max(ties, ONE)


@compiled
def _conjugate_gradients(scales, softness, buffers, diagonal, direction, solved, tolerance, limit):
    """The solution, from the guess in `direction`, into `solved`; whether the tolerance was reached."""
    mask, weight, residual, x, z, work, rows = buffers
    _, w, _, size = scales[0]
    r, z, gone, image = residual[:size], z[:size], mask[:size], work[:size]
    _blur(direction, w, rows, image)
    for p in range(size):
        r[p] = gone[p] * (image[p] - diagonal[p] * direction[p])
        solved[p] = direction[p]
    _cycle(scales, softness, buffers)
    energy = _dot(r, z)
    direction[:] = z
    for _ in range(limit):
        _blur(direction, w, rows, image)
        total = ZERO
        for p in range(size):
            image[p] = diagonal[p] * direction[p] - image[p]
            total += direction[p] * image[p]
        length = energy / max(total, TINY)
        for p in range(size):
            solved[p] += length * direction[p]
            r[p] -= length * image[p]
        _cycle(scales, softness, buffers)
        large = 0
        for p in range(size):
            large += not abs(z[p]) <= tolerance
        if not large:
            solved += z
            return True
        before, energy = energy, _dot(r, z)
        ratio = energy / max(before, TINY)
        for p in range(size):
            direction[p] = z[p] + ratio * direction[p]
    return False


@compiled
def _cycle(scales, softness, buffers):
    """One symmetric V-cycle on the residual, into `z`: Jacobi, the coarser scale's correction, Jacobi."""
    mask, weight, residual, x, z, work, rows = buffers
    last = len(scales) - 1
    for level in range(last):
        h, w, start, end = scales[level]
        ch, cw, coarse, _ = scales[level + 1]
        m, v, r, s, t = mask[start:end], x[start:end], residual[start:end], weight[start:end], work[start:end]
        for p in range(len(m)):
            v[p] = r[p] * s[p]
        _blur(v, w, rows, t)
        for p in range(len(m)):
            t[p] *= m[p]
        _pool(t, w, residual[coarse:], ch, cw)
    start, total = scales[last, 2], ZERO
    for p in range(start, len(z)):
        total += residual[p] * mask[p]
    for p in range(start, len(z)):
        z[p] = residual[p] * weight[p] + mask[p] * (total * softness)
    for level in range(last - 1, -1, -1):
        h, w, start, end = scales[level]
        _, cw, coarse, _ = scales[level + 1]
        m, v, r, s, made = mask[start:end], x[start:end], residual[start:end], weight[start:end], z[start:end]
        for i in range(h):
            to, source = _row(v, i, w), _row(z[coarse:], i // 2, cw)
            for j in range(cw):
                to[2 * j] += source[j]
                to[2 * j + 1] += source[j]
        for p in range(len(m)):
            v[p] *= m[p]
        _blur(v, w, rows, made)
        for p in range(len(m)):
            made[p] = (made[p] + r[p]) * s[p]


@compiled
def _blur(x, width, rows, out):
    """K x of a framed array, into the inner rows of another. rows: a buffer."""
    above, here, below = x, x[width + 2 :], x[2 * (width + 2) :]
    for k in range(len(below)):
        rows[k] = above[k] + below[k] + TWO * here[k]
    left, centre, right, made = rows, rows[1:], rows[2:], _row(out, 0, width)
    for k in range(len(below) - 2):
        made[k] = left[k] + right[k] + TWO * centre[k]


@compiled
def _pool(finer, fine_width, coarser, height, width):
    """Sums over cells of 2 x 2, into height x width values; where a side is odd, the frame makes it even."""
    for i in range(height):
        up, down, to = _row(finer, 2 * i, fine_width), _row(finer, 2 * i + 1, fine_width), _row(coarser, i, width)
        for j in range(width):
            to[j] = up[2 * j] + up[2 * j + 1] + down[2 * j] + down[2 * j + 1]


@compiled
def _dot(a, b):
    total = ZERO
    for p in range(len(a)):
        total += a[p] * b[p]
    return total
