"""Textures: a synthetic data set whose informative pixels are known, small enough to retrain on in seconds.

Every image shows one textured disc on a cluttered background. Only the texture in the disc tells the class:
the disc's place, mean colour and contrast (over the channels together) and the whole background are drawn
independently of the label. So an estimator that ranks the disc first is right by construction, a judgement
that no natural data set allows.

Four more kinds make the task harder in a known way. `outline`: an ellipse whose direction tells the class and whose
texture does not, so that the hole it leaves tells the class as well. `twice`: two discs say the same (redundancy).
`against`: a second, fainter disc shows another class, which is evidence against the true one. `distractor`: a second
disc carries rings, whatever the class.
"""

import numpy as np

ANGLES = (0, 45, 90, 135)  # degrees from the horizontal to the stripes, anticlockwise
PATTERNS = [f"stripes {angle}°" for angle in ANGLES] + ["checks"]
TINTS = {"light-dark": (1, 1, 1), "red-green": (1, -1, 0)}  # how a texture departs from its disc's mean colour
CLASSES = [f"{pattern}, {tint}" for tint in TINTS for pattern in PATTERNS]

# Standard deviations in units of 0..255, so low that hardly any value is clipped, as clipping could tell the class.
# Contrasts and periods range from hard to easy, so that accuracy falls gradually as random pixels are removed; with
# one contrast and one period for all images, it stays high and then collapses.
CONTRAST = (3.5, 50.0)  # smallest and largest, of the texture in one image
SKEW = 1.5  # of contrasts towards the smallest; 1: evenly spread
PERIOD = (2.9, 7.0)  # pixels of a 32 x 32 image, scaled with the size; log-uniform
TINT = 0.25  # scatter of the tint's direction, per channel
NOISE = 6.5  # of every pixel and channel
CLUTTER = 14.0  # of the colours of the background and its rectangles
COLOUR = 7.0  # of the disc's mean colour
GREY = 127.5  # mean of all colours

KINDS = ("", "outline", "twice", "against", "distractor")
DISC_SHARE = 0.15  # of the image's area; two discs share it
ASPECT = 3.0  # of outline's ellipses
FAINT = 0.5  # contrast of the disc that speaks against the class, as a share of the other's
RECTANGLES = 8  # of clutter in one image
BLOCK = 100  # images drawn from one generator; a multiple of ten keeps the classes balanced

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def make(n: int, seed: int, size: int = 32, kind: str = "") -> Arrays:
    """Draw n images with labels and informative pixels; image i depends on seed, i, size and kind, never on n.

    Returns images uint8 (n, 3, size, size), labels int64 (n,) in 0..9, balanced over every ten images, and
    masks bool (n, 1, size, size), True in the disc (in both for `twice` and `against`). The same seed gives the same
    bytes; train and test need different seeds. ValueError for n < 1, seed < 0, size < 24 (where the finest stripes
    would alias), or an unknown kind.
    """
    if n < 1 or seed < 0 or size < 24 or kind not in KINDS:
        raise ValueError(
            f"n={n}, seed={seed}, size={size}, kind={kind!r}: allowed are n >= 1, seed >= 0, size >= 24 and {KINDS}"
        )
    blocks = [_block(np.random.default_rng([seed, k]), size, kind) for k in range(-(-n // BLOCK))]
    images, labels, masks = (np.concatenate(parts)[:n] for parts in zip(*blocks, strict=True))
    return images, labels, masks


def _block(rng: np.random.Generator, size: int, kind: str) -> Arrays:
    """Draw BLOCK images: background, disc or discs over it, noise over all; shapes and types as in `make`."""
    labels = rng.permuted(np.tile(np.arange(10), (BLOCK // 10, 1)), axis=1).ravel()
    if kind in ("", "outline"):
        place = _ellipses(rng, labels, size) if kind else _discs(rng, size)
        masks, shown = place[2], rng.integers(0, 10, BLOCK) if kind else labels
        objects = [(_object(rng, shown, place)[0], masks)]
    else:
        first, second = _pairs(rng, size)
        pixels, contrast = _object(rng, labels, first)
        if kind == "twice":
            others = labels
        elif kind == "against":
            others = (labels + rng.integers(1, 10, BLOCK)) % 10
        else:  # of any class, so that the tint of the rings tells nothing
            others = rng.integers(0, 10, BLOCK)
        faint = FAINT * contrast if kind == "against" else None
        objects = [(pixels, first[2]), (_object(rng, others, second, faint, kind == "distractor")[0], second[2])]
        masks = first[2] if kind == "distractor" else first[2] | second[2]
    images = _clutter(rng, size)
    for pixels, where in objects:
        images = np.where(where[:, None], pixels, images)
    images += rng.normal(0, NOISE, images.shape)
    return images.round().clip(0, 255).astype(np.uint8), labels, masks[:, None]


def _object(rng, labels, place: Arrays, contrast=None, rings=False) -> tuple[np.ndarray, np.ndarray]:
    """A class's texture around its object's centre: pixels (BLOCK, 3, size, size) and their contrast (BLOCK, 1, 1, 1).

    place: x, y and masks, as from `_discs`. contrast: to be used; None: draw it. rings: draw rings, the pattern of no
    class, in the class's tint.
    """
    x, y, masks = place
    size = x.shape[2]
    texture = _standardise(_texture(rng, labels, x * 32 / size, y * 32 / size, rings), masks)
    low, high = CONTRAST
    drawn = low + (high - low) * rng.uniform(size=(BLOCK, 1, 1, 1)) ** SKEW
    contrast = drawn if contrast is None else contrast
    tint = np.array(list(TINTS.values()))[labels // len(PATTERNS)] + rng.normal(0, TINT, (BLOCK, 3))
    tint = (tint / np.sqrt((tint**2).mean(1, keepdims=True)))[:, :, None, None]  # one contrast for all tints
    colour = rng.normal(GREY, COLOUR, (BLOCK, 3, 1, 1))
    return colour + contrast * tint * texture[:, None], contrast


def _discs(rng: np.random.Generator, size: int, reach: float = 1.0) -> Arrays:
    """Place the discs: x (BLOCK, 1, size) and y (BLOCK, size, 1) in pixels from the centre, y upwards; masks.

    Centres lie on pixel corners, so that all discs have exactly the same pixels. None is cut off, nor would one of
    `reach` times the radius be.
    """
    radius = size * np.sqrt(DISC_SHARE / np.pi)
    margin = int(np.ceil(radius * reach))
    column, row = rng.integers(margin, size - margin, (2, BLOCK, 1, 1), endpoint=True) - 0.5
    return _around(column, row, size, radius)


def _around(column, row, size: int, radius: float) -> Arrays:
    x = np.arange(size)[None, None, :] - column
    y = row - np.arange(size)[None, :, None]
    return x, y, x**2 + y**2 < radius**2


def _pairs(rng: np.random.Generator, size: int) -> tuple[Arrays, Arrays]:
    """Place two discs in different halves of each image, left and right or above and below; each as in `_discs`."""
    radius = size * np.sqrt(DISC_SHARE / 2 / np.pi)
    margin, half = int(np.ceil(radius)), size // 2
    near = rng.integers(margin, half - margin, (BLOCK, 1, 1), endpoint=True) - 0.5
    far = rng.integers(half + margin, size - margin, (BLOCK, 1, 1), endpoint=True) - 0.5
    free = rng.integers(margin, size - margin, (2, BLOCK, 1, 1), endpoint=True) - 0.5
    swapped, upright = rng.integers(0, 2, (2, BLOCK, 1, 1)).astype(bool)
    one, other = np.where(swapped, far, near), np.where(swapped, near, far)
    return tuple(
        _around(np.where(upright, loose, tied), np.where(upright, tied, loose), size, radius)
        for tied, loose in zip((one, other), free, strict=True)
    )


def _ellipses(rng: np.random.Generator, labels: np.ndarray, size: int) -> Arrays:
    """Place ellipses whose direction, a multiple of 18 degrees, tells the class; x, y and masks as in `_discs`."""
    radius = size * np.sqrt(DISC_SHARE / np.pi)
    x, y, _ = _discs(rng, size, np.sqrt(ASPECT))
    angle = np.pi / 10 * labels[:, None, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return x, y, along**2 / ASPECT + across**2 * ASPECT < radius**2


def _texture(rng: np.random.Generator, labels: np.ndarray, x: np.ndarray, y: np.ndarray, rings: bool) -> np.ndarray:
    """Evaluate each image's texture, at a random phase, around its disc's centre: (BLOCK, size, size)."""
    pattern = labels[:, None, None] % len(PATTERNS)
    angle = np.radians((*ANGLES, 0))[pattern]
    frequency = 2 * np.pi / np.exp(rng.uniform(*np.log(PERIOD), (BLOCK, 1, 1)))
    phase, other_phase = rng.uniform(0, 2 * np.pi, (2, BLOCK, 1, 1))
    if rings:
        return np.sin(frequency * np.hypot(x, y) + phase)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    stripes = np.sin(frequency * across + phase)
    checks = stripes * np.sin(frequency * along + other_phase)
    return np.where(pattern < len(ANGLES), stripes, checks)


def _standardise(texture: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Shift and scale to mean 0 and standard deviation 1 over each disc, so that neither tells the class."""
    area = masks.sum((1, 2), keepdims=True)
    centred = (texture - (texture * masks).sum((1, 2), keepdims=True) / area) * masks
    return centred / np.sqrt((centred**2).sum((1, 2), keepdims=True) / area)


def _clutter(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw backgrounds (BLOCK, 3, size, size): tilted rectangles over a plain colour."""
    grid = np.arange(size)
    images = np.tile(rng.normal(GREY, CLUTTER, (BLOCK, 3, 1, 1)), (1, 1, size, size))
    for _ in range(RECTANGLES):
        column, row = rng.uniform(0, size, (2, BLOCK, 1, 1))
        width, height = rng.uniform(0.04, 0.3, (2, BLOCK, 1, 1)) * size  # half of each
        angle = rng.uniform(0, np.pi, (BLOCK, 1, 1))
        x, y = grid[None, None, :] - column, grid[None, :, None] - row
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        inside = (abs(along) < width) & (abs(across) < height)  # (BLOCK, size, size)
        images = np.where(inside[:, None], rng.normal(GREY, CLUTTER, (BLOCK, 3, 1, 1)), images)
    return images
