"""The report's page: executed notebooks in one HTML file that fetches nothing, by nbconvert and page.html.j2.

Its readers see prose, figures, tables and printed lines: no code, and no cells tagged as in HIDDEN. Figures and tables
are numbered and named after the heading above them; a click on a column head sorts a table.
"""

import base64
import io
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from nbformat import NotebookNode, v4
from PIL import Image

HIDDEN = {"notebook-only", "widget"}  # of use with a kernel, or to those who write code
DPI = 200  # of the figures (plots.subplots reads it from ROAR_DPI)
ZOOM = 1.2 * 96 / DPI  # CSS pixels per dot: figures at 1.2 times their size in inches, text about as large as the prose


def html(chapters: dict[str, NotebookNode], head: dict, how: dict, left_out: list[str]) -> str:
    """The whole page. chapters: anchor -> executed notebook. head, how: see report; left_out: what is missing, why."""
    exporter = HTMLExporter(
        template_paths=[str(Path(__file__).parent)],
        template_file="page.html.j2",
        preprocessors=[TagRemovePreprocessor(remove_cell_tags=HIDDEN)],
        filters={"webp": webp, "table": table, "whole": whole},
        exclude_anchor_links=True,
    )
    cells = [cell for anchor in chapters for cell in cut(chapters[anchor], anchor, set(chapters))]
    told = {"head": head, "how": how, "left_out": left_out}
    return exporter.from_notebook_node(v4.new_notebook(cells=cells), told)[0]


def shows(notebook: NotebookNode) -> bool:
    """Whether there is a figure or a table in it."""
    found = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    return any("image/png" in data or "text/html" in data for data in found)


def cut(notebook: NotebookNode, anchor: str, anchors: set[str]) -> Iterator[NotebookNode]:
    """A notebook's prose, cut at its headings, and outputs; metadata hold the anchor, the chapter and the title above.

    Prose that code has shown (`show.part`) is treated like any other. anchors: of all notebooks that links can lead to.
    """
    chapter = title = ""
    for tags, source, output in _pieces(notebook):
        if heading := re.match(r"##? (?:\d+ · )?(.*)", source):
            title = heading[1]
            chapter = chapter or title
        shown = v4.new_code_cell(outputs=[output]) if output else v4.new_markdown_cell(_prose(source, anchors))
        shown.metadata = {"tags": tags, "anchor": anchor, "chapter": chapter, "title": title}
        yield shown


def _pieces(notebook: NotebookNode) -> Iterator[tuple[list[str], str, NotebookNode | None]]:
    """Tags, and either prose from one heading to the next or one output, in the order of the page."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        for output in cell.get("outputs", [None]):
            source = output.get("data", {}).get("text/markdown", "") if output else cell.source
            if output and source and "caption" in output.get("metadata", {}):
                continue  # a caption, which stands with its figure
            yield from ((tags, part, None) for part in re.split(r"(?m)^(?=##? )", source) if part)
            if output and not source:
                yield tags, "", output


def _prose(source: str, anchors: set[str]) -> str:
    """Markdown below the title, without the line on files read; links to notebooks lead into the page or nowhere."""
    source = re.sub(r"(?m)^# .*|^\*\*Reads\*\*.*", "", source)
    source = re.sub(r"(?m)^##", "###", source)
    source = re.sub(r"\$(\w)\$", r"*\1*", source)  # a single letter needs no formula
    link = re.compile(r"\[([^]]*)\]\(([\w-]+)\.ipynb\)")
    return link.sub(lambda found: f"[{found[1]}](#{found[2]})" if found[2] in anchors else found[1], source)


def webp(png: str) -> dict:
    """A PNG in base64 as source and size of an <img>: lossless WebP, which takes 40 percent of the bytes."""
    picture, packed = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.save(packed, "WEBP", lossless=True)
    wide, high = (round(side * ZOOM) for side in picture.size)
    code = base64.b64encode(packed.getvalue()).decode()
    return {"width": wide, "height": high, "source": f"data:image/webp;base64,{code}"}


def table(source: str) -> dict:
    """A table of pandas as heads, rows of plain text, and the kind of each column; numbers are set on the right."""
    soup = BeautifulSoup(source, "html.parser")
    rows = [[cell.get_text(strip=True) for cell in row(["th", "td"])] for row in soup.select("tbody tr")]
    kinds = []
    for column in zip(*rows, strict=True):
        number = all(re.fullmatch(r"[-−+<]?[\d,]*\.?\d+%?|–|nan|", cell) for cell in column)
        kinds.append("number" if number else "short" if max(map(len, column)) <= 15 else "")
    heads = [cell.get_text(strip=True) for cell in soup.select("thead tr:last-of-type th")]
    return {"heads": heads, "rows": rows, "kinds": kinds}


def whole(plain: str) -> str:
    """Plain text as HTML: true minus signs, and no line break within names such as SG-SQ-GRAD."""
    parts = re.split(r"([(\w]\S*-\S*)", re.sub(r"(?<!\S)-(?=\d)", "−", plain))  # every second one is a name
    return "".join(f'<span class="whole">{escape(p)}</span>' if k % 2 else escape(p) for k, p in enumerate(parts))
