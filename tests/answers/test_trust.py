"""The checks of ROAR: by hand on small tables, and on textures whose masks are known to tell the class or not."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_study

from roarlib.answers import stats, trust
from roarlib.data import datasets
from roarlib.engine import train
from roarlib.engine.rank import Explainer
from roarlib.grid import kernel, runner
from roarlib.study import results
from roarlib.study.files import root


def table(rows, n_test=1000):
    """Rows (measure, estimator, unit, mode, percent, accuracies of seeds 0, 1, ..) as a tidy table of one study."""
    out = [
        dict(measure=m, estimator=e, unit=u, mode=mode, percent=p, seed=s, accuracy=a, seconds=2.0)
        for m, e, u, mode, p, accuracies in rows
        for s, a in enumerate(accuracies)
    ]
    same = dict(study="s", n_classes=10, n_test=n_test, n_train=100, epochs=4, precision="float32", torch="2")
    return pd.DataFrame(out).assign(**same)


def retrained(estimator, accuracies, mode="remove", unit="pixel", percent=50):
    return ("retrain", estimator, unit, mode, percent, accuracies)


RANDOM = [0.50, 0.51, 0.49]


def test_the_leak_is_the_accuracy_of_masks_above_chance():
    found = trust.leak(table([retrained("grad", [0.3, 0.4], "mask"), retrained("grad", [0.9, 0.9])]), "pixel")
    assert len(found) == 1 and found["mean"].item() == pytest.approx(0.35)
    assert found.above_chance.item() == pytest.approx(0.25)


def test_a_verdict_survives_only_if_no_check_contradicts_it():
    better, worse = [0.30, 0.32, 0.28], [0.70, 0.72, 0.69]
    rows = [retrained(e, RANDOM) for e in ("random", "random-blur")]
    rows += [retrained("random", RANDOM, "keep"), retrained("random", RANDOM, unit="value")]
    rows += [retrained("grad", better), retrained("grad-blur", better), retrained("grad", worse, "keep")]
    rows += [retrained("ig", better), retrained("ig", better, unit="value"), retrained("ig-abs", worse)]
    rows += [retrained("gb", worse), retrained("gb", [0.4, 0.4, 0.4], "mask")]
    found = trust.survival(table(rows), "pixel").set_index("estimator")
    assert set(found.index) == {"grad", "ig", "gb"}
    grad = found.loc["grad"]
    assert grad.ROAR == "better" and grad.keep == "better" and grad.blurred == "better"  # keep: more is better
    assert grad["other unit"] == grad["without sign"] == grad.recomputed == grad.imputed == "–"
    assert grad.survives == "yes, confirmed by 2 of 2 checks" and np.isnan(grad.leak)
    assert found.loc["ig"].survives == "contradicted: without sign"
    assert found.loc["ig"]["other unit"] == "better"
    open_everywhere = [retrained("gb", [0.49, 0.52, 0.50], "keep"), *rows]
    words = trust.survival(table(open_everywhere), "pixel").set_index("estimator")
    assert words.loc["gb"].keep == "open"
    assert found.loc["gb"].survives == "its mask tells the class" and found.loc["gb"].leak == pytest.approx(0.3)


def test_equality_is_a_claim_too():
    same, off = [0.5001, 0.5101, 0.4902], [0.58, 0.59, 0.571]
    rows = [retrained("grad", same), *(retrained("random", RANDOM, mode) for mode in ("remove", "keep"))]
    grad = [trust.survival(table([*rows, retrained("grad", kept, "keep")]), "pixel").iloc[0] for kept in (same, off)]
    assert [row.ROAR for row in grad] == ["equal", "equal"] and [row.keep for row in grad] == ["equal", "better"]
    assert grad[0].survives == "yes, confirmed by 1 of 1 check" and grad[1].survives == "contradicted: keep"
    strict = trust.survival(table([*rows, retrained("grad", same, "keep")]), "pixel", margin=0.0001).iloc[0]
    assert strict.survives == "nothing claimed"


def test_nothing_claimed_nothing_survives():
    rows = [retrained("random", RANDOM), retrained("grad", [0.52, 0.48, 0.50])]
    found = trust.survival(table(rows), "pixel")
    assert found.survives.tolist() == ["nothing claimed"] and found.ROAR.tolist() == ["open"]


def test_blur_is_held_against_blurred_random():
    """Better than Random, but no better than Random blurred: the map adds nothing to its smoothness."""
    rows = [retrained("random", RANDOM), retrained("random-blur", [0.30, 0.31, 0.29])]
    rows += [retrained("grad", [0.40, 0.41, 0.39]), retrained("grad-blur", [0.31, 0.30, 0.29])]
    assert trust.survival(table(rows), "pixel").blurred.tolist() == ["open"]


def test_blur_is_held_against_nothing_else_and_at_the_percents_of_verdicts():
    rows = [retrained("random", RANDOM), retrained("grad", [0.40, 0.42, 0.39]), retrained("ig", [0.51, 0.50, 0.49])]
    rows += [retrained("grad-blur", [0.31, 0.30, 0.29])]
    assert set(trust.survival(table(rows), "pixel").blurred) == {"–"}  # plain Random has not lost what blurring costs
    rows += [retrained("random-blur", [0.30, 0.31, 0.29])]
    rows += [retrained("grad-blur", [0.1, 0.1, 0.11], percent=90), retrained("random-blur", RANDOM, percent=90)]
    found = trust.survival(table(rows), "pixel").set_index("estimator")
    assert found.ROAR["grad"] == "better" and found.blurred["grad"] == "open"  # at 50 alone, as ROAR's
    rows += [retrained(name, RANDOM, percent=90) for name in ("random", "grad", "ig")]
    found = trust.survival(table(rows), "pixel").set_index("estimator")
    assert found.blurred["grad"] == "better" and found.survives["grad"].endswith("by 1 of 1 check")


def test_scores_without_retraining_carry_the_error_of_the_test_set():
    """ROAD: 0.5 against 0.55. Standard error sqrt(2 x 0.25 / n) about, so told apart by 10,000 images, not by 100.

    Kept instead, 0.5 is worse; and scores of the base model stand in for no other check.
    """
    rows = [("deletion", "random", "pixel", "remove-imputed", 50, [0.55])]
    rows += [("deletion", "grad", "pixel", "remove-imputed", 50, [0.5]), retrained("random", RANDOM)]
    rows += [retrained("grad", RANDOM)]
    rows += [("deletion", e, "pixel", "keep-imputed", 50, [a]) for e, a in (("random", 0.55), ("grad", 0.5))]
    rows += [("deletion", e, "pixel", "keep", 50, [a]) for e, a in (("random", 0.1), ("grad", 0.9))]
    found = [trust.survival(table(rows, n), "pixel") for n in (100, 10_000)]
    assert [f.imputed.item() for f in found] == ["open", "better"]
    assert found[1]["imputed, kept"].item() == "worse" and found[1].keep.item() == "–"


def test_scores_of_several_base_models_vary_as_these_do():
    """ROAD, each seed with its own network: better by 5, 1 and 0 points is no finding, however large the test set."""
    rows = [retrained("random", RANDOM), retrained("grad", RANDOM)]
    rows += [("deletion", "random", "pixel", "remove-imputed", 50, [0.55, 0.54, 0.56])]
    rows += [("deletion", "grad", "pixel", "remove-imputed", 50, [0.50, 0.53, 0.56])]
    assert trust.survival(table(rows, 10**8), "pixel").imputed.item() == "open"
    rows[-1] = ("deletion", "grad", "pixel", "remove-imputed", 50, [0.50, 0.49, 0.51])
    assert trust.survival(table(rows, 10), "pixel").imputed.item() == "better"


def test_scores_and_their_agreement():
    rows = []
    for k, name in enumerate(["grad", "gb", "ig", "sobel", "random"]):
        rows += [retrained(name, [0.1 * k, 0.1 * k]), retrained(name, [0.9 - 0.1 * k] * 2, "keep")]
        rows += [("deletion", name, "pixel", "remove-imputed", 50, [0.5 - 0.1 * k])]
    found = trust.scores(table(rows), "pixel")
    assert found.loc["ROAR", "gb"] == pytest.approx(-0.1) and found.loc["KAR", "gb"] == pytest.approx(0.8)
    assert list(found.index) == ["ROAR", "KAR", "ROAD, most relevant first"]
    agree = stats.pairwise(found).set_index(["one", "other"])
    assert agree.loc[("ROAR", "KAR"), "tau"] == pytest.approx(1)
    assert agree.loc[("KAR", "ROAD, most relevant first"), "rho"] == pytest.approx(-1)
    assert (agree.n == 5).all()


def test_costs_sum_the_seconds_of_each_metric():
    rows = table([retrained("grad", RANDOM), ("deletion", "grad", "pixel", "remove", 50, [0.5])])
    ranking = rows.head(1).assign(measure="ranking", mode="all", percent=0, seconds=7.0)
    found = trust.costs(pd.concat([rows, ranking])).set_index("metric")
    assert found.loc["ROAR", "seconds"] == 6 and found.loc["ROAR", "seconds a point"] == 6
    assert found.loc["deletion", "rows"] == 1 and found.loc["rankings, for all", "seconds"] == 7


def test_guards_see_what_is_uneven():
    rows = table([retrained("grad", RANDOM), retrained("random", RANDOM)])
    assert trust.guards(rows).holds.all()
    assert not trust.guards(rows.drop(index=0)).holds[0]  # a seed less for one estimator
    assert not trust.guards(rows.assign(n_train=range(len(rows)))).holds[1]


def oracle_of(study):
    data = datasets.load(study)
    explainer = Explainer(study, data, torch.nn.Identity(), {})
    found = {}
    for split in datasets.SPLITS:
        masks = torch.from_numpy(np.array(data.split(split).masks)).float()
        found[split] = explainer.ranked(masks, "value", explainer.ids(split, slice(0, len(masks))), "oracle")
    return data, found


@pytest.mark.parametrize("dataset", ["textures", "textures-outline"])
def test_masks_that_tell_the_class_fool_roar_and_only_they(outputs, dataset):
    """The oracle's holes: on textures they tell nothing, and ROAR finds it perfect; an outline tells all."""
    study = tiny_study(dataset=dataset, train_images=1500, test_images=400, epochs=4, batch_size=60, learning_rate=0.12)
    data, ranking = oracle_of(study)
    accuracy = {}
    for mode in ("remove", "mask"):
        model = train.train(study, data, 0, ranking["train"], 30, mode)
        accuracy[mode] = train.tested(study, model, data, ranking["test"], 30, mode)["accuracy"]
    if dataset == "textures":  # chance is 0.1, its standard error 0.015
        assert accuracy["mask"] < 0.16 and accuracy["remove"] < 0.16
    else:
        assert accuracy["mask"] > 0.9 and accuracy["remove"] > 0.9


def test_every_check_runs_through_the_grid_and_into_the_notebook(outputs, tmp_path):
    """Modes, variants and a recursive estimator as cells; then 14-can-we-trust-this on what they left."""
    names = ["grad", "random", "oracle", "grad-blur", "random-blur", "grad-recursive"]
    study = tiny_study(
        estimators=names,
        modes=["remove", "keep", "mask", "remove-imputed"],
        scored_modes=["keep-imputed"],
        recursive_steps=[20],
        sanity_images=9,
        seeds=[0, 1],
    )
    assert not [o.error for o in runner.Run(study).run() if o.error]
    found = results.table(study)
    counts = found.groupby(["measure", "mode"]).size()
    assert counts["retrain", "mask"] == counts["retrain", "remove"] == 2 * len(names)
    assert counts["deletion", "keep-imputed"] == counts["deletion", "remove-imputed"] == len(names)
    assert ("deletion", "mask") not in counts
    alike = trust.sanity(results.known(study), "pixel").set_index(["estimator", "depth", "percent"])
    assert len(alike) == 5 * 6 * 2  # all but the recursive one, depths, percents
    assert alike.rho["grad", 0, 10] > 0.9 > 0.1 > abs(alike.rho["random", 0, 10])
    source, target = root() / "notebooks" / "14-can-we-trust-this.ipynb", tmp_path / "14.ipynb"
    kernel.execute(source, target, {"study_file": str(study.folder / "study.yaml")}, timeout=300)
    made = {file.stem for file in (study.folder / "figures").glob("*.png")}
    assert {"masks-tiny-pixel", "variants-pixel", "clumpiness-pixel", "truth-pixel", "toy"} <= made
    shares = trust.truth(study, datasets.load(study).test.masks, "pixel", [10, 50])
    assert shares.loc["oracle", 10] == 1 and shares.loc["oracle", 10] > shares.loc["random", 10]
