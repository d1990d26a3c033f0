"""JupyterLab in a browser: the notebooks' views through real controls, and the report. SKIPPED without Chromium.

Wants Playwright's Python package (in the `test` extra) and a Chromium or Chrome of the machine, or $ROAR_CHROMIUM.
$ROAR_SCREENSHOTS names a folder for pictures of every view. Redraw times are printed (pytest -s).
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: the package playwright is missing")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("ROAR_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip("NO BROWSER TESTS: no Chromium here (apt install chromium, or $ROAR_CHROMIUM)", allow_module_level=True)
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()
NOTEBOOKS = sorted(file.name for file in (ROOT / "notebooks").glob("1?-*.ipynb"))

# Run the notebook, once everything is connected: a click on a button that looks ready is lost half the time.
RUN_ALL = """name => {
  const app = window.jupyterapp, nap = () => new Promise(done => setTimeout(done, 50));
  const run = async () => {
    await app.restored;
    while (app.shell.currentWidget?.context?.path !== name) await nap();
    const {context, sessionContext} = app.shell.currentWidget;
    await context.ready;
    await sessionContext.ready;
    while (sessionContext.session?.kernel?.connectionStatus !== 'connected') await nap();
    await sessionContext.session.kernel.info;
    app.commands.execute('notebook:run-all-cells');
  };
  const late = new Promise((_, fail) => setTimeout(fail, 60000, new Error(`${name} did not open within a minute`)));
  return Promise.race([run(), late]);
}"""
HAS_RUN = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(
  cell => cell.model.type === 'code').every(cell => cell.model.executionCount)"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(
  cell => cell.outputs ?? []).filter(output => output.output_type === 'error').map(output => output.evalue)"""
SAID = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(
  cell => cell.outputs ?? []).filter(output => output.name === 'stderr').map(output => [output.text].flat().join(''))"""
CHOSEN = "box => box.selectedOptions[0]?.text.replaceAll('\u00a0', ' ')"  # ipywidgets' spaces do not break
BESIDE = """line => {  // a point two dots from a line, and what it points at: the line, or another that lies there too
  const at = line.getPointAtLength(line.getTotalLength() / 6).matrixTransform(line.getScreenCTM());
  return [[at.x, at.y + 2], document.elementFromPoint(at.x, at.y + 2).closest('g.line').classList[0]];
}"""
# Take the time of the next change in a cell, and of the new picture that follows it.
WATCH = """cell => {
  const seen = window.seen = {pictures: 0};
  for (const kind of ['change', 'keydown', 'pointerdown'])
    cell.addEventListener(kind, () => { seen.start ??= performance.now(); }, {capture: true, once: true});
  new MutationObserver(() => { seen.pictures += 1; seen.done ??= performance.now(); }).observe(
    cell.querySelector('figure').parentElement, {childList: true});
}"""


@pytest.fixture(scope="module")
def lab(smoke, tmp_path_factory):
    """JupyterLab on this machine alone, with settings of its own, over copies of the notebooks: .url(notebook)."""
    environment, _, _ = smoke
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / name, folder / name)
    places = {f"JUPYTER_{kind}_DIR": folder / ".jupyter" / kind.lower() for kind in ("CONFIG", "RUNTIME", "DATA")}
    places |= {f"JUPYTERLAB_{kind}_DIR": folder / ".jupyter" / kind.lower() for kind in ("SETTINGS", "WORKSPACES")}
    write(
        places["JUPYTER_CONFIG_DIR"] / "labconfig" / "page_config.json",
        {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    )
    write(
        places["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab/notebook-extension/tracker.jupyterlab-settings",
        {"windowingMode": "none"},
    )  # cells out of sight are in the page as well
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    environment = environment | {key: str(place) for key, place in places.items()} | {"JUPYTER_TOKEN": token}
    with (folder / "lab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        await_server(server, f"http://127.0.0.1:{port}/api", folder / "lab.log")
        yield lambda notebook: f"http://127.0.0.1:{port}/doc/tree/{notebook}?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def write(file: Path, values: dict):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def await_server(server, url, log):
    until = time.monotonic() + 600
    while time.monotonic() < until and server.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page that must not have had an error, nor asked another machine for anything, by the end."""
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.set_default_timeout(60_000)
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda asked: wrong.append(asked.url) if not local(asked.url) else None)
    yield opened
    opened.close()
    assert not wrong


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:", "about:"))


@pytest.fixture
def notebook(page, lab):
    """A function that opens a notebook and runs it: its name -> the page, all cells done and none in error."""

    def opened(name):
        page.goto(lab(name))
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate(RUN_ALL, name)
        page.wait_for_function(HAS_RUN, timeout=600_000)
        assert page.evaluate(ERRORS) == []
        return page

    return opened


def view_of(page, call):
    """The cell with this call in its code, which is folded, and the means to ask about the view below it."""
    number = "call => window.jupyterapp.shell.currentWidget.content.widgets.findIndex("
    at = page.evaluate(number + "cell => cell.model.sharedModel.source.includes(call))", call)
    cell = page.locator(".jp-Notebook-cell").nth(at)
    cell.locator("figure").wait_for()
    cell.scroll_into_view_if_needed()
    return SimpleNamespace(
        cell=cell,
        picture=lambda: cell.locator("figure").inner_html(),
        caption=lambda: cell.locator("figcaption").inner_text(),
        slider=lambda name: cell.locator(".widget-slider", has_text=name).locator(".noUi-handle"),
        chosen=lambda: [box.evaluate(CHOSEN) for box in cell.locator("select").all()],
        words=lambda: cell.locator("figure img").get_attribute("alt"),
    )


def after(page, view, act, what) -> int:
    """Do something to a control; the picture must change. Returns how many came, and prints the time to the first."""
    before = view.picture()
    view.cell.evaluate(WATCH)
    act()
    page.wait_for_function("window.seen.done")
    seen = page.evaluate("window.seen")
    print(f"\n{what}: new picture after {seen['done'] - seen['start']:.0f} ms", end="")
    assert view.picture() != before
    return seen["pictures"]


def widths(lines) -> list[str]:
    return [line.evaluate("line => getComputedStyle(line).strokeWidth") for line in lines.all()]


def shoot(place, name):
    """A picture for people to look at, where $ROAR_SCREENSHOTS names a folder."""
    if folder := os.environ.get("ROAR_SCREENSHOTS"):
        place.screenshot(path=Path(folder) / f"{name}.png")


def test_curves_in_jupyterlab(notebook):
    page = notebook("10-accuracy-curves.ipynb")
    view = view_of(page, "explore.curves(study)")
    svg = view.cell.locator("figure svg")
    assert svg.get_attribute("role") == "img" and "Random, retrained, t = 0: " in svg.get_attribute("aria-label")
    first = ["single values", "removed", "retrained", "best and worst three", "all in colour"]
    assert view.chosen()[:5] == first  # none is blank
    assert svg.get_attribute("aria-label").count(", retrained, ") < 12
    shoot(view.cell, "curves")
    choose = view.cell.get_by_label("lines").select_option
    after(page, view, lambda: choose("all chosen below"), "curves, all lines")
    after(page, view, lambda: view.cell.get_by_label("highlight").select_option("VAR-IG"), "curves, dropdown")
    assert "VAR-IG in colour" in view.caption()
    after(page, view, lambda: view.cell.get_by_label("models").select_option("both"), "curves, both panels")
    assert "models retrained and not" in view.caption()
    lines = svg.locator("g.line", has_text="VAR-IG, ").locator("> path:not(.near)")
    assert len(widths(lines)) == 2 and "3px" not in widths(lines)
    svg.locator("text", has_text="VAR-IG").first.hover()
    assert widths(lines) == ["3px", "3px"]  # in both panels
    at, hit = lines.first.evaluate(BESIDE)
    page.mouse.move(*at)
    assert widths(svg.locator(f"g.line.{hit} > path:not(.near)")) == ["3px", "3px"]
    shoot(view.cell, "curves-both")
    after(page, view, lambda: view.cell.get_by_label("bases").select_option("IG"), "curves, bases")
    assert "VAR-GRAD" not in svg.get_attribute("aria-label") and "VAR-IG" in svg.get_attribute("aria-label")
    assert page.evaluate(ERRORS) == []


def test_images_in_jupyterlab(notebook):
    page = notebook("11-degraded-images.ipynb")
    view = view_of(page, "explore.images(study)")
    assert view.chosen()[:4] == ["test", "single values", "all", "all"]
    shoot(view.cell, "images")
    after(page, view, lambda: view.cell.get_by_label("prediction").select_option("wrong"), "images, dropdown")
    assert "(wrong)" in view.caption() and view.cell.locator("figure img").evaluate("img => img.naturalWidth") > 300
    after(page, view, lambda: view.slider("percent t").press("ArrowRight"), "images, slider by key")
    assert "top 31% removed" in view.words()
    handle = view.slider("percent t").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2

    def drag():
        page.mouse.move(x, y)
        page.mouse.down()
        for step in range(1, 21):
            page.mouse.move(x + 2 * step, y)
            page.wait_for_timeout(40)
        page.mouse.up()

    pictures = after(page, view, drag, "images, slider by mouse")
    print(f", {pictures} pictures in a drag of 0.8 s", end="")
    assert pictures > 2 and "top 31%" not in view.words()
    compared = view_of(page, "explore.compare(study)")
    other = compared.cell.get_by_label("b", exact=True)
    after(page, compared, lambda: other.select_option("Random"), "compare, dropdown")
    assert "only Random" in compared.caption()
    after(page, compared, lambda: compared.slider("image").press("ArrowRight"), "compare, slider by key")
    assert "test image 1:" in compared.caption()
    after(page, compared, lambda: compared.cell.get_by_text("previous").click(), "compare, previous image")
    assert "test image 0:" in compared.caption()
    box = compared.cell.get_by_label("number")
    after(page, compared, lambda: (box.fill("7"), box.press("Enter")), "compare, number typed")
    assert "test image 7:" in compared.caption()
    shoot(compared.cell, "compare")
    tried = view_of(page, "explore.try_estimator(study")
    after(page, tried, lambda: tried.cell.get_by_label("ensembles").select_option(["plain", "SG-SQ"]), "try, ensembles")
    assert tried.words().startswith("Rows: mine, SG-SQ-mine, GRAD,")
    after(page, tried, lambda: tried.slider("image").press("ArrowRight"), "try, another image")
    shoot(tried.cell, "try")
    assert page.evaluate(ERRORS) == []


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name[:2] not in ("10", "11")])
def test_run_all_shows_a_page_without_code_and_without_warnings(notebook, name):
    page = notebook(name)
    assert page.evaluate(SAID) == []
    assert page.locator(".jp-CodeCell .jp-InputArea-editor:visible").count() == 0
    assert page.locator(".jp-OutputArea-output:visible").count() >= 1
    shoot(page, name.removesuffix(".ipynb"))


def test_the_report_shows_its_figures(page, smoke_report):
    file, _ = smoke_report
    page.goto(file.as_uri())
    figures = page.locator("img")
    assert figures.count() >= 5
    assert all(image.evaluate("img => img.complete && img.naturalWidth > 100") for image in figures.all())
    shoot(page, "report")
