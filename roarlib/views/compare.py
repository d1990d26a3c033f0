"""The view of two estimators on one image: which inputs each removes, and how much they share over t."""

import html

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from roarlib.data.datasets import Data
from roarlib.study import rankings
from roarlib.study.names import in_order, label
from roarlib.views import plots
from roarlib.views.images import Chooser
from roarlib.views.sheets import heat, sheet
from roarlib.views.view import View, choice

SAMPLE = 200  # images at most in a mean overlap ..
SAMPLE_UNITS = 8_000_000  # .. and units of them all: about 0.1 s
ONLY_A, ONLY_B, BOTH = np.array([[230, 159, 0], [0, 114, 178], [0, 0, 0]])  # Okabe and Ito's orange, blue, black
LINES = {"this image": (plots.INK, "-", 1.3), "mean": ("#009E73", "-", 1.8), "unrelated": (plots.QUIET, (0, (4, 2)), 1)}


class Compare(Chooser):
    """Two estimators on one image: where the sets they remove differ, and how much they share over t.

    found: as for Images. a, b: names of estimators in it. Controls, besides Chooser's: a, b.
    """

    def __init__(self, data: Data, predictions: dict, found: dict, a: str, b: str):
        self.found, self.means = found, {}
        estimators, units, splits = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
        super().__init__(data, predictions, splits, units)
        titles = [(label(n), n) for n in in_order(estimators)]
        self.a = choice("a", titles, "the first estimator", a)
        self.b = choice("b", titles, "the second estimator", b)
        View.__init__(self, [self.a, self.b, self.split, self.unit, self.index, self.percent])

    @mpl.rc_context(plots.LOOK)
    def draw(self) -> Figure:
        number, percent, names = self.number(), self.percent.value, (self.a.value, self.b.value)
        rankings_of = [self.all_of(name) for name in names]
        a, b = (ranking[number] for ranking in rankings_of)
        self.labels = [label(name) for name in names]
        removed = [rankings.removed(ranking, percent) for ranking in (a, b)]
        tiles = [self.pixels(), heat(a), heat(b), difference(self.pixels(), *removed)]
        titles = ["image", *(f"importance: {name}" for name in self.labels), f"top {percent}%: by whom"]
        only = [100 * (x & ~y).mean() for x, y in (removed, removed[::-1])]
        self.shares = [*only, 100 * (removed[0] & removed[1]).mean()]
        below = 2.3  # inches
        figure = sheet({"": tiles}, titles, below=below)
        wide, high = figure.get_size_inches()
        ax = figure.add_axes((0.55 / wide, 0.45 / high, 1 - 2.1 / wide, (below - 0.68) / high))
        self.over_t(ax, rankings.overlap(a, b), self.mean_of(*rankings_of))
        return figure

    def all_of(self, name: str) -> np.ndarray:
        """All rankings of an estimator for the split and unit chosen; LookupError where there are none."""
        key = name, self.unit.value, self.split.value
        if key not in self.found:
            raise LookupError(f"{name} is not ranked for this split and unit: choose others")
        return self.found[key]

    def mean_of(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Mean overlap over an even sample of the split's images, percent by percent (100,); kept."""
        key = self.a.value, self.b.value, self.unit.value, self.split.value
        if key not in self.means:
            self.sampled = max(1, min(SAMPLE, len(a), SAMPLE_UNITS // a[0].size))
            sample = np.linspace(0, len(a) - 1, self.sampled).astype(int)
            self.means[key] = np.mean([rankings.overlap(a[i], b[i]) for i in sample], axis=0)
        return self.means[key]

    def over_t(self, ax, here: np.ndarray, mean: np.ndarray) -> None:
        """Draw the overlap of this image, of the sample and of unrelated rankings, in percent over t."""
        t, percent = np.arange(1, 101), self.percent.value
        for (name, (color, dashes, width)), share in zip(LINES.items(), (here, mean, t / 100), strict=True):
            name = f"mean of {self.sampled} images" if name == "mean" else name
            ax.plot(
                t,
                100 * share,
                color=color,
                linestyle=dashes,
                linewidth=width,
                label=name,
                zorder=3 if name == "unrelated" else 2,
            )
        ax.axvline(percent, color=plots.FAINT, linewidth=1, zorder=0)
        ax.set(
            xlim=(0, 100),
            ylim=(0, 103),
            xticks=range(0, 101, 20),
            yticks=range(0, 101, 25),
            xlabel="t: percent of inputs removed",
            ylabel="overlap (%)",
        )
        ax.set_title("share of the removed inputs in common", loc="left", fontsize=plots.TEXT)
        ax.spines[["top", "right"]].set_visible(False)
        plots.name_lines(ax)
        self.overlaps = [100 * share[percent - 1] if percent else np.nan for share in (here, mean)]

    def caption(self) -> str:
        """The image, then the legend of the last picture with the share of each colour."""
        who = [f"only {name}" for name in self.labels] + ["both"]
        colors = [mpl.colors.to_hex(color / 255) for color in (ONLY_A, ONLY_B, BOTH)]
        square = "display: inline-block; width: 11px; height: 11px; border: 1px solid #888; background:"
        legend = [
            f'<span style="{square} {color}"></span> {html.escape(name)} {share:.1f}%'
            for color, name, share in zip(colors, who, self.shares, strict=True)
        ]
        return f"{super().caption()}<br>top {self.percent.value}% removed by {' &nbsp; '.join(legend)}"

    def alt(self) -> str:
        (a, b), percent = self.labels, self.percent.value
        only_a, only_b, both = self.shares
        text = (
            f"The image, its importance by {a} and by {b}, and the top {percent} percent of both: only {a} removes "
            f"{only_a:.1f} percent of all inputs, only {b} {only_b:.1f}, both {both:.1f}."
        )
        if not percent:
            return text
        return (
            f"{text} Share of the removed inputs in common: {self.overlaps[0]:.0f} percent in this image, "
            f"{self.overlaps[1]:.0f} on average over {self.sampled} images; unrelated rankings would share "
            f"{percent}."
        )


def difference(pixels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which inputs only a removes, only b or both, in three colours over the pale image: uint8 (3, H, W).

    pixels: uint8 (C, H, W). a, b: bool (C or 1, H, W); a pixel's colour is the mean over its channels.
    """
    pale = 225 + 0.12 * pixels.mean(0)[None, ..., None]  # (1, H, W, 1)
    colors = np.where((a & b)[..., None], BOTH, np.where(a[..., None], ONLY_A, np.where(b[..., None], ONLY_B, pale)))
    return np.rint(colors.mean(0)).astype(np.uint8).transpose(2, 0, 1)
