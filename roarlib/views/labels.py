"""Names of lines, written at their right ends and moved apart where ends are close, instead of a legend."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from scipy.optimize import isotonic_regression


def apart(wanted: np.ndarray, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Places (n,) as near as can be to the wanted ones (least squares), at least `gap` apart, in [low, high].

    With places sorted, x_i - i gap must not fall: an isotonic regression. Where they cannot fit, gap shrinks.
    """
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    level = isotonic_regression(wanted[order] - steps).x
    places = np.clip(level, low, high - steps[-1]) + steps
    return places[np.argsort(order)]


def name_lines(ax, size: float = 7.5) -> None:
    """Write each line's label at its right end, moved apart where ends are close, with a leader to the end.

    Call it last: it reads the axes' limits. size in points; it shrinks where more names than fit are wanted.
    """
    lines = [drawn for drawn in ax.lines if not drawn.get_label().startswith("_")]
    right = np.argmax if ax.get_xlim()[1] > ax.get_xlim()[0] else np.argmin
    ends = np.array([drawn.get_xydata()[right(drawn.get_xdata())] for drawn in lines]).reshape(-1, 2)
    ends = (ax.transData + ax.transAxes.inverted()).transform(ends)  # (lines, 2), 0..1 of the axes
    if not lines:
        return
    height = 72 * ax.get_position().height * ax.figure.get_size_inches()[1]  # points
    size = min(size, 0.92 * height / max(len(lines), 1))
    places = apart(ends[:, 1], 1.15 * size / height, 0.0, 1.04)
    leaders = [[(x + 0.02, y), (1.07, place)] for (x, y), place in zip(ends, places, strict=True)]
    colors = np.array([to_rgb(drawn.get_color()) for drawn in lines]).reshape(-1, 3)
    where = dict(transform=ax.transAxes, clip_on=False)
    ax.add_collection(LineCollection(leaders, colors=colors, linewidths=0.5, **where))
    for drawn, place, color in zip(lines, places, 0.68 * colors, strict=True):  # darker: legible as thin text
        ax.text(1.08, place, drawn.get_label(), fontsize=size, color=color, va="center_baseline", **where)
