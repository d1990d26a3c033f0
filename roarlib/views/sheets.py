"""Sheets of small images: what estimators find important, what is removed from an image, and what is left."""

import os
import re
import textwrap
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from roarlib.engine.degrade import as_seen
from roarlib.study.names import MODES, in_order, label
from roarlib.views.plots import INK, TEXT

DPI = 110
TILE, GAP, TITLE = 160, 6, 20  # dots: about the side of an image, the gap between two, the space for titles


class Sheet(Figure):
    """A figure that a notebook can show even before pyplot has loaded a backend, which would bring the means."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """A figure as PNG, lightly compressed: it goes to a nearby browser, and time counts."""
    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 1})
    return file.getvalue()


def heat(ranking: np.ndarray) -> np.ndarray:
    """A ranking (C or 1, H, W) as an image uint8 (3, H, W): what goes first bright, mean of the channels."""
    colors = mpl.colormaps["inferno"](1 - np.asarray(ranking, dtype=float).mean(0) / 100, bytes=True)
    return np.moveaxis(colors[..., :3], -1, 0)


def sheet(rows: dict[str, list[np.ndarray]], columns: list[str], tile: int = TILE, below: float = 0.0) -> Sheet:
    """Images in rows, each row's label on its left and the columns' titles above; crisp and quick.

    rows: label -> images uint8 (C, H, W), all of one size. tile: approximate dots of an image's longer side. below:
    inches to leave free at the bottom. A cell's last expression shows it; $ROAR_DPI sets its dots per inch.
    """
    _, high, wide = next(iter(rows.values()))[0].shape
    times = max(1, round(tile / max(high, wide)))  # whole dots per pixel: nothing is blurred
    down, across = high * times + GAP, wide * times + GAP
    pixels = np.full((down * len(rows), across * len(columns), 3), 255, np.uint8)
    for r, images in enumerate(rows.values()):
        for c, image in enumerate(images):
            shown = np.moveaxis(image, 0, -1).repeat(times, 0).repeat(times, 1)  # grey spreads over the three channels
            pixels[r * down : (r + 1) * down - GAP, c * across : (c + 1) * across - GAP] = shown
    left = round(0.68 * max(map(len, rows)) * TEXT / 72 * DPI) + GAP  # room for labels
    apart = (re.sub(r":\b", ": ", title) for title in columns)  # module:function breaks at its colon
    titles = [textwrap.fill(title, max(12, across // 7), break_on_hyphens=False) for title in apart]
    top = TITLE * max(1 + 0.6 * title.count("\n") for title in titles)
    size = np.array([left + pixels.shape[1], top + pixels.shape[0] + below * DPI])  # dots
    figure = Sheet(size / DPI, float(os.environ.get("ROAR_DPI") or DPI), facecolor="white")
    ax = figure.add_axes((left / size[0], below * DPI / size[1], pixels.shape[1] / size[0], pixels.shape[0] / size[1]))
    ax.imshow(pixels, interpolation="nearest", aspect="auto")
    longest = max(len(line) for title in titles for line in title.split("\n"))
    look = dict(fontsize=min(TEXT, 72 / DPI * across / (0.62 * longest)), linespacing=1.1)  # letters are about so wide
    look["va"] = "bottom" if "\n" in "".join(titles) else "baseline"
    ax.set_xticks(np.arange(len(columns)) * across + wide * times / 2, titles, **look)
    ax.set_yticks(np.arange(len(rows)) * down + high * times / 2, list(rows), fontsize=TEXT)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelcolor=INK)
    ax.set_frame_on(False)
    return figure


def maps(pixels: np.ndarray, rankings: dict[str, np.ndarray]) -> Sheet:
    """One image uint8 (C, H, W) and each estimator's importance map beside it. rankings: name -> this image's."""
    names = in_order(rankings)
    return sheet({"": [pixels, *(heat(rankings[n]) for n in names)]}, ["image", *map(label, names)], 110)


def degraded_sheet(pixels, rankings: dict, percents, mode="remove", fill=(0, 0, 0)) -> Sheet:
    """One image as each estimator degrades it: estimators in rows, percents in columns (paper, Figure 1).

    pixels: uint8 (C, H, W). rankings: name -> this image's ranking. fill: of holes, per channel, 0..255: see
    `Data.shown_fill`. First come the image and its importance. Raises LookupError where no ranking is given.
    """
    if not rankings:
        raise LookupError("no rankings to show yet: `roar run` makes them")
    rows = {
        label(name): [pixels, heat(rankings[name]), *(as_seen(pixels, rankings[name], t, mode, fill) for t in percents)]
        for name in in_order(rankings)
    }
    return sheet(rows, ["image", "importance", *(f"{t}% {MODES[mode]}" for t in percents)], 100)
