"""Names beside the lines and points of a figure, where they neither overlap nor need a legend."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from roarlib.study.names import in_order, label, style


def apart(wanted: np.ndarray, gap: float, high: float = 1.0) -> np.ndarray:
    """Places (n,) as near as possible to the wanted ones (least squares), at least `gap` apart, in [0, high].

    With places sorted, x_i - i gap must not fall: an isotonic regression. Where they cannot fit, gap shrinks.
    """
    gap = min(gap, high / max(len(wanted) - 1, 1))
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    level = isotonic_regression(wanted[order] - steps).x
    places = np.clip(level, 0, high - steps[-1]) + steps
    return places[np.argsort(order)]


def name_lines(ax, size: float = 7.5) -> None:
    """Write each line's label at its right end, moved apart where ends are close, with a leader to the end.

    Call it last: it reads the axes' limits. size in points; it shrinks where more names than fit are wanted.
    """
    lines = [drawn for drawn in ax.lines if not drawn.get_label().startswith("_")]
    if not lines:
        return
    right = np.argmax if ax.get_xlim()[1] > ax.get_xlim()[0] else np.argmin
    ends = [drawn.get_xydata()[right(drawn.get_xdata())] for drawn in lines]
    ends = (ax.transData + ax.transAxes.inverted()).transform(ends)  # (lines, 2), 0..1 of the axes
    room = 72 * ax.get_position().height * ax.figure.get_size_inches()[1]  # points
    size = min(size, 0.92 * room / len(lines))
    places = apart(ends[:, 1], 1.15 * size / room, 1.04)
    colors = np.array([to_rgb(drawn.get_color()) for drawn in lines])
    leaders = [[(x + 0.02, y), (1.07, place)] for (x, y), place in zip(ends, places, strict=True)]
    where = dict(transform=ax.transAxes, clip_on=False)
    ax.add_collection(LineCollection(leaders, colors=colors, linewidths=0.5, **where))
    for drawn, place, color in zip(lines, places, 0.68 * colors, strict=True):  # darker: legible as thin text
        ax.text(1.08, place, drawn.get_label(), fontsize=size, color=color, va="center_baseline", **where)


def points_named(ax, x: pd.Series, y: pd.Series) -> None:
    """Plot two numbers per estimator against each other, in percent, each point named. Set the axes' labels first.

    A name is put in the nearest place, right or left and ever higher or lower, that is free of points, names and axes.
    """
    names = in_order(x.index.intersection(y.index))
    spots = 100 * np.stack([x[names], y[names]], 1)  # (names, 2)
    for name, spot in zip(names, spots, strict=True):
        ax.plot(*spot, style(name)["marker"] or "*", color=style(name)["color"], markersize=5)
    ax.margins(0.2, 0.12)
    ax.figure.canvas.draw()  # fixes the layout, which the places depend on
    half = 3 / 72 * ax.figure.dpi  # dots, of a point's side
    taken = [Bbox([at - half, at + half]) for at in ax.transData.transform(spots)]
    taken += [ax.spines[side].get_window_extent() for side in ("left", "bottom")]
    for name, spot in sorted(zip(names, spots, strict=True), key=lambda named: -named[1][0]):  # from right to left
        how = dict(va="center", fontsize=6.5, color=0.68 * np.array(to_rgb(style(name)["color"])))
        text = ax.annotate(label(name), spot, (0, 0), textcoords="offset points", **how)
        for up, side in product([way * step for step in range(0, 57, 8) for way in (1, -1)], (1, -1)):
            text.set(position=(side * (6 + abs(up) / 3), up), ha="left" if side > 0 else "right")
            if not text.get_window_extent().padded(1).count_overlaps(taken):
                break
        taken.append(text.get_window_extent())
        if abs(up) > 12:
            leader = dict(arrowstyle="-", color="#c4c4c4", linewidth=0.5)
            ax.annotate("", spot, text.get_position(), textcoords="offset points", arrowprops=leader)
