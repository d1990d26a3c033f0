"""Curves that tell their numbers: a figure as inline SVG whose lines light up, in every panel, when pointed at."""

import html
import re
from io import StringIO
from uuid import uuid4

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from roarlib.views.sheets import DPI

POINTER = 8  # points: how wide a line is to the pointer
FITS = "max-width: 100%; height: auto; background: white"  # white paper in JupyterLab's dark theme too


def new_ids() -> str:
    """A prefix for the ids of a view's SVG: unlike any other on a page, even those of other notebooks and kernels."""
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
    style += "".join(
        f"#{ids}:has(.e{k}:hover) .e{k}>path:not(.near) {{stroke-width: 3px !important}}"
        f"#{ids}:has(.e{k}:hover) .e{k} text {{font-weight: bold}}"
        for k in lines
    )
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
