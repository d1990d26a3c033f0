"""The report's page: prose, figures and tables of executed notebooks in one HTML file that fetches nothing.

Figures and tables are numbered and named after the heading above them; tables are sorted by their column heads.
"""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd
from bs4 import BeautifulSoup
from nbconvert.filters import markdown2html
from PIL import Image

LEFT_OUT = ("Choose for yourself", "Your own estimator, at once")  # for readers of the notebook: a kernel, code
DPI = 200  # of the figures (plots.subplots reads it from ROAR_DPI)
ZOOM = 1.2 * 96 / DPI  # CSS pixels a dot: figures 1.2 times their size in inches, their text near the prose's
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass
class Section:
    """One part of the page: its title, its anchor, and its blocks of HTML."""

    title: str
    anchor: str
    blocks: list[str] = field(default_factory=list)

    def shows(self) -> bool:
        """Whether there is a figure or a table in it."""
        return any(block.startswith(("<figure", '<div class="scroll"')) for block in self.blocks)


@dataclass
class Counter:
    """How many figures and tables the page has so far."""

    figures: int = 0
    tables: int = 0


def html(title: str, head: str, sections: list[Section]) -> str:
    """The whole page. title: plain text; head: HTML below it; then a table of contents and the sections."""
    here, anchors = Path(__file__).parent, {s.anchor for s in sections}
    contents = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(
        f'<section aria-labelledby="{s.anchor}"><h2 id="{s.anchor}">{escape(s.title)}</h2>\n'
        + "\n".join(s.blocks)
        + "</section>\n"
        for s in sections
    )
    body = re.sub(  # a notebook of this page is a section of it; others are not here
        r'<a href="([\w-]+)\.ipynb">(.*?)</a>',
        lambda link: f'<a href="#{link[1]}">{link[2]}</a>' if link[1] in anchors else link[2],
        body,
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{(here / 'page.css').read_text()}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1>{head}</header>\n<nav aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f"{body}</main>\n<script>\n{(here / 'page.js').read_text()}</script>\n</body>\n</html>\n"
    )


def of_notebook(notebook, anchor: str, count: Counter) -> Section:
    """An executed notebook as a section, without code, widgets, and parts whose code showed nothing.

    notebook: nbformat's; its first heading is the title, of which a leading number is cut.
    """
    section = Section("", anchor)
    for part in _parts(notebook):
        title = next((_heading(block) for block in part if _heading(block)), "")
        section.title = section.title or title
        outputs = [block for block in part if not isinstance(block, str)]
        if title in LEFT_OUT or (outputs and not any(outputs)):
            continue
        for block in part:
            if isinstance(block, str):
                section.blocks.append(_prose(block))
            else:
                section.blocks += [_shown(output, title or section.title, section.title, count) for output in block]
    return section


def _parts(notebook) -> Iterator[list]:
    """Prose (str) and outputs (a list a code cell) from one heading to the next; a widget ends a part as well."""
    part = []
    for cell in notebook.cells:
        if "widget" in cell.metadata.get("tags", []):
            yield part
            part = []
        elif cell.cell_type == "code":
            part.append(cell.outputs)
        for source in re.split(r"(?m)^(?=##? )", cell.source) if cell.cell_type == "markdown" else ():
            if _heading(source):
                yield part
                part = []
            part.append(source)
    yield part


def _heading(block) -> str:
    found = re.match(r"##? (?:\d+ · )?(.*)", block) if isinstance(block, str) else None
    return found[1] if found else ""


def _prose(source: str) -> str:
    """Markdown as HTML below an h2."""
    source = re.sub(r"(?m)^# .*$|^\*\*Reads\*\*.*$", "", source)  # the title stands above; files are of no interest
    source = re.sub(r"\$(\w)\$", r"*\1*", source)  # a single letter needs no formula
    soup = BeautifulSoup(markdown2html(source), "html.parser")
    for link in soup.select("a.anchor-link"):
        link.decompose()
    for heading in soup.find_all(["h2", "h3"]):
        heading.name, heading.attrs = {"h2": "h3", "h3": "h4"}[heading.name], {}
    return str(soup)


def _shown(output, title: str, chapter: str, count: Counter) -> str:
    """One output of a cell as HTML: a figure, a table, or printed lines; nothing of what is meant for a log."""
    data = output.get("data", {})
    if "image/png" in data:
        return figure(base64.b64decode(data["image/png"]), title, chapter, count)
    if "text/html" in data:
        return table(data["text/html"], title, count)
    if output.get("name") == "stdout":
        lines = filter(str.strip, output.text.splitlines())
        return '<div class="said">' + "".join(f"<p>{text(line)}</p>" for line in lines) + "</div>"
    return ""


def figure(png: bytes, title: str, chapter: str, count: Counter) -> str:
    """A picture inside the page, with its size, a numbered caption, and the titles above it as the text in its place.

    Kept as lossless WebP, 40 percent of the PNG's bytes; every browser since 2020 shows it.
    """
    count.figures += 1
    picture, packed = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    picture.save(packed, "WEBP", lossless=True)
    alt = title if title == chapter else f"{chapter}: {title}"
    wide, high = (round(side * ZOOM) for side in picture.size)
    return (
        f'<figure id="figure-{count.figures}"><img alt="{escape(alt)}" width="{wide}" height="{high}" '
        f'style="--wide: {wide}px" src="data:image/webp;base64,'
        f'{base64.b64encode(packed.getvalue()).decode()}">'
        f"<figcaption><b>Figure {count.figures}.</b> {escape(title)}</figcaption></figure>"
    )


def table(source: str | pd.DataFrame, title: str, count: Counter, marked=()) -> str:
    """A table of pandas in the page's own form: numbers to the right, a button in each column's head to sort by it.

    source: its HTML, or a data frame. marked: numbers of rows to stand out. Empty where it has no row.
    """
    if isinstance(source, pd.DataFrame):
        source = source.to_html(index=False, na_rep="–", float_format="{:,.1f}".format)
    found = BeautifulSoup(source, "html.parser").table
    if found is None or not found.select("tbody tr"):
        return ""
    count.tables += 1
    heads = [cell.get_text(strip=True) for cell in found.thead.find_all("tr")[-1].find_all("th")]
    rows = [[cell.get_text(strip=True) for cell in row.find_all(["th", "td"])] for row in found.select("tbody tr")]
    sides = [_kind(column) for column in zip(*rows, strict=True)]
    top = "".join(
        f'<th scope="col"{side}><button type="button">{escape(head)}</button></th>'
        for head, side in zip(heads, sides, strict=True)
    )
    body = ""
    for k, row in enumerate(rows):
        cells = "".join(f"<td{side}>{text(cell)}</td>" for cell, side in zip(row, sides, strict=True))
        kind = ' class="marked"' if k in marked else ""
        body += f"<tr{kind}>{cells}</tr>\n"
    name = f"Table {count.tables}"
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table id="table-{count.tables}">'
        f"<caption><b>{name}.</b> {escape(title)}</caption>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _kind(column) -> str:
    """How a column is set: numbers to the right, short words unbroken."""
    if all(re.fullmatch(r"[-−+]?[\d,]*\.?\d+%?|–|nan|", cell) for cell in column):
        return ' class="number"'
    return ' class="short"' if max(map(len, column)) <= 15 else ""


def text(plain: str) -> str:
    """Plain text as HTML: true minus signs, and no line break within names such as SG-SQ-GRAD."""
    parts = re.split(r"([(\w]\S*-\S*)", re.sub(r"(?<!\S)-(?=\d)", "−", plain))  # every second one is a name
    return "".join(f'<span class="whole">{escape(p)}</span>' if k % 2 else escape(p) for k, p in enumerate(parts))
