"""roarlib.views.latex: numbers, best and marks by hand from the committed studies; escapes; sources; a real LaTeX."""

import re
import shutil
import subprocess

import pandas as pd
import pytest
from conftest import ROOT, simulated

from roarlib.answers import stats, verdicts
from roarlib.engine.models import MODELS
from roarlib.study import names, params, results
from roarlib.study.names import label
from roarlib.study.params import InputError
from roarlib.views import latex, methods

TEMPLATES = {file.name: file.read_text() for file in (ROOT / "roarlib/views/tex").iterdir()}
COLLECTION = latex.render("references.bib", studies=[{"roarlib": ["0.1.0"], "year": "2026"}])
UGLY = "my_photos & 100% #1 {~} ^2 $5"


def study_in(folder, name, new=None, swap=None, **changes):
    """A committed study in a folder of its own: under a new name, with texts in its table swapped, other parameters."""
    new = new or name
    (folder / new).mkdir()
    rows = (ROOT / "outputs" / name / "results.csv").read_text()
    for old, other in {name: new, **(swap or {})}.items():
        rows = rows.replace(old, other)
    (folder / new / "results.csv").write_text(rows)
    study = params.load(ROOT / "outputs" / name / "study.yaml").model_copy(update={"name": new, **changes})
    (folder / new / "study.yaml").write_text(params.dump(study))
    return params.load(folder / new / "study.yaml")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    study = study_in(tmp_path_factory.mktemp("cifar"), "cifar10-blurred")
    assert "cifar10-blurred/paper: 1 table, 3 figures" in latex.write([study], 6.75)
    return study


@pytest.fixture(scope="module")
def ugly(tmp_path_factory):
    """Three studies in one paper, the second with names that LaTeX would choke on."""
    folder = tmp_path_factory.mktemp("ugly")
    first, last = (study_in(folder, name) for name in ("vit-textures", "resnet-textures"))
    swap = {"rollout": "mine:edges_2", "grad-sgsq": "mine:größe-sgsq", "AMD EPYC": "100% & #1_{~}^"}
    own = {"dataset": f"folder:{UGLY}", "model": "mine:net_3", "estimators": [swap.get(n, n) for n in first.estimators]}
    weird = study_in(folder, "vit-textures", "weird_2", swap, **own)
    latex.write([first, weird, last])
    return [first, weird, last]


def lines(study, name):
    """Label -> cells of a table in TeX, without markup of size."""
    text = (study.folder / "paper" / "tables" / f"{name}.tex").read_text()
    found = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    return {line[0]: [re.sub(r"{\\scriptsize\$\\pm\$\\,(.*?)}", r"\1", cell) for cell in line[1:]] for line in found}


def cited(text):
    return {key for keys in re.findall(r"\\citep{([^}]+)}", text) for key in keys.split(",")}


def test_every_number_of_the_table_is_stats_summarys_and_the_best_is_bold(cifar):
    table = results.table(cifar)
    found = stats.summary(table[(table.measure == "retrain") & (table.estimator != "clean")])
    against = verdicts.verdicts(table, "pixel", "remove").set_index("estimator")
    told = lines(cifar, "cifar10-blurred-pixel-remove")
    assert len(found) == 14 and len(against) == 6
    for name, rows in found.groupby("estimator"):
        cells = told[str(latex.tex(label(name)))]
        for row, mean, half in zip(rows.itertuples(), cells[::2], cells[1::2], strict=False):
            best = found[found.percent == row.percent]["mean"].min() == row.mean
            assert mean == (rf"\textbf{{{100 * row.mean:.1f}}}" if best else f"{100 * row.mean:.1f}")
            assert half == f"{100 * (row.high - row.mean):.1f}"
        if name == "random":
            assert cells[4:] == ["", ""]
            continue
        row, mark = against.loc[name], {"better": "star", "worse": "times", "open": "circ"}
        assert cells[4].replace("$-$", "-") == f"{100 * row['mean']:+.1f}"
        assert cells[5] == rf"{100 * (row.high - row['mean']):.1f}~$\{mark[row.verdict]}$"
    caption = (cifar.folder / "paper/tables/cifar10-blurred-pixel-remove.tex").read_text()
    assert (
        "$n =$ 5" in caption
        and "Untouched 69.3, the largest class alone 10.7" in caption
        and "Lower is better" in caption
    )
    assert r"$\star$: better than Random; $\times$: worse than Random." in caption


def test_several_studies_side_by_side_estimators_by_studies(ugly):
    told, against = lines(ugly[0], "studies-pixel-remove"), {}
    for study in ugly:
        against[study.name] = verdicts.verdicts(results.table(study), "pixel", "remove").set_index("estimator")
    assert told["IG"][::2] == [f"{100 * against[study.name].loc['ig', 'mean']:+.1f}" for study in ugly]
    assert told["Rollout"][2:] == ["--", ""] * 2 and told["Grad-CAM"][:4] == ["--", ""] * 2
    assert r"\textbf{$-$33.1}" in told["Rollout"][0] and r"\textbf{" in told["Grad-CAM"][4]
    methods_ = (ugly[0].folder / "paper/methods.tex").read_text()
    first, weird, last = re.split(r"\\paragraph{Study", methods_)
    assert "by AdamW" in first and "by AdamW" not in last and r"\paragraph{Statistics" not in last  # as above
    assert "trained for 4 epochs by stochastic gradient descent with Nesterov momentum of 0.9" in last
    assert "We compare GRAD, SG-SQ-GRAD, IG, Grad-CAM and the control Random." in last and "Rollout" not in last


def test_what_holds_of_the_first_study_alone_is_not_said_of_the_second(tmp_path):
    one = study_in(tmp_path, "vit-textures", flip_average=True)
    other = study_in(tmp_path, "vit-textures", "second")
    said, more = latex.in_sentences([methods.facts(study) for study in (one, other)]).split(r"\paragraph{Study")
    sentence = "the logits of an image and its mirror image are averaged"
    assert sentence in said and sentence not in more and "Every network is trained for 16 epochs" in more


def test_a_paper_says_how_images_were_chosen_and_which_seeds_and_percents_count(tmp_path):
    study = study_in(tmp_path, "vit-textures", dataset="npz:mine.npz", test_images=0)
    said = latex.render("methods.tex", **methods.facts(study))
    assert "1,600, evenly from all classes, to train on and 1,000 to test on" in said
    assert "All estimators share the same 3 seeds" in said
    file = study.folder / "results.csv"
    rows = pd.read_csv(file)
    extra = rows[(rows.measure == "retrain") & (rows.percent == 50) & (rows.estimator == "ig")].assign(percent=10)
    few = rows[(rows.estimator != "grad") | (rows.seed == 0) | (rows.measure != "retrain")]
    pd.concat([few, extra]).to_csv(file, index=False)
    told = methods.facts(study)
    assert "Estimators share seeds (0, 1, 2) of weights" in latex.render("methods.tex", **told)
    shown = latex.render("table.tex", **latex.accuracies(told, "pixel", "remove"))
    known = ", ".join(map(str, sorted(set(rows[rows.measure == "retrain"].percent) - {0})))
    assert f"mean over $t = {known}$" in shown


def test_a_paper_says_what_was_tested(tmp_path):
    said = latex.render("methods.tex", **methods.facts(study_in(tmp_path, "imagenette")))
    assert r"paired by seed, at $t = 90$, in" in said and r"$t \in \{30, 70, 90\}$" in said
    assert "over $n =$ 3 to 5 seeds" in said and "Estimators share seeds (0, 1, 2, 3, 4)" in said
    said = latex.render("methods.tex", **methods.facts(study_in(tmp_path, "cifar10-trust")))
    assert "mean over $t = 50, 90$" in said
    assert (
        "for 13 comparisons in each unit and mode, which is to keep the chance of any false finding there at 5" in said
    )
    said = latex.render("methods.tex", **methods.facts(study_in(tmp_path, "known-order-cifar10")))
    assert r"Mixed variants, with 25, 50, 75\% of" in said and "rank first what the estimator ranks last" in said


def test_studies_side_by_side_are_compared_over_the_percents_that_both_have():
    told = []
    for study, percents in (("a", (30, 70)), ("b", (70,))):
        columns = ["study", "measure", "estimator", "unit", "mode", "percent", "seed", "accuracy"]
        rows = [
            (study, "retrain", name, "pixel", "remove", percent, seed, accuracy + seed / 100)
            for name, accuracy in (("grad", 0.4), ("random", 0.5))
            for percent in percents
            for seed in range(3)
        ]
        sides = [("pixel", "remove"), ("pixel", "mask")]
        made = params.Study(name=study, estimators=["grad", "random"])
        told.append({"study": made, "table": pd.DataFrame(rows, columns=columns), "sides": sides})
    (table,) = latex.side_by_side(told)
    caption = latex.render("caption.tex", **table)
    assert "$t = 70$ percent" in caption and "Left out: t = 30 of a." in caption


def test_margins_of_several_studies_are_all_told():
    columns = ["study", "measure", "estimator", "unit", "mode", "percent", "seed", "accuracy"]
    told = []
    for study, margin in (("a", 1.0), ("b", 5.0)):
        rows = [
            (study, "retrain", name, "pixel", "remove", 50, seed, 0.5 + (seed % 2) / 1e4 * (name == "grad"))
            for name in ("grad", "random")
            for seed in range(4)
        ]
        made = params.Study(name=study, estimators=["grad", "random"], margin=margin)
        told.append({"study": made, "table": pd.DataFrame(rows, columns=columns), "sides": [("pixel", "remove")]})
    (table,) = latex.side_by_side(told)
    assert "equal to Random within 1 point or, by study, equal to Random within 5 points" in str(table["marks"])


def test_percents_are_told_by_side_where_they_differ():
    rows = simulated(["grad", "gb", "random"], percents=(50, 90), modes=("remove",))
    assert methods.covered(rows, [("pixel", "remove"), ("value", "remove")]) == [([50, 90], "")]
    fewer = rows[(rows.unit == "pixel") | (rows.percent != 50)]
    assert methods.covered(fewer, [("pixel", "remove"), ("value", "remove")]) == [
        ([50, 90], "whole pixels removed"),
        ([90], "single values removed"),
    ]


def test_what_is_special_to_latex_is_escaped():
    assert latex.tex("mine:edges_2") == r"mine:\allowbreak{}edges\_\allowbreak{}2"
    assert latex.tex("(SG-IG)²") == "(SG-IG)$^2$" and latex.tex("|GRAD|") == "$|$GRAD$|$"
    assert latex.tex(r"\a{b}~^&%$#<>") == (r"\textbackslash{}a\{b\}\textasciitilde{}\textasciicircum{}\&\%\$\#$<$$>$")
    assert latex.tex("größe") == "größe" and latex.tex("熊") == r"\textbackslash{}u718a"
    assert latex.tex(latex.Markup("$x$")) == "$x$"
    assert [latex.number(n) for n in (0.2, 5e-5, 100)] == ["0.2", r"$5 \cdot 10^{-5}$", "100"]
    assert [latex.points(p, "+") for p in (-0.055, 0.034, -0.0001)] == ["$-$5.5", "+3.4", "+0.0"]


def test_the_methods_say_the_studys_numbers(cifar):
    said = (cifar.folder / "paper/methods.tex").read_text()
    for part in (
        "the first 10,000 to train on and the first 4,000 to test on",
        r"of $32 \times 32$ pixels and 10 classes",
        "for 12 epochs by stochastic gradient descent with Nesterov momentum of 0.9 on batches of 128",
        "rises linearly to 0.2 over the first 20",
        "take $J = 15$ copies",
        r"$\sigma = 0.15 \,",
        r"$t \in \{50, 90\}$",
        "the same 5 seeds (0, 1, 2, 3, 4)",
        "for 6 comparisons",
        r"whose variance borrows from those of the other estimators as far as they agree (moderated $t$ tests~\citep{",
        "the choice of the network that is explained, with its noise, ties and random removal",
        "69.3\\% of the test images",
    ):
        assert part in said
    compute = (cifar.folder / "paper/compute.tex").read_text()
    assert (
        "75 retrainings (median 31 s), 5 base models (median 33 s), 35 rankings" in compute
        and "took 46.3 min on AMD EPYC, 2 cores (CPU)" in compute
    )


def test_what_other_protocols_ask_for_is_said(tmp_path):
    other = dict(model="torchvision:resnet18", target="label", fill="image-mean", ig_reference="grey")
    said = latex.render("methods.tex", **methods.facts(study_in(tmp_path, "resnet-textures", **other)))
    for part in (
        r"The network is \texttt{resnet18} of torchvision",
        "of the true class, for training and test images alike.\nSo what is removed from test images rests on their",
        "steps from a grey image.",
        "A removed value becomes the image's mean of its channel.",
    ):
        assert part in said


def test_one_seed_has_no_intervals_and_base_models_of_their_own_are_said(tmp_path):
    study = study_in(tmp_path, "resnet-textures", base_models="each-seed")
    told = methods.facts(study)
    said = latex.render("methods.tex", **told) + latex.render("checklist.tex", studies=[told])
    assert "For each seed, a network of its own" in said and "choice of the network that is explained, with" in said
    file = study.folder / "results.csv"
    rows = pd.read_csv(file)
    rows[rows.seed == 0].to_csv(file, index=False)
    told = methods.facts(study)
    assert "With one seed, no interval can be given" in latex.render("methods.tex", **told)
    assert "moderated" not in latex.render("methods.tex", **told)
    assert r"\answerNo{}" in latex.render("checklist.tex", studies=[told]).partition("error bars")[2]
    table = latex.render("table.tex", **latex.accuracies(told, "pixel", "remove"))
    assert r"\pm" not in table and "$n =$ 1 seed." in table and "--: too few seeds" in table


def test_rows_of_two_networks_where_one_was_meant_are_told(tmp_path):
    study = study_in(tmp_path, "vit-textures")
    file = study.folder / "results.csv"
    rows = pd.read_csv(file, dtype=results.TEXT)
    rows.assign(network=rows.seed.map({2: "another"}).fillna("one")).to_csv(file, index=False)
    latex.write([study])
    for name in ("methods", "checklist"):
        said = (study.folder / f"paper/{name}.tex").read_text()
        assert "rows rest on two base models" in said and "choice of the one network" not in said


def test_sources_are_those_of_what_was_used_and_all_of_them(ugly, cifar):
    for study in (ugly[0], cifar):
        folder = study.folder / "paper"
        entries = set(re.findall(r"@\w+{(\w+),", (folder / "references.bib").read_text()))
        assert entries == cited((folder / "methods.tex").read_text())
    assert {"smilkov2017", "sobel1968", "krizhevsky2009"} <= entries  # cifar10-blurred
    assert not entries & {"abnar2020", "selvaraju2017", "kokhlikyan2020", "dosovitskiy2021"} and "rong2022" in entries


def test_every_source_is_cited_somewhere_and_every_estimator_and_model_has_a_sentence():
    ways = "".join(TEMPLATES.values())
    literal = {key for key in cited(ways) if "<<" not in key}
    keys = {cite for _, cite, _ in methods.DATA.values()} | set(methods.CAPTUM.values()) | literal
    assert keys == set(re.findall(r"@\w+{(\w+),", COLLECTION))
    for name in (*names.NAMED, *names.FIXED):
        assert f'"{name}" in bases' in ways, name
    assert all(f'"{name}"' in TEMPLATES["methods.tex.j2"] for name in MODELS)
    with pytest.raises(KeyError):
        latex.references(r"\citep{nobody2000}", COLLECTION)


def test_figures_have_the_width_asked_for_and_their_fonts_in_them(tmp_path):
    latex.figures(methods.facts(study_in(tmp_path, "cifar10-cpu")), tmp_path / "figures", 6.75)
    files = {file.stem.partition("cpu-")[2]: file.read_bytes() for file in tmp_path.glob("figures/*.pdf")}
    width = {name: float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)[1]) / 72 for name, pdf in files.items()}
    wide = {"by-base-pixel-remove": 6.75, "deletion-pixel-remove": 6.75}
    assert width == {"curves-pixel-remove": 3.25, "differences-pixel-remove": 3.25, **wide}
    for pdf in files.values():
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_a_study_named_twice_or_without_results_is_an_error(cifar, tmp_path):
    with pytest.raises(InputError, match="named twice"):
        latex.write([cifar, cifar])
    with pytest.raises(InputError, match="no retrainings of nothing yet"):
        latex.write([params.Study(name="nothing", estimators=["random"])])


@pytest.mark.parametrize("which", ["cifar", "ugly"])
def test_a_real_latex_compiles_it_without_a_complaint(which, request):
    if not (shutil.which("pdflatex") and shutil.which("bibtex")):
        pytest.skip("NO LATEX: pdflatex and bibtex are not here; on Debian texlive-latex-recommended has them")
    found = request.getfixturevalue(which)
    folder = (found[0] if which == "ugly" else found).folder / "paper"
    for call in (["pdflatex", "-halt-on-error"], ["bibtex"], *[["pdflatex", "-halt-on-error"]] * 2):
        done = subprocess.run([*call, "main"], cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0 and "Warning--" not in done.stdout, done.stdout[-2000:]
    log = (folder / "main.log").read_text(errors="replace")
    assert "undefined" not in log and "Missing character" not in log
    assert [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log) if float(points) > 2] == []
