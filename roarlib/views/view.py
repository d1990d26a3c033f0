"""What views share: controls over one picture, drawn anew when a control changes, and figures as HTML.

The picture is HTML, so that it has words for those who do not see it. There is no Output widget and no `interact`:
both can hang a headless run, and this way a view draws, and is tested, without a browser.
"""

import base64
import html
import re
from io import BytesIO, StringIO
from uuid import uuid4

import matplotlib as mpl
import numpy as np
from ipywidgets import HTML, Button, Dropdown, HBox, Layout, SelectMultiple, VBox
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from roarlib import params, plots
from roarlib.names import split_name

DPI = 110
WIDTH = "270px"  # of a control
OWN = "own"  # stands for the bases of users' own estimators
FAMILIES = {"": "plain", "squared": "squared", "sg": "SG", "sg-squared": "SG squared", "sgsq": "SG-SQ", "var": "VAR"}
TILE, GAP, TITLE = 160, 6, 20  # dots: about a side of an image, between two, above the first row
POINTER = 8  # points: how wide a line is to the pointer
FITS = "max-width: 100%; height: auto; background: white"  # white paper in JupyterLab's dark theme too


class View(VBox):
    """Controls, a message and a picture. `figure` is the Figure shown, None while there is only a message."""

    busy = False  # True while controls set one another

    def __init__(self, controls: list, missing: str = ""):
        self.figure = None
        self.message, self.picture = HTML(), HTML()
        if missing:
            super().__init__([self.message])
            return self.say(missing)
        row = HBox(controls, layout=Layout(flex_flow="row wrap", align_items="flex-start"))
        super().__init__([row, self.message, self.picture])
        for control in controls:
            if not isinstance(control, Button):
                control.observe(self.redraw, "value")
        self.redraw()

    def draw(self) -> Figure:
        """The picture for the controls as they are; LookupError or InputError, one sentence, where there is none."""
        raise NotImplementedError

    def caption(self) -> str:
        """HTML above the picture: what is shown."""
        raise NotImplementedError

    def alt(self) -> str:
        """The picture in words, plain text."""
        raise NotImplementedError

    def shown(self) -> str:
        """The figure as HTML."""
        return image(self.figure, self.alt())

    def redraw(self, _change=None) -> None:
        if self.busy:
            return
        try:
            self.figure = self.draw()
        except (LookupError, params.InputError) as problem:
            return self.say(str(problem.args[0]))
        self.message.layout.display, self.picture.layout.display = "none", None
        caption = f'<figcaption style="line-height: 1.6">{self.caption()}</figcaption>'
        self.picture.value = f'<figure style="margin: 4px 0">{caption}{self.shown()}</figure>'

    def say(self, sentence: str) -> None:
        """Show a sentence in place of the picture; what stands in `backticks` is set as code."""
        text = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(sentence[:1].upper() + sentence[1:]))
        self.figure, self.message.value = None, f"<p>{text}</p>"
        self.message.layout.display, self.picture.layout.display = None, "none"


def image(figure: Figure, alt: str) -> str:
    """A figure as an <img> with a PNG in it, lightly compressed: it goes to a browser next door, and time counts."""
    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 1})
    code = base64.b64encode(file.getvalue()).decode()
    wide, high = (round(side) for side in figure.bbox.size)  # known before it is decoded: nothing jumps
    return (f'<img alt="{html.escape(alt)}" width="{wide}" height="{high}" decoding="sync" style="{FITS}" '
            f'src="data:image/png;base64,{code}">')


def new_ids() -> str:
    """A prefix for the ids of a view's SVG: no other of a page has it, be it of another notebook and kernel."""
    return f"v{uuid4().hex[:8]}"


def drawing(figure: Figure, alt: str, ids: str, titles: list[list[str]]) -> str:
    """A figure as inline SVG in which pointing at a line or its name thickens the line and tells its numbers.

    ids: `new_ids` of the view. titles: panel -> line -> tooltip. Line k of panel p and its name carry the gid
    'line:p:k'; lines k of all panels light up together.
    """
    file = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": ids}):
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    body = file.getvalue()[file.getvalue().index("<svg") :]
    body = re.sub("<style.*?</style>", "", body, flags=re.S)  # matplotlib's rule would be for the whole page
    body = pointable(body, titles)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{ids}-", body)
    lines = range(max(map(len, titles)))
    style = f"#{ids} * {{stroke-linejoin: round; pointer-events: none}}#{ids} .line * {{pointer-events: auto}}"
    style += "".join(f"#{ids}:has(.e{k}:hover) .e{k}>path:not(.near) {{stroke-width: 3px !important}}"
                     f"#{ids}:has(.e{k}:hover) .e{k} text {{font-weight: bold}}" for k in lines)
    wide = round(figure.get_figwidth() * DPI)
    head = f'<svg id="{ids}" role="img" aria-label="{html.escape(alt)}" style="width: {wide}px; {FITS}" '
    return head + re.sub(r'<svg .*?(viewBox="[^"]*")[^>]*>', rf"\1><style>{style}</style>", body, count=1, flags=re.S)


def pointable(body: str, titles: list[list[str]]) -> str:
    """SVG code with classes and tooltips in place of the gids 'line:p:k', and an unseen wide path under each line.

    Under all lines of a panel, so that a thin line wins over the wide rims of others.
    """
    def group(panel, line):
        return f'<g class="e{line} line"><title>{html.escape(titles[int(panel)][int(line)])}</title>'

    under = {}
    for found in re.finditer(r'<g id="line:(\d+):(\d+)">\s*<path (d="[^"]*" clip-path="[^"]*")', body):
        panel, line, path = found.groups()
        unseen = f"fill: none; stroke: #fff; stroke-opacity: 0; stroke-width: {POINTER}px"
        under[panel] = f'{under.get(panel, "")}{group(panel, line)}<path class="near" {path} style="{unseen}"/></g>'
    for panel, paths in under.items():
        body = re.sub(rf'(?=<g id="line:{panel}:)', paths.replace("\\", r"\\"), body, count=1)
    return re.sub(r'<g id="line:(\d+):(\d+)">', lambda found: group(*found.groups()), body)


def sheet(rows: dict[str, list[np.ndarray]], columns: list[str], below: float = 0.0) -> Figure:
    """Images in rows, each row's label on its left and the columns' titles above; crisp and quick, without axes.

    rows: label -> images uint8 (C, H, W), all of one size. below: inches to leave free at the bottom.
    """
    _, high, wide = next(iter(rows.values()))[0].shape
    times = max(1, round(TILE / max(high, wide)))  # whole dots a pixel: nothing is blurred
    down, across = high * times + GAP, wide * times + GAP
    left = round(0.68 * max(map(len, rows)) * plots.TEXT / 72 * DPI) + GAP  # room for labels
    size = np.array([left + len(columns) * across, TITLE + len(rows) * down + below * DPI])  # dots
    figure = Figure(size / DPI, DPI)
    for r, (label, images) in enumerate(rows.items()):
        top = size[1] - TITLE - r * down
        figure.text((left - GAP) / size[0], (top - down / 2) / size[1], label, ha="right", va="center",
                    fontsize=plots.TEXT)
        for c, image in enumerate(images):
            shown = np.moveaxis(image, 0, -1).repeat(3 // len(image), 2).repeat(times, 0).repeat(times, 1)
            figure.figimage(shown, left + c * across, round(top - high * times), origin="upper")
    for c, title in enumerate(columns):
        middle = (left + c * across + wide * times / 2) / size[0]
        fits = 72 / DPI * across / (0.68 * len(title))  # points: letters are about so wide
        figure.text(middle, 1 - 0.5 * TITLE / size[1], title, ha="center", va="center",
                    fontsize=min(plots.TEXT, fits))
    return figure


def heat(ranking: np.ndarray) -> np.ndarray:
    """A ranking (C or 1, H, W) as an image uint8 (3, H, W): what goes first bright, mean of the channels."""
    colors = mpl.colormaps["inferno"](1 - np.asarray(ranking, dtype=float).mean(0) / 100, bytes=True)
    return np.moveaxis(colors[..., :3], -1, 0)

def run(name: str) -> str:
    """What to do about missing results of a study."""
    return f"run `roar run params/{name}.yaml`"


def base_of(name: str) -> str:
    """grad, gb, ig, or OWN for estimators of users."""
    base, _ = split_name(name)
    return base if base in plots.BASES else OWN


def is_control(name: str) -> bool:
    """Random, Sobel and the like, and their variants."""
    return split_name(name)[0] in plots.CONTROLS


def named(titles: dict, values) -> list[tuple[str, str]]:
    """(title, value) of those values that occur, in the order of the titles."""
    there = set(values)
    return [(title, value) for value, title in titles.items() if value in there]


def choice(description: str, options, tooltip: str, value=None) -> Dropdown:
    """A labelled choice of one, the first unless value says which; options: values or (title, value)."""
    more = {} if value is None else {"value": value}
    return Dropdown(options=options, description=description, tooltip=tooltip, layout=Layout(width=WIDTH), **more)


def many(description: str, options, value, tooltip: str) -> SelectMultiple:
    """A labelled choice of several; options: values or (title, value)."""
    return SelectMultiple(options=options, value=value, description=description, tooltip=tooltip,
                          rows=min(len(options), 6) or 1, layout=Layout(width=WIDTH))
