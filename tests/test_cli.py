import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROAR, simulated, tiny_study
from PIL import Image

from roarlib import cli
from roarlib.data import datasets
from roarlib.grid import preflight, runner
from roarlib.study import params, results
from roarlib.study.params import InputError
from roarlib.study.results import Key
from roarlib.views import report


@pytest.fixture
def study_file(tmp_path, outputs):
    def write(**changes):
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(tiny_study().model_dump() | changes))
        return str(file)

    return write


def roar(monkeypatch, capsys, *words):
    """(exit status, stdout, stderr) of a call of roar in this process."""
    monkeypatch.setattr(sys, "argv", ["roar", *words])
    try:
        cli.main()
        status = 0
    except SystemExit as leave:
        status = leave.code or 0
    return status, *capsys.readouterr()


def test_the_installed_command_explains_itself():
    done = subprocess.run([ROAR, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in ("plan", "run", "status", "collect", "report", "paper"))


def test_bad_input_ends_in_one_line_and_status_2_without_a_traceback(study_file):
    done = subprocess.run([ROAR, "run", study_file(estimators=["gard"])], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("roar: ") and done.stderr.count("\n") == 1 and "did you mean grad?" in done.stderr
    done = subprocess.run([ROAR, "--debug", "run", "nothing.yaml"], capture_output=True, text=True)
    assert "Traceback" in done.stderr and done.returncode != 0


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(dataset="cifar"), "unknown dataset 'cifar'"),
        (dict(model="resnet"), "unknown model 'resnet'"),
        (dict(train_images=5), "no image of class"),
        (dict(estimators=["no_module:fn"]), "cannot import no_module"),
        (dict(estimators=["captum:Nothing"]), "has no Nothing"),
        (dict(device="tpu"), "device 'tpu' is not usable"),
        (dict(percents=[120]), "percents.0 = 120"),
        (dict(seeds=[]), "seeds"),
    ],
)
def test_every_command_that_starts_work_checks_first(study_file, monkeypatch, capsys, changes, says):
    for command in ("plan", "run"):
        status, out, err = roar(monkeypatch, capsys, command, study_file(**changes))
        assert (status, out, err.count("\n")) == (2, "", 1) and says in err


def test_nan_scores_and_a_broken_estimator_are_found_before_anything_runs(study_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.py").write_text(
        "def nan(model, images, targets):\n    return images * float('nan')\n"
        "def dies(model, images, targets):\n    return images @ targets\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = roar(monkeypatch, capsys, "run", study_file(estimators=["random", "bad:nan"]))[2]
    assert said == (
        "roar: estimator bad:nan: scores of image 0 are NaN or infinite; an importance must be a finite number\n"
    )
    said = roar(monkeypatch, capsys, "run", study_file(estimators=["random", "bad:dies"]))[2]
    assert said.startswith("roar: estimator bad:dies fails on a few images: bad.py:4: RuntimeError: ")
    assert said.count("\n") == 1


def test_a_full_or_read_only_outputs_folder_is_named(study_file, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    file = study_file()
    monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path / "file"))
    status, _, err = roar(monkeypatch, capsys, "run", file)
    assert status == 2 and "cannot write under" in err
    monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    status, _, err = roar(monkeypatch, capsys, "run", file)
    assert status == 2 and "prepared images need" in err and "are free" in err


def test_plan_lists_cells_and_estimates_the_time(study_file, monkeypatch, capsys):
    status, out, _ = roar(monkeypatch, capsys, "plan", study_file())
    assert status == 0 and "04-retrain/grad/s0" in out and "0 of 1 rows" in out
    assert "cells done 01-train 0/1, 02-attribute 0/2" in out and "left: about" in out
    assert "the model and every estimator work\nnext: roar run " in out


def test_what_comes_next_is_of_the_whole_study(study_file, monkeypatch, capsys):
    file = study_file()
    results.write(params.load(file), results.Key("base", seed=0), 0.5, floor=0.1)
    out = roar(monkeypatch, capsys, "plan", file, "--only", "01-train*")[1]
    assert out.endswith(f"next: roar run {file}\n")


def test_a_plan_with_a_slip_leaves_nothing_behind(study_file, monkeypatch, capsys):
    file = study_file(model="resnet1")
    status, _, err = roar(monkeypatch, capsys, "plan", file)
    assert status == 2 and "did you mean resnet18?" in err and not params.load(file).folder.exists()
    file = study_file(estimators=["random", "mine:none"])
    assert roar(monkeypatch, capsys, "plan", file)[0] == 2 and not params.load(file).folder.exists()
    file = study_file(dataset="folder:nowhere", image_size=32)
    assert "there is no nowhere beside the study's file" in roar(monkeypatch, capsys, "plan", file)[2]


def test_status_reads_the_files_alone(study_file, monkeypatch, capsys):
    status, out, _ = roar(monkeypatch, capsys, "status", study_file())
    assert status == 0 and "done  running  failed  waiting" in out
    assert out.endswith(
        "tiny: cells done 01-train 0/1, 02-attribute 0/2, 03-degrade 0/2, 04-retrain 0/3; retrainings 0 of 3, 1 of "
        "the 3 on untouched images\n"
    )


def test_commands_without_results_say_what_to_run(study_file, monkeypatch, capsys):
    for command in ("collect", "report", "paper"):
        status, _, err = roar(monkeypatch, capsys, command, study_file())
        assert status == 2 and "roar run" in err


def test_a_report_wants_rows_of_the_studys_first_unit_and_mode(outputs):
    results.write(study := tiny_study(modes=["keep"]), Key("retrain", "grad", "pixel", "keep", 50, 0), 0.5)
    with pytest.raises(InputError, match=r"no retrainings of tiny yet \(unit pixel, mode remove\)"):
        report.render(study.model_copy(update={"modes": ["remove", "keep"]}))


@pytest.mark.parametrize("error, wanted", [("ValueError: boom", 1), ("InputError: bad", 2)])
def test_a_failed_cell_gives_its_notebook_and_a_status(study_file, monkeypatch, capsys, error, wanted):
    def run(self, only, report):
        first, second = self.grid.cells[:2]
        outcome = runner.Outcome(first, 1.0, error, Path("x/notebook.ipynb"))
        waiting = runner.Outcome(second, 0.0, "not run: it needs 01-train/base")
        for o in (outcome, waiting):
            report(o)
        return [outcome, waiting]

    monkeypatch.setattr(runner.Run, "run", run)
    status, _, err = roar(monkeypatch, capsys, "run", study_file())
    assert status == wanted and f"FAILED 01-train/base: {error} (see x/notebook.ipynb)" in err
    assert "1 more cell(s) wait for them" in err and "not run: it needs" not in err


def test_other_parameters_under_existing_outputs_stop_every_command(study_file, monkeypatch, capsys):
    results.write(tiny_study(), results.Key("base"), 0.5)
    for command in ("plan", "run", "status", "collect", "report"):
        status, _, err = roar(monkeypatch, capsys, command, study_file(epochs=9))
        assert status == 2 and "epochs: 1 there, 9 now" in err


def test_stopping_is_quick_and_the_next_run_goes_on(study_file, tmp_path):
    """SIGINT in the middle of a real run: it ends within seconds, no process stays, and running again finishes."""
    file = study_file(estimators=["grad", "random"], train_images=1000, epochs=30)
    process = subprocess.Popen([ROAR, "run", file], stderr=subprocess.PIPE, text=True, start_new_session=True)
    rows = tmp_path / "outputs" / "tiny" / "01-train" / "base" / "rows"
    while process.poll() is None and not any(rows.glob("*.json")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "finished rows are kept" in process.communicate(timeout=600)[1] and process.returncode == 130
    for _ in range(600):  # kernels see their owner's end a moment later
        if not any(str(tmp_path) in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is left")
    assert subprocess.run([ROAR, "run", study_file()], capture_output=True).returncode == 2  # other parameters now


def test_disk_is_counted_in_bytes_of_the_rankings(outputs):
    study = tiny_study(units=["pixel", "value"])
    assert preflight.disk_bytes(study) == (150 * 3 * 1024, 2 * 150 * (1 + 3) * 1024)
    several = tiny_study(units=["pixel", "value"], seeds=[0, 1, 2], base_models="each-seed")
    assert preflight.disk_bytes(several) == (150 * 3 * 1024, 3 * 2 * 150 * (1 + 3) * 1024)


def test_preflight_accepts_what_is_good(outputs):
    with pytest.raises(InputError):
        preflight.check(tiny_study(model="nothing"))
    assert len(preflight.check(tiny_study())[0].train) == 100


def test_plan_of_photographs_tries_the_study_on_a_few_and_prepares_nothing(
    tmp_path, outputs, monkeypatch, capsys, study_file
):
    for part, k in itertools.product(("train", "val"), range(3)):
        for n in range(5):
            picture = tmp_path / "photos" / part / f"n{k}" / f"{n}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(n).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(picture)
    wanted = dict(dataset=f"folder:{tmp_path / 'photos'}", image_size=16, train_images=0, test_images=0)
    monkeypatch.setattr(preflight, "TRIED", 4)
    status, out, _ = roar(monkeypatch, capsys, "plan", study_file(**wanted))
    assert status == 0 and "15 train and 15 test images of (3, 16, 16)" in out and "left: about " in out
    assert "0 MB of images, 0 MB of rankings" in out and not (outputs / "_prepared").exists()
    (tmp_path / "early.py").write_text("def fails(model, images, targets):\n    raise ValueError('no gradient here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = study_file(estimators=["random", "early:fails"], **wanted)
    status, _, err = roar(monkeypatch, capsys, "plan", file)
    assert status == 2 and "early.py:2: ValueError: no gradient here" in err and not (outputs / "_prepared").exists()


def test_the_space_of_imagenet_is_known_beforehand(monkeypatch):
    study = tiny_study(dataset="imagenet", train_images=0, test_images=0, estimators=["grad", "ig"], units=["value"])
    sizes = {"train": 1_281_167, "test": 50_000}, (3, 224, 224), 1000
    monkeypatch.setattr(datasets, "sizes", lambda study: sizes)
    images, ranked = preflight.disk_bytes(study)
    assert images == 1_331_167 * 150_528 and ranked == 2 * images
    assert preflight.disk_bytes(study.model_copy(update={"units": ["pixel"]})) == (images, 2 * images // 3)
    assert preflight.disk_bytes(study.model_copy(update={"rankings": "recompute", "workers": 1})) == (images, images)


def test_prepare_is_done_once_and_then_checked(tmp_path, outputs, monkeypatch, capsys, study_file):
    file = study_file()
    status, out, _ = roar(monkeypatch, capsys, "prepare", file)
    assert status == 0 and "train: 100 images" in out and "prepared already" not in out
    status, out, _ = roar(monkeypatch, capsys, "prepare", file)
    assert status == 0 and "every byte is as it was written" in out
    images = next(outputs.rglob("train-images.npy"))
    images.write_bytes(images.read_bytes()[:-1] + b"?")
    status, _, err = roar(monkeypatch, capsys, "prepare", file)
    assert status == 2 and "train differ from what was written" in err


def test_any_locale_and_any_path(tmp_path):
    """Spaces and umlauts in paths, under a locale that cannot spell them."""
    folder = tmp_path / "mein Örtchen"
    folder.mkdir()
    file = folder / "té st.yaml"
    file.write_text(yaml.safe_dump(tiny_study(train_images=50).model_dump()))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ROAR_OUTPUTS": str(folder / "out puts")}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (["run", "--only", "01-train/*"], ["status"], ["collect"]):
        done = subprocess.run([ROAR, command[0], file, *command[1:]], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert (folder / "out puts" / "tiny" / "results.csv").is_file()


def test_outputs_of_two_machines_can_be_merged(outputs, tmp_path, monkeypatch):
    """Folders of one study, copied over each other: every row once; of another study: the difference in one line."""
    study = tiny_study(seeds=[0, 1])
    for place, seed in (("one", 0), ("two", 1)):
        monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path / place))
        results.write(tiny_study(seeds=[seed]), results.Key("retrain", "grad", "pixel", "remove", 50, seed), 0.5)
        results.collect(tiny_study(seeds=[seed]))
        shutil.copytree(tmp_path / place, outputs, dirs_exist_ok=True)
    monkeypatch.setenv("ROAR_OUTPUTS", str(outputs))
    params.save(study)
    assert results.table(study).seed.tolist() == [0, 1]
    monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path / "three"))
    results.write(tiny_study(epochs=7), results.Key("retrain", "grad", "pixel", "remove", 50, 2), 0.5)
    shutil.copytree(tmp_path / "three", outputs, dirs_exist_ok=True)
    monkeypatch.setenv("ROAR_OUTPUTS", str(outputs))
    with pytest.raises(InputError, match="epochs: 7 there, 1 now"):
        params.save(study)


def test_a_base_model_that_learnt_nothing_stops_the_run(study_file, outputs):
    file = study_file()
    study = params.load(file)
    key = results.Key("base", seed=0)
    results.write(study, key, 0.1, floor=0.1)
    assert "right on 10.0% of the test images, guessing on 10.0%" in results.nothing_learnt(study)
    done = subprocess.run([ROAR, "run", file], capture_output=True, text=True)
    assert done.returncode == 1 and "nothing can be lost by removal" in done.stderr and "--anyway" in done.stderr
    assert not {"\r", "\x1b"} & set(done.stderr)  # no terminal: nothing is drawn over, nothing in colour
    assert not list(study.folder.glob("04-retrain/*/rows/*"))
    results.collect(study)
    results.row_file(study, key).unlink()  # as in a clone
    assert "right on 10.0%" in results.nothing_learnt(study)
    results.write(study, key, 0.11, floor=0.1)
    assert results.nothing_learnt(study) == ""


def test_status_without_a_study_lists_all_that_have_results(study_file, outputs, monkeypatch, capsys):
    assert "no study has results under" in roar(monkeypatch, capsys, "status")[1]
    study = params.load(study_file())
    results.write(study, results.Key("retrain", seed=0), 0.5)
    status, out, _ = roar(monkeypatch, capsys, "status")
    assert status == 0 and out.startswith("tiny: cells done 01-train 0/1") and out.count("\n") == 1


def test_studies_are_compared_by_their_files_or_all_there_are(study_file, outputs, monkeypatch, capsys):
    status, _, said = roar(monkeypatch, capsys, "compare")
    assert status == 2 and said == "roar: Comparing needs two studies with results; so far there is none.\n"
    files = []
    for name in ("one", "two"):
        study = params.load(study_file(name=name, percents=[10, 30, 50, 70, 90]))
        files.append(str(params.save(study)))
        simulated(["grad", "random", "ig"]).assign(study=name, n_classes=10, precision="float32").to_csv(
            study.folder / "results.csv", index=False
        )
    status, out, _ = roar(monkeypatch, capsys, "compare", *files, "--mode", "keep")
    assert status == 0 and out.startswith("2 studies, single values kept, t = 10, 30, 50, 70, 90.\n")
    assert "GRAD" in out and "mean rank" in out and "Kendall's tau" in out
    assert roar(monkeypatch, capsys, "compare")[1].startswith("2 studies, single values removed")


@pytest.mark.parametrize("dataset", ["textures", "folder:my photos", "npz:some.npz"])
def test_a_new_study_is_one_that_loads(tmp_path, outputs, monkeypatch, capsys, dataset):
    file = tmp_path / "own.yaml"
    words = ["new", str(file), "--dataset", dataset, "--estimator", "unwritten:edges", "--estimator", "maps:my-maps"]
    status, out, _ = roar(monkeypatch, capsys, *words)
    assert status == 0 and out.endswith(f"next: roar plan {file}\n")
    assert "to do: unwritten:edges: cannot import unwritten (there is no unwritten.py in " in out
    study = params.load(file)
    assert study.dataset == dataset and study.estimators[-2:] == ["unwritten:edges", "maps:my-maps"]
    assert study.image_size == (64 if dataset.startswith("folder:") else 0) and "#" in file.read_text()
    assert roar(monkeypatch, capsys, *words)[0] == 2 and params.load(file) == study  # never written over
    file.unlink()
    status, _, said = roar(monkeypatch, capsys, "new", str(file), "--estimator", "mine")
    assert status == 2 and "unknown estimator 'mine'" in said and not file.exists()
