import pytest
from conftest import tiny_study

from roarlib.study import names
from roarlib.study.names import PAPER, label, mixed_share, parent_of, split_name, variant_of


def test_the_papers_estimators_are_eighteen_and_two_controls():
    assert len(PAPER) == 20 and len(set(PAPER)) == 20
    assert PAPER[:6] == ("grad", "grad-squared", "grad-sg", "grad-sg-squared", "grad-sgsq", "grad-var")
    assert tiny_study(estimators=["paper", "oracle"]).estimators == [*PAPER, "oracle"]


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("grad", ("grad", "")),
        ("ig-sg-squared", ("ig", "sg-squared")),
        ("gb-squared", ("gb", "squared")),
        ("ig-sgsq", ("ig", "sgsq")),
        ("sobel", ("sobel", "")),
        ("anti-oracle", ("anti-oracle", "")),
        ("my.mod:fn-var", ("my.mod:fn", "var")),
        ("captum:DeepLift", ("captum:DeepLift", "")),
    ],
)
def test_names_split_into_base_and_ensemble(name, wanted):
    assert split_name(name) == wanted


@pytest.mark.parametrize("name", ["grad-", "-sg", "grad--sg", "grad-sg-", "grad-blur-", "random-sg", "captum:", ""])
def test_what_only_looks_like_a_name_is_none(name):
    with pytest.raises(ValueError, match="unknown estimator"):
        split_name(name)


def test_mixed_ones_are_variants_of_all_but_random_and_judge_no_estimator():
    study = tiny_study(estimators=["grad-squared", "random", "*-mix25", "grad-squared-mix50"])
    assert study.estimators == ["grad-squared", "random", "grad-squared-mix25", "grad-squared-mix50"]
    assert [mixed_share(name) for name in study.estimators] == [0, 0, 25, 50]
    assert parent_of("grad-squared-mix25") == "grad-squared" and label("oracle-mix75") == "Oracle 75% mixed"
    with pytest.raises(ValueError, match="no order to change"):
        tiny_study(estimators=["random-mix25"])


def test_variants_expand_and_lead_back():
    study = tiny_study(estimators=["grad", "ig-sgsq", "random", "*-blur", "*-abs"])
    assert study.estimators == [
        "grad", "ig-sgsq", "random", "grad-blur", "ig-sgsq-blur", "random-blur", "grad-abs", "ig-sgsq-abs",
    ]  # fmt: skip
    assert split_name("ig-sgsq-blur") == ("ig", "sgsq") and variant_of("ig-sgsq-blur") == "blur"
    chain = ["ig-sg-squared-max"]
    while parent_of(chain[-1]):
        chain.append(parent_of(chain[-1]))
    assert chain == ["ig-sg-squared-max", "ig-sg-squared", "ig"]
    for wrong in ("random-abs", "grad-blurred", "*-blurred"):
        with pytest.raises(ValueError):
            tiny_study(estimators=[wrong])


def test_own_estimators_differ_in_colour_from_each_other_and_from_the_papers():
    own = [f"colours:own{k}" for k in range(10)]
    colors = [names.style(name)["color"] for name in own]
    known = {look.color for look in (*names.ENSEMBLES.values(), *names.FIXED.values())}
    assert len({*colors}) == len(own) and not known & {*colors}
    assert [names.style(f"{name}-sgsq")["color"] for name in own] == colors
