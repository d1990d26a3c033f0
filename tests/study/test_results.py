import json

import pandas as pd
import pytest
from conftest import tiny_study

from roarlib.study import results
from roarlib.study.params import InputError


def write(study, percent=50, seed=0, accuracy=0.5, **changes):
    values = dict(
        measure="retrain",
        estimator="grad",
        unit="pixel",
        mode="remove",
        percent=percent,
        seed=seed,
        accuracy=accuracy,
        seconds=1.0,
        n_train=9,
        n_test=8,
        n_classes=4,
        device="cpu",
        hardware="2 cores",
        precision="float32",
    )
    return results.write(study, "04-retrain", "grad", **values | changes)


def test_a_row_is_a_whole_json_file_with_everything(outputs):
    study = tiny_study()
    assert not results.has(study, "04-retrain", "grad", "retrain_grad_pixel_remove_p50_s0.json")
    write(study)
    file = outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p50_s0.json"
    row = json.loads(file.read_text())
    assert results.has(study, "04-retrain", "grad", file.name) and list(file.parent.iterdir()) == [file]
    assert row["params"] == study.model_dump() and row["accuracy"] == 0.5
    assert row["torch"] and row["host"] and row["python"] and row["finished"].startswith("20")


def test_rows_collect_into_one_tidy_table(outputs):
    study = tiny_study()
    for seed in (1, 0):
        for percent in (90, 10):
            write(study, percent, seed, accuracy=percent / 100)
    write(study, measure="ranking", mode="all", percent=0, accuracy=None)
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
    study = tiny_study()
    write(study, 10, accuracy=0.1)
    write(study, 90, accuracy=0.9)
    results.collect(study)
    (outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p90_s0.json").unlink()
    write(study, 10, accuracy=0.2)  # a row file wins over the table
    assert results.table(study).accuracy.tolist() == [0.2, 0.9]
    assert pd.read_csv(results.collect(study)).accuracy.tolist() == [0.2, 0.9]


def test_parquet_and_csv_hold_the_same_table(outputs, monkeypatch):
    study, said = tiny_study(), results.provenance()
    monkeypatch.setattr(results, "provenance", lambda: said | {"commit": "1234567"})  # a hash of digits alone
    write(study, 10, accuracy=1 / 3)
    write(study, 90, accuracy=0.1 + 0.2)  # 0.30000000000000004: every digit counts
    write(study, measure="ranking", mode="all", percent=0, accuracy=None)
    file = results.collect(study)
    text, typed = pd.read_csv(file, dtype=results.TEXT), pd.read_parquet(file.with_suffix(".parquet"))
    assert list(typed.columns) == results.COLUMNS and len(typed) == 3
    pd.testing.assert_frame_equal(typed, text, check_exact=True)
    assert typed.accuracy.isna().tolist() == [True, False, False] and (typed.commit == "1234567").all()
    assert typed.seed.dtype == typed.percent.dtype == int and typed.accuracy.dtype == float


def test_a_published_table_and_new_rows_collect_together(outputs, monkeypatch):
    study, said = tiny_study(), results.provenance()
    monkeypatch.setattr(results, "provenance", lambda: said | {"commit": "1234567"})
    write(study, 10)
    results.collect(study)
    (outputs / "tiny" / "04-retrain" / "grad" / "rows" / "retrain_grad_pixel_remove_p10_s0.json").unlink()
    monkeypatch.setattr(results, "provenance", lambda: said | {"commit": "abc1234"})
    write(study, 90)
    found = pd.read_parquet(results.collect(study).with_suffix(".parquet"))
    assert found.commit.tolist() == ["1234567", "abc1234"] and results.known(study).percent.tolist() == [10, 90]


def test_rows_of_two_recipes_do_not_mix(outputs):
    write(tiny_study())
    with pytest.raises(InputError, match="epochs: 1 there, 2 now"):
        write(tiny_study(epochs=2))


def test_context_names_what_computed_the_row():
    from conftest import random_data

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


def test_a_full_disk_leaves_no_row(outputs, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        write(tiny_study())
    assert not list(outputs.rglob("*.json")) and not list(outputs.rglob("*.part"))
