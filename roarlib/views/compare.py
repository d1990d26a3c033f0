"""The view of two estimators on one image: which inputs each removes, and how much they share over t."""

import html

import numpy as np
from ipywidgets import Dropdown
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from roarlib.data.datasets import Data
from roarlib.study import rankings
from roarlib.study.names import in_order, label
from roarlib.views import naming, plots
from roarlib.views.images import Chooser
from roarlib.views.sheets import heat, sheet

SAMPLE = 200  # most images in a mean overlap ..
SAMPLE_UNITS = 8_000_000  # .. and most units of them all: about 0.1 s
ONLY_A, ONLY_B, BOTH = np.array([[230, 159, 0], [0, 114, 178], [0, 0, 0]])  # Okabe and Ito's orange, blue, black
BELOW = 2.3  # inches, for the curves below the images


class Compare(Chooser):
    """Two estimators on one image: where the sets they remove differ, and how much they share over t.

    a, b: names of estimators in `found`, to begin with. Controls, besides Chooser's: a, b.
    """

    def __init__(self, data: Data, predictions: dict, found: dict, a: str, b: str):
        self.means = {}
        titles = [(label(name), name) for name in in_order({name for name, _, _ in found})]
        a = Dropdown(options=titles, value=a, tooltip="the first estimator")
        b = Dropdown(options=titles, value=b, tooltip="the second estimator")
        super().__init__(data, predictions, found, a=a, b=b)

    def draw(self) -> Figure:
        names, percent, pixels = (self.a.value, self.b.value), self.percent.value, self.pixels()
        stored = self.stored(names)
        for name in names:
            if name not in stored:
                raise LookupError(f"{name} is not ranked for this split and unit: choose others")
        a, b = (stored[name][self.number()] for name in names)
        gone_a, gone_b = (rankings.removed(ranking, percent) for ranking in (a, b))
        labels = [label(name) for name in names]
        titles = ["image", *(f"importance: {name}" for name in labels), f"top {percent}%: by whom"]
        figure = sheet({"": [pixels, heat(a), heat(b), difference(pixels, gone_a, gone_b)]}, titles, below=BELOW)
        who = *(f"only {name}" for name in labels), "both"
        parts = gone_a & ~gone_b, gone_b & ~gone_a, gone_a & gone_b
        self.who = [f"{name} {100 * part.mean():.1f}%" for name, part in zip(who, parts, strict=True)]
        here, (mean, sampled) = rankings.overlap(a, b), self.mean_of(*(stored[name] for name in names))
        self.overlaps = [100 * share[percent - 1] if percent else np.nan for share in (here, mean)]
        self.words = (
            f"The image, its importance by {labels[0]} and by {labels[1]}, and the top {percent} percent of both: "
        )
        self.words += f"{', '.join(self.who)} of all inputs."
        if percent:
            self.words += (
                f" In common are {self.overlaps[0]:.0f} percent of the removed inputs in this image, "
                f"{self.overlaps[1]:.0f} on average over {sampled} images; unrelated rankings would share {percent}."
            )
        wide, high = figure.get_size_inches()
        ax = figure.add_axes((0.55 / wide, 0.45 / high, 1 - 2.1 / wide, (BELOW - 0.68) / high))
        self.over_t(ax, here, mean, f"mean of {sampled} images")
        return figure

    def mean_of(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int]:
        """Mean overlap, percent by percent (100,), over an even sample of the split's images, and its size; cached."""
        key = self.a.value, self.b.value, self.unit.value, self.split.value
        if key not in self.means:
            size = max(1, min(SAMPLE, len(a), SAMPLE_UNITS // a[0].size))
            sample = rankings.evenly(len(a), size)
            self.means[key] = np.mean([rankings.overlap(a[i], b[i]) for i in sample], axis=0), size
        return self.means[key]

    def over_t(self, ax, here: np.ndarray, mean: np.ndarray, name: str) -> None:
        """Draw the overlap of this image, of the sample and of unrelated rankings, in percent over t."""
        t = np.arange(1, 101)
        ax.plot(t, 100 * here, color=plots.INK, linewidth=1.3, label="this image")
        ax.plot(t, 100 * mean, color="#009E73", linewidth=1.8, label=name)
        ax.plot(t, t, color=plots.QUIET, linewidth=1, linestyle=(0, (4, 2)), zorder=3, label="unrelated")
        ax.axvline(self.percent.value, color=plots.FAINT, linewidth=1, zorder=0)
        ax.set(xlim=(0, 100), ylim=(0, 103), xticks=range(0, 101, 20), yticks=range(0, 101, 25))
        ax.set(xlabel="t: percent of inputs removed", ylabel="overlap (%)")
        ax.set_title("share of the removed inputs in common", loc="left", fontsize=plots.TEXT)
        naming.name_lines(ax)

    def caption(self) -> str:
        """The image, then the legend of the last picture with the share of each colour."""
        square = "display: inline-block; width: 11px; height: 11px; border: 1px solid #888; background:"
        legend = (
            f'<span style="{square} {to_hex(color / 255)}"></span> {html.escape(who)}'
            for color, who in zip((ONLY_A, ONLY_B, BOTH), self.who, strict=True)
        )
        return f"{super().caption()}<br>top {self.percent.value}% removed by {' &nbsp; '.join(legend)}"


def difference(pixels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which inputs only a removes, only b or both, in three colours over the pale image: uint8 (3, H, W).

    pixels: uint8 (C, H, W). a, b: bool (C or 1, H, W); a pixel's colour is the mean over its channels.
    """
    pale = 225 + 0.12 * pixels.mean(0)[None, ..., None]  # (1, H, W, 1)
    colors = np.where((a & b)[..., None], BOTH, np.where(a[..., None], ONLY_A, np.where(b[..., None], ONLY_B, pale)))
    return np.rint(colors.mean(0)).astype(np.uint8).transpose(2, 0, 1)
