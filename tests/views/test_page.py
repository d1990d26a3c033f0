"""roarlib.views.page: what is kept of a notebook and what is not; tables that can be sorted; nothing is fetched."""

import base64
import io
import re
from datetime import datetime

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import tiny_study
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


def notebook(*cells):
    return V4.new_notebook(cells=list(cells))


def prose(source, *tags):
    return V4.new_markdown_cell(source, metadata={"tags": list(tags)})


@pytest.fixture
def curves():
    cells = [
        V4.new_markdown_cell("# 10 · Curves\n\nWhy $t$ matters.\n\n**Reads** rows. **Next:** [11-x](11-x.ipynb)."),
        code(V4.new_output("stream", name="stdout", text="1 - 2: SG-SQ-GRAD <b> -3.5\n")),
        code(V4.new_output("stream", name="stderr", text="a warning")),
        V4.new_markdown_cell("## First\n\nSee [11-x](11-x.ipynb) and [04-retrain](04-retrain.ipynb)."),
        code(shown(image_png=png())),
        code(shown(text_html=pd.DataFrame({"name": ["b", "a"], "points": [-1.5, 2]}).style.hide().to_html())),
        V4.new_markdown_cell("Said after it."),
        code(),
        prose("## Choose for yourself\n\nWith widgets.", "notebook-only"),
        code(shown(text_plain="Curves()"), tags=["widget"]),
        V4.new_markdown_cell("**How far this goes.** To here."),
    ]
    return notebook(*cells)


def rendered(chapters, left_out=(), **how):
    """The page with these chapters, as soup."""
    head = {"study": tiny_study(), "result": "Result.", "what": "single values removed", "retrained": 12}
    head |= {"n_train": 1000, "n_test": 50, "n_classes": 10, "clean": 0.5, "error": 0.07, "today": datetime(2026, 1, 2)}
    head |= {"cost": "2.0 hours of one worker's time on a CPU"}
    head |= {"floor": 0.1, "floor_is": "chance", "groups": [("better", "better than Random", "SG-SQ-GRAD, Sobel")]}
    head |= {"doubts": ["ROAR is blind."]}
    how = {"parameters": "", "machines": "", "cost": "", "hours": (1, 2)} | how
    return BeautifulSoup(page.html(chapters, head, how, list(left_out)), "html.parser")


@pytest.fixture
def soup(curves):
    other = notebook(prose("# Other\n\nOther."), code(shown(image_png=png())))
    return rendered({"10-curves": curves, "11-x": other})


def test_prose_figures_and_tables_stay_and_code_goes(soup):
    words = soup.main.get_text(" ")
    assert [h.text for h in soup.find_all(["h1", "h2", "h3"])] == [
        "ROAR study tiny", "Curves", "First", "Other", "How it was made", "Parameters", "Versions and machines", "Cost",
    ]  # fmt: skip
    assert "To here." in words and "Said after it." in words and soup.find("em", string="t")
    for gone in ("secret", "warning", "widgets", "Curves()", "Reads", "10 ·", "¶"):
        assert gone not in words
    assert "1 - 2: SG-SQ-GRAD <b> −3.5" in soup.select_one(".said").text  # escaped, with a true minus
    assert soup.select_one(".said .whole").text == "SG-SQ-GRAD"


def test_chapters_are_folded_but_for_the_first(curves):
    page = rendered({"10-curves": curves, "11-x": curves})
    folds = page.select("section > details")
    assert [fold.has_attr("open") for fold in folds] == [True, False, False]
    assert [fold.h2.text for fold in folds] == [link.text for link in page.select("nav a")]


def test_links_to_notebooks_lead_into_the_page_or_nowhere(soup):
    assert [(a["href"], a.text) for a in soup.select("section a")] == [("#11-x", "11-x")]
    assert "04-retrain" in soup.main.text
    assert [a["href"] for a in soup.select("nav a")] == ["#10-curves", "#11-x", "#how-it-was-made"]
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


def test_what_is_said_above_and_below_everything():
    made = pd.DataFrame({"x": [1234.56, None], "y": ["<i>", "differs"]}).to_html(index=False, na_rep="–")
    soup = rendered({}, ["11-x failed: <b>"], parameters=made, machines=pd.DataFrame().style.to_html())
    assert soup.select_one(".lead").text == "Result."
    assert soup.select_one(".doubt").text == "ROAR is blind." and soup.select_one(
        ".doubt ~ .lead"
    )  # above the verdicts
    (verdict,) = soup.select(".verdicts li")
    assert verdict["class"] == ["better"] and verdict.text.strip() == "better than Random SG-SQ-GRAD, Sobel"
    facts = " ".join(soup.select_one(".facts").text.split())
    assert facts == (
        "Single values removed; 12 retrainings of resnet-tiny on textures, 1,000 train and 50 test images, 10 classes. "
        "Clean accuracy 50.0, chance 10.0; each accuracy is good to ±14.0. "
        "It took 2.0 hours of one worker's time on a CPU. 2 January 2026"
    )
    (table,) = soup.find_all("table")  # one without rows is left out
    rows = table.select("tbody tr")
    assert [[td.text for td in row.find_all("td")] for row in rows] == [["1234.56", "<i>"], ["–", "differs"]]
    assert [row.get("class") for row in rows] == [None, ["marked"]] and table.caption.text == "Table 1. Parameters"
    assert "Left out: 11-x failed: <b>." in soup.text and "1.00 worker-hours" in soup.text


def test_names_stay_whole_and_quotes_are_no_part_of_them():
    shown = BeautifulSoup(page.whole('put "*-blur" or SG-SQ-GRAD <here>: -3'), "html.parser")
    assert shown.get_text() == 'put "*-blur" or SG-SQ-GRAD <here>: −3'
    assert "SG-SQ-GRAD" in [span.text for span in shown.select("span.whole")]


def test_a_notebook_without_figures_and_tables_shows_nothing(curves):
    words = notebook(prose("# Only words"), code(V4.new_output("stream", name="stdout", text="words")))
    assert page.shows(curves) and not page.shows(words)


def test_prose_that_code_shows_is_prose_with_its_heading():
    part = shown(text_markdown="## Part\n\nSee [x](x.ipynb).")
    cells = prose("# Title\n\nWhy."), code(), code(part, shown(image_png=png())), prose("Stays.")
    soup = rendered({"x": notebook(*cells)})
    assert [h.text for h in soup.find_all("h3")][0] == "Part" and soup.figcaption.text == "Figure 1. Part"
    words = soup.select_one("section").get_text(" ").split()
    assert words == ["Title", "Why.", "Part", "See", "x", ".", "Figure", "1.", "Part", "Stays."]


def test_a_caption_stands_with_its_figure_alone():
    outputs = shown(image_png=png(800)), shown(text_markdown="*Three lines cross.*")
    for output in outputs:
        output.metadata["caption"] = "Three lines cross."
    soup = rendered({"x": notebook(prose("# Title"), code(*outputs))})
    (caption,) = soup.select("figcaption")
    assert caption.text == "Figure 1. Three lines cross. Scroll sideways to see all of it."
    assert soup.main.text.count("Three lines cross.") == 1


def test_the_page_fetches_nothing_and_forbids_it(soup):
    text = str(soup)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not soup.select("link, iframe, script[src], img:not([src^='data:'])")
    policy = soup.select_one("meta[http-equiv='Content-Security-Policy']")["content"]
    assert policy.startswith("default-src 'none'") and "aria-sort" in soup.script.text and "@media print" in text
