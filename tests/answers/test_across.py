import numpy as np
import pandas as pd
import pytest
from test_verdicts import ORDER, table_of

from roarlib.answers import across
from roarlib.study import params
from roarlib.study.files import root

EACH = {"base_models": "each-seed"}


def part(name, differences=ORDER, margin=1.0, said=(), **keywords):
    """What `across.load` gives of one study. margin: in points. said: further parameters of the study."""
    study = params.Study(name=name, estimators=["random", *differences], margin=margin, **dict(said))
    return {name: (table_of(differences, spread=0.001, **keywords).assign(study=name), study)}


def test_studies_are_compared_over_the_percents_that_all_have():
    first = part("a", percents=(30, 70))
    first["a"][0].loc[first["a"][0].percent == 70, "accuracy"] -= 0.1 * first["a"][0].estimator.eq("ig")
    found = across.compare(first | part("b", {**ORDER, "sobel": -9}, percents=(10, 30)))
    assert (found.unit, found.mode, found.percents) == ("pixel", "remove", [30])
    assert found.left_out == ["t = 10 of b", "t = 70 of a"]
    assert found.scores.loc["a", "ig"] == pytest.approx(0.02, abs=0.002)  # without the 10 points at 70
    assert found.scores.random.tolist() == [0, 0] and np.isnan(found.scores.loc["a", "sobel"])
    words = across.in_words(found)
    assert words[:2] == [
        "2 studies, whole pixels removed, t = 30.",
        "Left out: t = 10 of b; t = 70 of a; from the ranks, 1 estimator that not every study has.",
    ]
    assert "no two can be, as ranks go from 1 to 5" in words[2]
    assert words[3] == "a, b: one base model: intervals hold for this network only."
    table = across.table(found)
    assert list(table.index) == ["GRAD", "GB", "IG", "SG-GRAD", "Random", "Sobel"]
    assert table["mean rank"].tolist() == ["1.0", "2.0", "3.0", "4.0", "5.0", "–"]
    assert table.a["Sobel"] == "–" and table.a["Random"] == "0" and table.b["Sobel"].startswith("-8.9 [-9.1")
    assert table.b["Sobel"].endswith("better") and "1.00" in across.text(found)  # tau


def test_a_study_that_has_learnt_nothing_has_no_vote():
    void = part("c", {name: -points for name, points in ORDER.items()})
    table, study = void["c"]
    table = table.assign(n_classes=10)
    clean = table.iloc[[0]].assign(estimator="clean", unit="all", mode="all", percent=0, accuracy=0.1)
    void = {"c": (pd.concat([table, clean]), study)}
    found = across.compare(part("a") | part("b") | void)
    assert list(found.scores.index) == ["a", "b"] and found.left_out == ["c, whose models have learnt nothing"]
    with pytest.raises(across.Incomparable, match="so far there is a, c, whose models have learnt nothing"):
        across.compare(part("a") | void)


def test_a_study_without_the_percent_that_most_have_is_left_out():
    found = across.compare(part("a", percents=(10,)) | part("b", percents=(30, 90)) | part("c", percents=(90,)))
    assert found.percents == [90] and list(found.scores.index) == ["b", "c"]
    assert found.left_out == ["a, which has no t = 90", "t = 30 of b"]


def test_an_estimator_without_all_shared_percents_is_not_compared():
    whole = part("a")
    table, study = whole["a"]
    partly = table[(table.estimator != "gb") | (table.percent == 30)]
    found = across.compare({"b": (partly.assign(study="b"), study)} | whole)
    assert np.isnan(found.scores.loc["b", "gb"]) and found.scores.loc["a"].notna().all()


def test_the_question_is_the_one_that_most_studies_share_and_what_cannot_be_asked_is_one_sentence():
    kept = {name: -points for name, points in ORDER.items()}
    parts = part("a") | part("b") | part("c", kept, mode="keep")
    assert across.compare(parts).left_out == ["c, which has no whole pixels removed by Random"]
    for wanted, says in (
        (parts, "can be compared by keep: a has whole pixels removed; b has .*; c has whole pixels kept"),
        (part("a"), "so far there is a"),
        ({}, "so far there is none"),
    ):
        with pytest.raises(LookupError, match=says):
            across.compare(wanted, mode="keep")
    with pytest.raises(LookupError, match="share no percent of whole pixels removed: a has 30; b has 70"):
        across.compare(part("a", percents=(30,)) | part("b", percents=(70,)))
    both = across.compare(part("c", kept, mode="keep") | part("d", kept, mode="keep"))
    assert across.ranks(both.scores)[0].index[0] == "grad"  # keeps most


def test_every_study_has_its_own_margin():
    found = across.compare(part("a", {"grad": 0, "ig": -3}) | part("b", {"grad": 0, "ig": -3}, margin=0.01)).found
    assert found.set_index(["study", "estimator"]).verdict["a", "grad"] == "equal"
    assert found.set_index(["study", "estimator"]).verdict["b", "grad"] == "open"


def test_what_the_choice_of_the_network_adds_is_read_off_two_studies_that_differ_in_nothing_else():
    one, each = (
        part("one", {"grad": 0, "ig": 0}, seeds=3),
        part("each", {"grad": 0, "ig": 0}, seeds=3, said=EACH),
    )
    for found, points in ((one, [-3, 0, 3]), (each, [-5, 0, 5])):  # standard deviations of 3 and 5
        (table, _) = next(iter(found.values()))
        table.loc[table.estimator == "random", "accuracy"] = 0.4
        table.loc[table.estimator == "ig", "accuracy"] = 0.3
        wanted = table.seed.map(dict(enumerate(points))) / 100 + 0.5
        table["accuracy"] = table.accuracy.where(table.estimator != "grad", wanted)
    compared = across.compare(one | each)
    assert compared.pairs == [("one", "each")]
    grad, ig, total = (row for _, row in across.networks(compared).iterrows())
    assert (grad.estimator, ig.estimator, total.estimator) == ("grad", "ig", "all")
    assert [grad.one, grad.several, grad.network] == pytest.approx([3, 5, 4])
    assert [ig.one, ig.several, ig.network] == pytest.approx([0, 0, 0], abs=1e-9)
    assert [total.one, total.several, total.network] == pytest.approx(np.array([3, 5, 4]) / np.sqrt(2))
    assert "one and each differ in base_models alone: differences from Random spread by 2.12 p" in across.text(compared)
    assert "3 and 3 seeds" in across.text(compared)
    other = part("each", {"grad": 0}, said=EACH | {"epochs": 99})
    assert across.networks(across.compare(one | other)).empty  # they differ in more
    alone = across.compare(part("one", {"grad": 0}, seeds=1) | part("each", {"grad": 0}, seeds=1, said=EACH))
    assert alone.pairs and across.networks(alone).empty and "nan" not in " ".join(across.in_words(alone))
    other = part("each", {"grad": 0}, said=EACH)
    other["each"][0]["data"] = "other images"
    assert across.compare(one | other).pairs == []


def test_a_study_that_added_seeds_where_needed_is_judged_by_its_looks():
    said = {"seeds": "auto", "seeds_max": 5}
    parts = part("fixed", {"grad": 0, "ig": -9}, seeds=3, said={"percents": [30, 70]})
    parts |= part("auto", {"grad": 0, "ig": -9}, seeds=3, said=said | {"percents": [30, 70]})
    for (
        table,
        _,
    ) in parts.values():  # GRAD: p = 0.029, less than 0.05, more than the 0.018 / 2 of a first look of five seeds
        table["seconds"] = 1.0
        wanted = table.seed.map({0: 0.379, 1: 0.37, 2: 0.361})
        table["accuracy"] = table.accuracy.where(table.estimator != "grad", wanted)
        table["accuracy"] = table.accuracy.where(table.estimator != "random", 0.4)
        table["accuracy"] = table.accuracy.where(
            table.estimator != "ig", table.seed.map({0: 0.3, 1: 0.3001, 2: 0.2999})
        )
    words = across.compare(parts).found.set_index(["study", "estimator"]).verdict
    assert words["fixed"].to_dict() == {"grad": "better", "ig": "better"}
    assert words["auto"].to_dict() == {"grad": "open", "ig": "better"}
    fewer = parts | part("third", {"grad": 0}, percents=(30,))  # looks judged 30 and 70 together
    compared = across.compare(fewer)
    assert "the looks of auto, which judged all percents: verdicts here are of a single test" in compared.left_out
    assert compared.found.set_index(["study", "estimator"]).verdict["auto", "grad"] == "better"


def test_mean_ranks_and_their_critical_difference_by_hand():
    """Demsar's example: 4 classifiers on 14 data sets, q = 2.569, CD = 2.569 sqrt(4 x 5 / (6 x 14)) = 1.25."""
    scores = pd.DataFrame([[4.0, 3, 2, 1, np.nan]] * 7 + [[3.0, 4, 2, 2, 9]] * 7, columns=list("abcde"))
    means, critical = across.ranks(scores)
    assert means.to_dict() == {"a": 1.5, "b": 1.5, "c": 3.25, "d": 3.75}  # c and d share 3 and 4 in seven of them
    assert critical == pytest.approx(2.569 * np.sqrt(20 / 84), abs=0.001)
    assert across.joined(means, critical) == [(1.5, 1.5), (3.25, 3.75)]
    assert across.joined(pd.Series([1.0, 2.0, 3.0, 6.0]), 1.5) == [(1, 2), (2, 3)]
    assert across.joined(pd.Series([1.0, 2.0]), 1.0) == []  # as far apart as it takes


def test_the_published_studies_can_be_compared_in_a_fresh_clone():
    names = ["cifar10-cpu", "cifar10-trust", "resnet-textures", "vit-textures"]
    found = across.compare(across.load(root() / "outputs" / name / "study.yaml" for name in names))
    assert found.scores.index.tolist() == names and found.percents == [90]
    assert {"t = 50 of cifar10-cpu, cifar10-trust", "t = 30, 70 of resnet-textures, vit-textures"} == set(
        found.left_out
    )
    assert set(across.ranks(found.scores)[0].index) == {"random", "grad", "grad-sgsq", "ig"}


def test_studies_of_one_name_are_refused_and_one_that_is_named_twice_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("ROAR_OUTPUTS")
    files = [tmp_path / place / "same.yaml" for place in ("here", "there")]
    for file in files:
        file.parent.mkdir()
        file.write_text("dataset: textures\nestimators: [grad]\n")
    with pytest.raises(params.InputError, match="two studies have the name same, .*here/out.* and .*there/out"):
        across.load(files)
    assert list(across.load([files[0], files[0]])) == ["same"]
