"""roarlib.page: what is kept of a notebook and what is not; tables with sortable heads; a page that fetches nothing."""

import base64
import io
import re

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from roarlib.views import page

V4 = nbformat.v4


def png(wide=200, high=100) -> str:
    packed = io.BytesIO()
    Image.new("RGB", (wide, high), "red").save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()


def shown(**data):
    return V4.new_output("display_data", data={key.replace("_", "/"): value for key, value in data.items()})


def code(*outputs, tags=()):
    return V4.new_code_cell("import secret", outputs=list(outputs), metadata={"tags": list(tags)})


@pytest.fixture
def section():
    cells = [
        V4.new_markdown_cell("# 10 · Curves\n\nWhy $t$ matters.\n\n**Reads** rows. **Next:** [11-x](11-x.ipynb)."),
        code(V4.new_output("stream", name="stdout", text="1 - 2: SG-SQ-GRAD <b> -3.5\n")),
        code(V4.new_output("stream", name="stderr", text="a warning")),
        V4.new_markdown_cell("## First\n\nSee [11-x](11-x.ipynb) and [04-retrain](04-retrain.ipynb)."),
        code(shown(image_png=png())),
        code(shown(text_html=pd.DataFrame({"name": ["b", "a"], "points": [-1.5, 2]}).style.hide().to_html())),
        V4.new_markdown_cell("Said after it.\n\n## Silent\n\nNothing comes of this."),
        code(),
        V4.new_markdown_cell("## Choose for yourself\n\nWith widgets."),
        code(shown(text_plain="Curves()"), tags=["widget"]),
        V4.new_markdown_cell("**How far this goes.** To here."),
    ]
    return page.of_notebook(V4.new_notebook(cells=cells), "10-curves", page.Counter())


@pytest.fixture
def soup(section):
    other = page.Section("Other", "11-x", ["<p>Other.</p>"])
    return BeautifulSoup(page.html("A study", "<p>Result.</p>", [section, other]), "html.parser")


def test_prose_figures_and_tables_stay_and_code_goes(soup):
    words = soup.main.get_text(" ")
    assert [h.text for h in soup.find_all(["h1", "h2", "h3"])] == ["A study", "Curves", "First", "Other"]
    assert "To here." in words and "Said after it." in words and soup.find("em", string="t")
    for gone in ("secret", "warning", "Nothing comes", "widgets", "Curves()", "Reads", "10 ·", "¶"):
        assert gone not in words
    assert "1 - 2: SG-SQ-GRAD <b> −3.5" in soup.select_one(".said").text  # escaped, with a true minus
    assert soup.select_one(".said .whole").text == "SG-SQ-GRAD"


def test_links_to_notebooks_lead_into_the_page_or_nowhere(soup):
    assert [(a["href"], a.text) for a in soup.select("section a")] == [("#11-x", "11-x")]
    assert "04-retrain" in soup.main.text
    assert [a["href"] for a in soup.select("nav a")] == ["#10-curves", "#11-x"]
    assert all(soup.find(id=a["href"][1:]) for a in soup.find_all("a"))


def test_a_figure_has_its_titles_as_alternative_text_and_its_size(soup):
    image = soup.img
    assert image["alt"] == "Curves: First" and soup.figcaption.text == "Figure 1. First"
    assert (int(image["width"]), int(image["height"])) == (round(200 * page.ZOOM), round(100 * page.ZOOM))
    packed = base64.b64decode(image["src"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(packed)).convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_table_heads_are_buttons_and_numbers_stand_right(soup):
    table = soup.table
    assert [(th.button["type"], th.text, th["class"], th["scope"]) for th in table.thead.find_all("th")] == [
        ("button", "name", ["short"], "col"),
        ("button", "points", ["number"], "col"),
    ]
    assert [[td.text for td in tr.find_all("td")] for tr in table.tbody.find_all("tr")] == [
        ["b", "−1.500000"],
        ["a", "2.000000"],
    ]
    assert table.caption.text == "Table 1. First"


def test_frames_are_tables_too_and_empty_ones_are_left_out():
    count = page.Counter()
    made = page.table(pd.DataFrame({"x": [1234.56, None], "y": ["<i>", "–"]}), "Costs", count, marked={1})
    rows = BeautifulSoup(made, "html.parser").select("tbody tr")
    assert [[td.text for td in row.find_all("td")] for row in rows] == [["1,234.6", "<i>"], ["–", "–"]]
    assert [row.get("class") for row in rows] == [None, ["marked"]]
    assert page.table(pd.DataFrame().style.to_html(), "None", count) == "" and count.tables == 1


def test_names_stay_whole_and_quotes_are_no_part_of_them():
    shown = BeautifulSoup(page.text('put "*-blur" or SG-SQ-GRAD <here>: -3'), "html.parser")
    assert shown.get_text() == 'put "*-blur" or SG-SQ-GRAD <here>: −3'
    assert "SG-SQ-GRAD" in [span.text for span in shown.select("span.whole")]


def test_a_section_without_figures_and_tables_shows_nothing(section):
    assert section.shows() and not page.Section("Other", "11-x", ["<p>Only words.</p>"]).shows()


def test_the_page_fetches_nothing_and_forbids_it(soup):
    text = str(soup)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not soup.select("link, iframe, script[src], img:not([src^='data:'])")
    policy = soup.select_one("meta[http-equiv='Content-Security-Policy']")["content"]
    assert policy.startswith("default-src 'none'") and "aria-sort" in soup.script.text and "@media print" in text
