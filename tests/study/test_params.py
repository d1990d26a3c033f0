import re

import pytest
import yaml
from conftest import tiny_study

from roarlib.study import params
from roarlib.study.files import root
from roarlib.study.params import InputError


def written(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "line, says",
    [
        ("estimators: [gard]", "unknown estimator 'gard'; did you mean grad?"),
        ("estimators: ['mine:f-sgqs']", "unknown estimator 'mine:f-sgqs'; did you mean mine:f-sgsq?"),
        ("estimators: []", "estimators"),
        ("estimators: [grad]\npercents: [101]", "percents.0 = 101: input should be less than or equal to 100"),
        ("estimators: [grad]\npercents: [12.5]", "percents.0 = 12.5: input should be a valid integer"),
        ("estimators: [grad]\npercents: [ten]", "percents.0 = 'ten'"),
        ("estimators: [grad]\nseeds: []", "seeds"),
        ("estimators: [grad]\nseeds: [1, 1]", "has an entry twice"),
        ("estimators: [grad]\nunits: [patch]", "units.0 = 'patch': input should be 'value' or 'pixel'"),
        ("estimators: [grad]\nmodes: [drop]", "modes.0 = 'drop'"),
        ("estimators: [grad]\npercent: [10]", "unknown key 'percent'; did you mean 'percents'?"),
        ("estimators: [grad]\nepochs: 0", "epochs = 0: input should be greater than or equal to 1"),
        ("estimators: [grad]\nname: ../up", "name = '../up'"),
        ("estimators: [oracle]\ndataset: cifar10", "oracle needs the true informative pixels"),
        ("dataset: textures", "the key 'estimators' is missing"),
        ("- grad", "must be a mapping"),
        ("", "must be a mapping"),
        ("estimators: [grad", "not readable as YAML"),
        ("estimators: !!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, line, says):
    with pytest.raises(InputError) as error:
        params.load(written(tmp_path, line))
    assert says in str(error.value) and "\n" not in str(error.value) and "mine.yaml" in str(error.value)


def test_a_missing_file_lists_the_studies():
    with pytest.raises(InputError, match=r"params/nothing.yaml: no such file; the studies here are .*smoke.yaml"):
        params.load("params/nothing.yaml")


def test_the_name_defaults_to_the_files():
    assert params.load("params/smoke.yaml").name == "smoke"


@pytest.mark.parametrize("file", sorted((root() / "params").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_study_file_has_all_keys_in_one_order_and_starts_with_its_cost(file):
    text = file.read_text()
    assert list(yaml.safe_load(text)) == list(params.Study.model_fields)
    assert text.startswith("# ") and f"roar run params/{file.name}" in text
    assert params.load(file).name == file.stem


def test_zero_percent_is_always_shared():
    assert tiny_study(percents=[50, 0, 10]).percents == [10, 50]


def test_other_parameters_under_existing_outputs_are_an_error_that_shows_the_difference(outputs):
    params.save(tiny_study())
    params.save(tiny_study(seeds=[0, 1], estimators=["grad", "ig"], workers=3))  # selections and machine may change
    with pytest.raises(InputError, match="epochs: 1 there, 2 now"):
        params.save(tiny_study(epochs=2))
    assert params.load(outputs / "tiny" / "study.yaml").seeds == [0, 1]


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROAR_OUTPUTS", str(tmp_path / "file"))  # not a folder: writing fails for root as well
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        params.save(tiny_study())


def test_a_mask_alone_is_no_first_mode():
    with pytest.raises(ValueError, match="mask"):
        tiny_study(modes=["mask", "remove"])


def test_steps_and_noise_that_nothing_depends_on_may_change(outputs):
    params.save(tiny_study())
    params.save(tiny_study(estimators=["grad-recursive"], recursive_steps=[20], imputation_noise=0.1))
    with pytest.raises(params.InputError, match="recursive_steps"):
        params.save(tiny_study(recursive_steps=[30]))
