"""roarlib.plots: what is on the axes, label by label; no overlapping names; missing results in words."""

import matplotlib as mpl
import nbclient
import nbformat
import numpy as np
import pytest
from conftest import CLEAN, EVERY, ROOT, simulated
from matplotlib.colors import to_hex

from roarlib.answers import paper
from roarlib.engine.degrade import as_seen
from roarlib.study import names
from roarlib.views import naming, plots, sheets

mpl.use("Agg")
plt = plots.plt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def table():
    return simulated()


@pytest.fixture(scope="module")
def sparse():
    return simulated(("grad", "grad-sgsq", "random"), (50, 90), (0,), ("pixel",), ("remove",))


def names_on(ax) -> dict:
    return {text.get_text(): text for text in ax.texts if text.get_text() != "chance"}


def assert_readable(ax):
    """No name overlaps another, leaves the figure or lies over the curves."""
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in names_on(ax).values()), key=lambda box: box.y0)
    for below, above in zip(boxes, boxes[1:], strict=False):
        assert above.y0 >= below.y0 + 0.8 * below.height  # glyphs do not fill their boxes
    assert all(box.x0 > ax.get_window_extent().x1 for box in boxes)
    assert all(ax.figure.bbox.x1 >= box.x1 and box.y0 >= 0 for box in boxes)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("grad", "GRAD"),
        ("gb-squared", "GB²"),
        ("ig-sg", "SG-IG"),
        ("ig-sg-squared", "(SG-IG)²"),
        ("grad-sgsq", "SG-SQ-GRAD"),
        ("gb-var", "VAR-GB"),
        ("random", "Random"),
        ("sobel", "Sobel"),
        ("oracle", "Oracle"),
        ("anti-oracle", "Anti-oracle"),
        ("mine:twice", "mine:twice"),
        ("captum:DeepLift-sg", "SG-captum:DeepLift"),
    ],
)
def test_labels(name, label):
    assert names.label(name) == label


def test_every_estimator_has_a_label_and_a_look_of_its_own():
    looks = {(s["color"], s["linestyle"], s["marker"]) for s in map(names.style, EVERY)}
    assert len(looks) == len(EVERY) == len({names.label(name) for name in EVERY})


def test_bases_beside_the_papers_have_colours_of_their_own():
    bases = [*names.READY, "mine:a", "mine:b", "captum:DeepLift", "captum:LayerGradCam"]
    looks = {(s["color"], s["linestyle"]) for s in map(names.style, bases)}
    colours = {names.style(name)["color"] for name in (*names.READY, *EVERY)}
    assert len(looks) == len(bases)
    assert len(colours) == len(names.READY) + len({names.style(name)["color"] for name in EVERY})
    for base in bases:
        family = [names.style(f"{base}-{e}" if e else base) for e in names.ENSEMBLES]
        assert len({s["color"] for s in family}) == 1 and len({s["marker"] for s in family}) == 6
    assert names.label("gradcam-sgsq") == "SG-SQ-Grad-CAM" and names.label("lrp-abs") == "|LRP|"
    given = ["mine:a", "rollout", "gradcam-var", "ig", "gradcam"]
    assert names.in_order(given) == ["ig", "gradcam", "gradcam-var", "rollout", "mine:a"]


def test_order_is_the_papers_then_users_then_controls():
    given = ["sobel", "mine:b", "ig", "random", "grad-var", "mine:a"]
    assert names.in_order(given) == ["grad-var", "ig", "mine:a", "mine:b", "random", "sobel"]
    assert set(names.in_order(EVERY)) == set(EVERY)


def test_curve_draws_the_means_in_percent_from_the_clean_point(table):
    _, axes = plots.subplots()
    plots.curves(table, axes[0, 0], ["grad"], named=False)
    (drawn,) = axes[0, 0].lines
    rows = table[
        (table.measure == "retrain")
        & (table.estimator == "grad")
        & (table.unit == "value")
        & (table["mode"] == "remove")
    ]
    assert drawn.get_xdata().tolist() == [0, 10, 30, 50, 70, 90]
    np.testing.assert_allclose(drawn.get_ydata()[1:], 100 * rows.groupby("percent").accuracy.mean())
    assert drawn.get_ydata()[0] == pytest.approx(100 * CLEAN, abs=1)
    assert len(axes[0, 0].collections) == 1  # the interval


def test_keep_runs_from_all_kept_to_little_kept(table):
    _, axes = plots.subplots()
    plots.curves(table, axes[0, 0], ["grad"], mode="keep")
    (drawn,) = axes[0, 0].lines
    left, right = axes[0, 0].get_xlim()
    assert left > 100 > 10 > right and max(drawn.get_xdata()) == 100
    assert "kept" in axes[0, 0].get_xlabel()


def test_all_curves_are_named_at_their_ends_without_overlap(table):
    for mode in ("remove", "keep"):
        _, axes = plots.subplots()
        plots.curves(table, axes[0, 0], mode=mode, chance=0.1)
        assert set(names_on(axes[0, 0])) == {names.label(name) for name in EVERY}
        assert_readable(axes[0, 0])


def test_highlight_greys_all_others_but_the_controls(table):
    _, axes = plots.subplots()
    plots.curves(table, axes[0, 0], highlight=["ig-var"])
    assert set(names_on(axes[0, 0])) == {"VAR-IG", "Random", "Sobel", "Oracle", "Anti-oracle"}
    quiet = [line for line in axes[0, 0].lines if to_hex(line.get_color()) == plots.FAINT]
    assert len(quiet) == 17 and "grey: 17 others" in axes[0, 0].get_title(loc="left")
    assert_readable(axes[0, 0])


def test_caption_tells_n_and_interval(table, sparse):
    _, axes = plots.subplots(1, 3)
    plots.curves(table, axes[0, 0])
    plots.curves(sparse, axes[0, 1], unit="pixel")
    plots.curves(table, axes[0, 2], measure="deletion")
    captions = [ax.get_title(loc="left") for ax in axes[0]]
    assert "mean of 3 seeds, band: 95% t interval" in captions[0]
    assert "1 seed, no interval" in captions[1] and "not retrained" in captions[2]


def test_by_base_has_a_panel_a_base_and_the_controls_in_each(table):
    figure = plots.by_base(table, mode="keep")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["GRAD", "GB", "IG"]
    for ax in figure.axes:
        assert {"Random", "Sobel", "Oracle", "Anti-oracle"} < set(names_on(ax))
        assert len(names_on(ax)) == 10
        assert_readable(ax)


def test_by_base_gives_users_own_a_panel():
    figure = plots.by_base(simulated(("grad", "mine:a", "mine:a-sg", "random")))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["GRAD", "Your own"]
    assert set(names_on(figure.axes[1])) == {"mine:a", "SG-mine:a", "Random"}


def test_sparse_tables_are_drawn(sparse):
    assert len(plots.by_base(sparse, unit="pixel").axes) == 1
    for ax in plots.roar_and_deletion(sparse, unit="pixel").axes:
        assert set(names_on(ax)) == {"GRAD", "SG-SQ-GRAD", "Random"}
        assert_readable(ax)


def test_roar_and_deletion_share_one_scale(table):
    left, right = plots.roar_and_deletion(table, highlight=["grad"], chance=0.1).axes
    assert left.get_ylim() == right.get_ylim()
    assert left.get_title(loc="left").startswith("not retrained")
    assert right.get_title(loc="left").startswith("retrained")


def test_remove_and_keep_share_one_scale_and_say_what_is_good(table):
    left, right = plots.remove_and_keep(table, highlight=["grad"], chance=0.1).axes
    assert left.get_ylim() == right.get_ylim()
    assert "removed" in left.get_xlabel() and "kept" in right.get_xlabel()
    assert left.get_xlim()[0] < left.get_xlim()[1] and right.get_xlim()[0] > right.get_xlim()[1]  # emptier rightwards
    assert left.get_title(loc="left").startswith("ROAR, lower is better\nretrained")
    assert right.get_title(loc="left").startswith("KAR, higher is better\nretrained")
    for ax in (left, right):
        assert set(names_on(ax)) == {"GRAD", "Random", "Sobel", "Oracle", "Anti-oracle"}
        assert_readable(ax)


def test_remove_and_keep_draw_every_estimator_of_each_mode(table):
    figure = plots.remove_and_keep(table, unit="pixel", estimators=["ig", "random"], interval=False)
    for ax, mode in zip(figure.axes, ("remove", "keep"), strict=True):
        rows = table[
            (table.measure == "retrain") & (table.estimator == "ig") & (table.unit == "pixel") & (table["mode"] == mode)
        ]
        drawn = next(line for line in ax.lines if line.get_label() == "IG")
        points = dict(zip(*drawn.get_data(), strict=True))
        for percent, accuracy in rows.groupby("percent").accuracy.mean().items():
            assert points[percent] == pytest.approx(100 * accuracy)
        assert set(names_on(ax)) == {"IG", "Random"} and not ax.collections[:-1]  # leaders alone, no band


def test_remove_and_keep_need_both_modes(table, sparse):
    before = plt.get_fignums()
    with pytest.raises(LookupError, match="mode keep yet"):
        plots.remove_and_keep(sparse, unit="pixel")
    with pytest.raises(LookupError, match="no results of gb yet"):
        plots.remove_and_keep(table[(table.estimator != "gb") | (table["mode"] == "remove")], estimators=["gb"])
    assert plt.get_fignums() == before


def test_dots_an_inch_can_be_asked_for(monkeypatch):
    usual = plots.subplots()[0].dpi
    monkeypatch.setenv("ROAR_DPI", "200")
    assert plots.subplots()[0].dpi == 200 != usual


def test_paper_stays_white_under_a_dark_style(table):
    with plt.style.context("dark_background"):
        figure = plots.by_base(table)
        _, ax = plt.subplots()
        plots.curves(table, ax, ["grad"])
    for part in (figure, *figure.axes, ax, ax.figure):
        assert to_hex(part.get_facecolor()) == "#ffffff"
    assert to_hex(ax.xaxis.label.get_color()) == to_hex(figure.axes[0].xaxis.label.get_color()) == plots.INK


def test_figures_show_in_a_notebook():
    """The first figure of a kernel, which loads its backend, is ours; the second must show as well."""
    cells = ["from roarlib.views import naming, plots; figure, axes = plots.subplots()", "_ = plots.subplots()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT}}).execute()
    for cell in notebook.cells:
        assert ["image/png" in output.get("data", {}) for output in cell.outputs] == [True]


def test_missing_results_are_said_and_leave_no_figure(table, sparse):
    before = plt.get_fignums()
    with pytest.raises(LookupError, match=r"`roar run` with a YAML"):
        plots.by_base(sparse, unit="value")
    with pytest.raises(LookupError, match="deletion .*run `roar run"):
        plots.roar_and_deletion(table[table.measure != "deletion"])
    with pytest.raises(LookupError, match="no retrain results"):
        plots.by_base(table.iloc[:0])
    with pytest.raises(LookupError, match="no rankings"):
        sheets.degraded_sheet(np.zeros((3, 4, 4), np.uint8), {}, (10,))
    assert plt.get_fignums() == before
    _, axes = plots.subplots()
    with pytest.raises(LookupError, match="no results of gb"):
        plots.curves(sparse, axes[0, 0], highlight=["gb"], unit="pixel")


def test_apart_by_hand():
    np.testing.assert_allclose(naming.apart(np.array([0.5, 0.1, 0.5]), 0.2), [0.4, 0.1, 0.6])
    np.testing.assert_allclose(naming.apart(np.array([0.0, 0.0]), 0.1), [0.0, 0.1])  # pushed up from the floor
    np.testing.assert_allclose(naming.apart(np.array([0.2, 0.8]), 0.1), [0.2, 0.8])  # far enough: left alone
    np.testing.assert_allclose(naming.apart(np.array([1.0, 1.0, 1.0]), 0.9), [0.0, 0.5, 1.0])  # gap shrinks
    assert naming.apart(np.array([0.3]), 0.2).tolist() == [0.3]


def test_degraded_sheet_has_estimators_down_and_percents_across():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 8, 8), np.uint8)
    maps = {n: rng.integers(0, 100, (c, 8, 8), np.uint8) for n, c in (("sobel", 1), ("grad", 3))}
    times = 12  # of 100 dots for 8 pixels

    def shown(figure, row, column):
        """One image of the sheet, (C, H, W), as it was before it was enlarged."""
        picture = np.asarray(figure.axes[0].images[0].get_array())
        step = 8 * times + sheets.GAP
        assert picture.shape[0] == 2 * step and not picture.shape[1] % step
        tile = picture[row * step :, column * step :][: 8 * times : times, : 8 * times : times]
        return np.moveaxis(tile, -1, 0)

    def titles(figure):
        return [" ".join(text.get_text().split()) for text in figure.axes[0].get_xticklabels()]

    figure = sheets.degraded_sheet(pixels, maps, (10, 90), fill=(1, 2, 3))
    assert titles(figure) == ["image", "importance", "10% removed", "90% removed"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["GRAD", "Sobel"]
    assert (shown(figure, 0, 0) == pixels).all()
    assert (shown(figure, 0, 3) == as_seen(pixels, maps["grad"], 90, "remove", (1, 2, 3))).all()
    bright = shown(figure, 1, 1).sum(0, dtype=int)
    assert bright.argmax() == maps["sobel"][0].argmin()  # the first ranked is the brightest
    masks = sheets.degraded_sheet(pixels, maps, (10,), "mask")
    assert titles(masks)[2] == "10% removed, their mask alone"
    assert np.unique(shown(masks, 1, 2)).tolist() == [0, 255]


def test_titles_of_a_sheet_do_not_touch():
    rng = np.random.default_rng(0)
    for side, mode in ((32, "remove-imputed"), (32, "keep-imputed"), (64, "mask"), (224, "remove")):
        pixels, ranking = (
            rng.integers(0, 256, (3, side, side), np.uint8),
            rng.integers(0, 100, (1, side, side), np.uint8),
        )
        figure = sheets.degraded_sheet(pixels, {"grad-sgsq": ranking, "anti-oracle": ranking}, (10, 30, 100), mode)
        plots.mpl.backends.backend_agg.FigureCanvasAgg(figure).draw()
        (ax,) = figure.axes
        across = [text.get_window_extent() for text in ax.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in zip(across, across[1:], strict=False))
        picture, page = ax.get_window_extent(), figure.bbox
        assert all(box.y0 >= picture.y1 and box.y1 <= page.y1 and box.x1 <= page.x1 for box in across)
        assert all(0 <= text.get_window_extent().x0 < picture.x0 for text in ax.get_yticklabels())


def test_grey_images_are_shown_on_the_whole_range():
    figure = sheets.sheet({"": [np.full((1, 4, 4), 9, np.uint8)]}, ["grey"], tile=4)
    assert (np.asarray(figure.axes[0].images[0].get_array())[:4, :4] == 9).all()  # of 255, on all three channels


def test_a_sheet_shows_in_a_notebook_that_has_drawn_nothing_yet():
    code = "import numpy as np\nfrom roarlib.views import sheets\nsheets.maps(np.zeros((3, 4, 4), np.uint8), {})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT}}).execute()
    assert "image/png" in notebook.cells[0].outputs[0].data


def test_rows_of_dots_are_in_order_and_verdicts_fill_them():
    found = plots.pd.DataFrame(
        {"estimator": ["grad", "ig"], "mean": [-0.1, 0.2], "low": [-0.2, np.nan], "high": [0.0, np.nan]}
    ).assign(verdict=["better", np.nan], margin=0.01)  # NaN: nothing has judged it
    _, axes = plots.subplots()
    plots.intervals(axes[0, 0], found)
    dots = [line for line in axes[0, 0].lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [(-10, 0), (20, -1)]
    assert [to_hex(line.get_markerfacecolor()) for line in dots] == [names.style("grad")["color"].lower(), "#ffffff"]
    (band,) = axes[0, 0].patches
    assert (band.get_x(), band.get_width()) == (-1, 2)
    bar = axes[0, 0].collections[0].get_segments()[0]
    np.testing.assert_allclose(bar, [[-20, 0], [0, 0]])
    assert [text.get_text() for text in axes[0, 0].get_yticklabels()] == ["GRAD", "IG"]
    plots.errors(
        axes[0, 0], plots.pd.DataFrame({"std": [0.01, np.nan], "binomial": [0.02, 0.03]}, index=["grad", "ig"])
    )
    np.testing.assert_allclose(axes[0, 0].collections[-1].get_offsets()[0], [1, 0])
    np.testing.assert_allclose(axes[0, 0].lines[-1].get_xdata(), [2, 3])


@pytest.mark.parametrize("name", ["imagenet", "food101", "birdsnap"])
def test_points_are_named_beside_them_and_no_two_names_overlap(name):
    source = paper.published(name)
    figure, axes = plots.subplots(size=(3.4, 3.4))
    removed, kept = paper.order(source), paper.order(source, "keep")
    naming.points_named(axes[0, 0], removed, kept)
    texts = [text for text in axes[0, 0].texts if text.get_text()]
    assert {text.get_text() for text in texts} == {names.label(name) for name in removed.index.intersection(kept.index)}
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[k + 1 :])
    points = axes[0, 0].transData.transform([line.get_xydata()[0] for line in axes[0, 0].lines])
    assert not any(box.contains(*point) for box in boxes for point in points)
    left = axes[0, 0].spines["left"].get_window_extent()
    assert not any(box.x0 < left.x0 < box.x1 for box in boxes)


def test_the_papers_curves_begin_at_their_clean_end():
    source = paper.published("imagenet")
    _, axes = plots.subplots(1, 2)
    plots.curves_of(axes[0, 0], source, ["grad", "random", "grad-squared"])
    plots.curves_of(axes[0, 1], source, ["grad"], "keep", shares=True)
    grad, random = axes[0, 0].lines
    assert (grad.get_label(), random.get_label()) == ("GRAD", "Random")  # GRAD² is not in the paper's table
    assert grad.get_xdata().tolist() == [0, 10, 30, 50, 70, 90] and grad.get_ydata()[0] == 100 * source.clean
    (kept,) = axes[0, 1].lines
    assert (kept.get_xdata()[-1], kept.get_ydata()[-1]) == (100, 100)


def test_save_writes_three_formats_the_same_each_time(table, tmp_path):
    files = plots.save(plots.by_base(table), tmp_path / "deep" / "fig.4")
    assert [f.name for f in files] == ["fig.4.png", "fig.4.svg", "fig.4.pdf"]
    again = plots.save(plots.by_base(table), tmp_path / "fig")
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
