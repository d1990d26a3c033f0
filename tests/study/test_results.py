import json
import os

import pandas as pd
import pytest
from conftest import random_data, tiny_study

from roarlib.study import machine, results
from roarlib.study.params import InputError
from roarlib.study.results import Key

MORE = dict(seconds=1.0, n_train=9, n_test=8, n_classes=4, device="cpu", hardware="2 cores", precision="float32")


def write(study, percent=50, seed=0, accuracy=0.5, measure="retrain", mode="remove"):
    return results.write(study, Key(measure, "grad", "pixel", mode, percent, seed), accuracy, **MORE)


@pytest.mark.parametrize(
    "key, file",
    [
        (Key("base", seed=3), "base_clean_all_all_p0_s3.json"),
        (Key("ranking", "grad", "value"), "ranking_grad_value_all_p0_s0.json"),
        (
            Key("deletion", "ig-sg-squared", "pixel", "keep-imputed", 7),
            "deletion_ig-sg-squared_pixel_keep-imputed_p7_s0.json",
        ),
        (Key("retrain", "anti-oracle", "pixel", "mask", 100, 12), "retrain_anti-oracle_pixel_mask_p100_s12.json"),
        (
            Key("retrain", "mine:my_edges-sg", "value", "remove", 50),
            "retrain_mine.my_edges-sg_value_remove_p50_s0.json",
        ),
        (Key("retrain", "pkg.mod:f", "pixel", "keep", 9, 1), "retrain_pkg.mod.f_pixel_keep_p9_s1.json"),
        (
            Key("retrain", "_p.a_b:_f_g-var-blur", "pixel", "keep", 9),
            "retrain__p.a_b._f_g-var-blur_pixel_keep_p9_s0.json",
        ),
        (Key("ranking", "captum:InputXGradient", "pixel"), "ranking_captum.InputXGradient_pixel_all_p0_s0.json"),
    ],
    ids=lambda value: getattr(value, "estimator", ""),
)
def test_a_rows_file_is_named_after_its_key(key, file):
    assert key.file == file and ":" not in key.cell + key.file


def test_measurements_that_are_made_together_share_a_cell():
    assert Key("base").cell == "01-train/base" and Key("retrain").cell == "04-retrain/clean"
    assert Key("ranking", "grad-sgsq", "pixel").cell == Key("ranking", "grad-blur", "value").cell == "02-attribute/grad"
    assert Key("ranking", "grad-recursive").cell == "02-attribute/grad-recursive"
    assert Key("deletion", "random").cell == Key("deletion", "oracle").cell == "03-degrade/controls"
    assert Key("deletion", "pkg.mod:f-var").cell == "03-degrade/pkg.mod.f"
    assert Key("retrain", "pkg.mod:f-var").cell == "04-retrain/pkg.mod.f-var"


def test_a_row_is_a_whole_json_file_with_everything(outputs):
    study = tiny_study()
    key = Key("retrain", "grad", "pixel", "remove", 50, 0)
    assert not results.has(study, key)
    write(study)
    file = outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p50_s0.json"
    row = json.loads(file.read_text())
    assert results.has(study, key) and results.row_file(study, key) == file and list(file.parent.iterdir()) == [file]
    assert Key(*(row[name] for name in results.KEY)) == key and row["cell"] == "04-retrain/grad"
    assert row["params"] == study.model_dump() and row["accuracy"] == 0.5
    assert row["torch"] and row["host"] and row["python"] and row["finished"].startswith("20")


def test_rows_collect_into_one_tidy_table(outputs):
    study = tiny_study(percents=[10, 90], seeds=[0, 1])
    for seed in (1, 0):
        for percent in (90, 10):
            write(study, percent, seed, accuracy=percent / 100)
    write(study, 0, measure="ranking", mode="all", accuracy=None)
    table = results.table(study)
    assert list(zip(table.percent, table.seed, strict=True)) == [(10, 0), (10, 1), (90, 0), (90, 1)]
    assert (table.accuracy == table.percent / 100).all() and len(results.rows(study)) == 5
    written = pd.read_csv(results.collect(study))
    assert list(written.columns) == results.COLUMNS and len(written) == 5


def test_a_table_comes_from_results_csv_where_there_are_no_rows(outputs):
    study = tiny_study()
    assert results.table(study).empty and list(results.table(study).columns) == results.COLUMNS
    write(study)
    file, wanted = results.collect(study), results.table(study)
    (outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p50_s0.json").unlink()
    assert file.is_file()
    pd.testing.assert_frame_equal(
        results.table(study)[["estimator", "percent", "accuracy"]],
        wanted[["estimator", "percent", "accuracy"]],
        check_dtype=False,
    )


def test_a_partial_rerun_keeps_the_rows_of_a_published_table(outputs):
    study = tiny_study(percents=[10, 90])
    write(study, 10, accuracy=0.1)
    write(study, 90, accuracy=0.9)
    results.collect(study)
    (outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p90_s0.json").unlink()
    write(study, 10, accuracy=0.2)  # a row file wins over the table
    assert results.table(study).accuracy.tolist() == [0.2, 0.9]
    assert pd.read_csv(results.collect(study)).accuracy.tolist() == [0.2, 0.9]


def test_parquet_and_csv_hold_the_same_table(outputs, monkeypatch):
    study, said = tiny_study(), machine.provenance()
    monkeypatch.setattr(machine, "provenance", lambda: said | {"commit": "1234567"})  # a hash of digits alone
    write(study, 10, accuracy=1 / 3)
    write(study, 90, accuracy=0.1 + 0.2)  # 0.30000000000000004: every digit counts
    write(study, 0, measure="ranking", mode="all", accuracy=None)
    file = results.collect(study)
    text, typed = pd.read_csv(file, dtype=results.TEXT), pd.read_parquet(file.with_suffix(".parquet"))
    assert list(typed.columns) == results.COLUMNS and len(typed) == 3
    pd.testing.assert_frame_equal(typed, text, check_exact=True)
    assert typed.accuracy.isna().tolist() == [True, False, False] and (typed.commit == "1234567").all()
    assert typed.seed.dtype == typed.percent.dtype == int and typed.accuracy.dtype == float


def test_a_published_table_and_new_rows_collect_together(outputs, monkeypatch):
    study, said = tiny_study(), machine.provenance()
    monkeypatch.setattr(machine, "provenance", lambda: said | {"commit": "1234567"})
    write(study, 10)
    results.collect(study)
    (outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p10_s0.json").unlink()
    monkeypatch.setattr(machine, "provenance", lambda: said | {"commit": "abc1234"})
    write(study, 90)
    found = pd.read_parquet(results.collect(study).with_suffix(".parquet"))
    assert found.commit.tolist() == ["1234567", "abc1234"] and results.known(study).percent.tolist() == [10, 90]


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("0.25,", "25.0,", "line 2, is a row whose accuracy is no number from 0 to 1"),
        ("0.25,", '"0,25",', "line 2, is a row whose accuracy"),
        ("0.25,", ",", "line 2, is a row whose accuracy"),
        (",grad,", ",grd,", "line 2, is a row of an estimator that nobody knows"),
        (",10,0,0.25", ",10.5,0,0.25", "line 2, is a row whose percent or seed"),
        ("tiny,", "other,", "line 2, is a row of another study than tiny"),
        ("accuracy", "Accuracy", "has no column accuracy"),
        (",", ";", "has no column study"),
        ("study,", "<<<<<<< HEAD\nstudy,", "has no column study"),
        ("tiny,", '"', "cannot be read as CSV"),
    ],
)
def test_a_table_that_somebody_has_edited_is_read_or_refused_with_the_line(outputs, old, new, what):
    study = tiny_study(percents=[10])
    write(study, 10, accuracy=0.25)
    file = results.collect(study)
    (outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p10_s0.json").unlink()
    text = file.read_text()
    assert old in text
    file.write_text(text + "\n")  # an empty line changes nothing
    assert results.table(study).accuracy.tolist() == [0.25]
    file.write_text(text.replace(old, new))
    for read in (results.known, results.published):
        with pytest.raises(InputError, match=what):
            read(study)


def test_a_measurement_with_two_accuracies_in_a_table_is_refused(outputs):
    study = tiny_study()
    write(study, 10, accuracy=0.25)
    file = results.collect(study)
    header, row = file.read_text().splitlines()
    file.write_text("\n".join([header, row, row]))
    assert len(results.known(study)) == 1
    file.write_text("\n".join([header, row, row.replace("0.25", "0.35")]))
    with pytest.raises(InputError, match="line 3, is a row that stands there twice, with two accuracies"):
        results.known(study)


def test_rows_of_two_recipes_do_not_mix(outputs):
    write(tiny_study())
    with pytest.raises(InputError, match="epochs: 1 there, 2 now"):
        write(tiny_study(epochs=2))


def test_a_row_made_with_other_parameters_is_refused(outputs):
    study = tiny_study()
    write(study)
    file = next(study.folder.glob("*/*/rows/*.json"))
    row = json.loads(file.read_text())
    for changes, fits in (({"seeds": [7], "margin": 2.0}, True), ({"learning_rate": 0.001}, False)):
        file.write_text(json.dumps(row | {"params": row["params"] | changes}))
        if fits:
            assert len(results.known(study)) == 1
        else:
            with pytest.raises(
                InputError, match=r"other parameters \(learning_rate: 0.001 there, .* now\): delete such"
            ):
                results.known(study)


def test_rows_of_a_study_that_was_renamed_are_refused(outputs):
    """Else results.csv would hold two names, and never be read again."""
    study = tiny_study()
    write(study)
    study.folder.rename(study.folder.with_name("other"))
    with pytest.raises(InputError, match="is a row of the study tiny: give the folder"):
        results.known(tiny_study(name="other"))


@pytest.mark.parametrize(
    "key, changes, meets",
    [
        (Key("retrain", "grad-recursive", "pixel", "remove", 50), {"recursive_steps": [90]}, True),
        (Key("retrain", "grad", "pixel", "remove", 50), {"recursive_steps": [90], "imputation_noise": 0.5}, False),
        (Key("deletion", "grad", "pixel", "keep-imputed", 50), {"imputation_noise": 0.5}, True),
    ],
)
def test_a_row_is_held_to_the_keys_that_it_rests_on(outputs, key, changes, meets):
    study = tiny_study(estimators=["grad", "grad-recursive", "random"])
    results.write(study, key, 0.5)
    file = results.row_file(study, key)
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {"params": row["params"] | changes}))
    if meets:
        with pytest.raises(InputError, match=f"other parameters .{next(iter(changes))}: "):
            results.known(study)
    else:
        assert len(results.known(study)) == 1


def test_a_published_row_of_another_base_model_is_refused_where_there_is_one(outputs):
    study = tiny_study(seeds=[0, 1])
    write(study)
    results.write(study, Key("retrain", "clean", seed=1), 0.5)
    file = results.collect(study)
    for row in study.folder.glob("*/*/rows/*.json"):
        row.unlink()
    table = pd.read_csv(file)
    table.assign(base_seed=table.base_seed.where(table.estimator != "clean", 1)).to_csv(file, index=False)
    assert len(results.known(study)) == 2  # the untouched retraining rests on no base model
    table.assign(base_seed=1).to_csv(file, index=False)
    with pytest.raises(InputError, match="line 3, is a row of another base_seed than 0"):
        results.known(study)


def test_rows_at_percents_that_are_no_longer_listed_are_kept_and_not_analysed(outputs):
    study = tiny_study(percents=[50, 90])
    write(study, 50)
    write(study, 90)
    fewer = tiny_study(percents=[90])
    assert results.table(fewer).percent.tolist() == [90] and results.known(fewer).percent.tolist() == [50, 90]


def test_a_row_of_another_base_model_is_refused_where_there_is_one(outputs):
    """Two people share the seeds of a study with one network, and one of them has set base_seed."""
    study = tiny_study(seeds=[0, 1])
    write(study)
    results.write(study, Key("retrain", "clean", seed=1), 0.5)
    for file in study.folder.glob("*/*/rows/*.json"):
        row = json.loads(file.read_text())
        file.write_text(json.dumps(row | {"params": row["params"] | {"base_seed": 1}}))
    with pytest.raises(InputError, match=r"other parameters \(base_seed: 1 there, 0 now\)"):
        results.known(study)
    for file in study.folder.glob("*/*/rows/*.json"):
        if json.loads(file.read_text())["estimator"] != "clean":
            file.unlink()
    assert len(results.known(study)) == 1  # the untouched retraining rests on no base model


def test_context_names_what_computed_the_row():
    found = results.context(tiny_study(), random_data())
    assert found["n_classes"] == 4 and found["device"] == "cpu" and "cores" in found["hardware"]


def test_damaged_and_missing_rows_are_named(outputs):
    study = tiny_study()
    with pytest.raises(InputError, match="no results under"):
        results.collect(study)
    write(study)
    file = outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p50_s0.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(InputError, match="p50_s0.json is damaged"):
        results.table(study)


@pytest.mark.parametrize("changes", [dict(accuracy=1.2), dict(accuracy=float("nan")), dict(measure="guess")])
def test_impossible_rows_are_refused(outputs, changes):
    with pytest.raises(ValueError, match="no such row"):
        write(tiny_study(), **changes)


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_full_disk_leaves_no_row(outputs, monkeypatch, known):
    if known:  # a row is there already, so that study.yaml is not written again
        write(tiny_study(), seed=9)
    before = list(outputs.rglob("*.json"))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device") as error:
        write(tiny_study())
    assert error.value.filename.endswith("_p50_s0.json" if known else "study.yaml")
    assert list(outputs.rglob("*.json")) == before and not list(outputs.rglob("*.part"))


def test_rows_name_the_network_that_they_rest_on(outputs):
    study = tiny_study()
    assert results.write(study, Key("base"), 0.5)["network"] is None
    file = results.base_file(study, "model.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    for content in (b"one", b"another"):
        file.write_bytes(content)
        os.utime(file, ns=(len(content), len(content)))
        results.write(study, Key("retrain", "grad", "pixel", "remove", 50, len(content)), 0.5)
    assert results.known(study).network.nunique() == 2
