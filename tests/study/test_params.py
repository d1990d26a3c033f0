import fcntl
import itertools
import random
import re
from pathlib import Path

import pytest
import yaml
from conftest import tiny_study

from roarlib.study import params, results, yaml12
from roarlib.study.files import root
from roarlib.study.params import InputError
from roarlib.study.results import Key


def written(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


def mine(options=None, *estimators, **changes):
    """A study with the user's own estimator mine:f (or those named), with options for it unless they are None."""
    options = {} if options is None else {"mine:f": options}
    return tiny_study(estimators=["grad", *(estimators or ["mine:f"])], estimator_options=options, **changes)


def run(study, *estimators):
    """Leave study.yaml and rows as a run does in which no other estimators get as far as their first row."""
    params.save(study)
    results.write(study, Key("base"), 0.5)
    for name in estimators:
        results.write(study, Key("ranking", name))
        results.write(study, Key("retrain", name, "pixel", "remove", 50), 0.5)


@pytest.mark.parametrize(
    "line, says",
    [
        ("estimators: [gard]", "unknown estimator 'gard'; did you mean grad?"),
        ("estimators: ['mine:f-sgqs']", "unknown estimator 'mine:f-sgqs'; did you mean mine:f-sgsq?"),
        ("estimators: []", "estimators"),
        ("estimators: [grad]\nmargin: 0", "margin = 0: input should be greater than 0"),
        ("estimators: [grad]\nmargin: 100", "margin = 100: input should be less than 100"),
        ("estimators: [grad]\npercents: [101]", "percents.0 = 101: input should be less than or equal to 100"),
        ("estimators: [grad]\npercents: [12.5]", "percents.0 = 12.5: input should be a valid integer"),
        ("estimators: [grad]\npercents: [ten]", "percents.0 = 'ten'"),
        ("estimators: [grad]\nseeds: []", "seeds"),
        ("estimators: [grad]\nseeds: [1, 1]", "has an entry twice"),
        ("estimators: [grad]\nseeds: atuo", "seeds = 'atuo': input should be a valid list or auto"),
        ("estimators: [grad]\nseeds: auto", "seeds: auto needs random among the estimators"),
        (
            "estimators: [random]\nseeds: auto\nbase_models: each-seed\nbase_seed: 3",
            "base_seed: 3 is none of the seeds",
        ),
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
        ("estimators: [grad]\npercents: [0.1, 0.5]", "percents = [0.1, 0.5]: write 10 and 50 (percent, not shares)"),
        ("estimators: [grad]\npercents: [0, .1, .5, .9, 1]", "write 10, 50, 90 and 100 (percent, not shares)"),
        ("estimators: [grad]\npercents: [0.29]", "write 29 (percent, not shares)"),
        ("estimators: [grad]\npercents: [0.5, 90]", "write 50 (percent, not shares)"),
        ("estimators: [grad]\nrecursive_steps: [0.1, 0.3]", "recursive_steps = [0.1, 0.3]: write 10 and 30 (percent"),
        ("estimators: [grad]\npercents: [10.0, 50.0]", "percents.0 = 10.0: input should be a valid integer; write 10"),
        (
            "estimators: [grad]\ntrain_images: 1e4",
            "train_images = 10000.0: input should be a valid integer; write 10000",
        ),
        ("estimators: [grad]\ntrain_images: 1_000", "train_images = '1_000': input should be a valid integer"),
        ("estimators: [grad]\nseeds: [1:30]", "seeds.0 = '1:30': input should be a valid integer"),
        ("estimators: [grad]\nepochs: true", "epochs = True: input should be a valid integer"),
        (
            "estimators: [grad]\nflip_average: yes",
            "flip_average = 'yes': input should be a valid boolean: true or false",
        ),
        (
            "estimators: [grad]\nflip_average: off",
            "flip_average = 'off': input should be a valid boolean: true or false",
        ),
        ("estimators: [grad]\nflip_average: 1", "flip_average = 1: input should be a valid boolean: true or false"),
        ("estimators: [grad]\nlearning_rate: no", "learning_rate = 'no': input should be a valid number"),
        ("estimators: [grad]\nlearning_rate: 1_0.5", "learning_rate = '1_0.5': input should be a valid number"),
        ("estimators: [grad]\nlearning_rate: true", "learning_rate = True: input should be a valid number"),
        ("estimators: [grad]\nlearning_rate: .inf", "learning_rate = inf: input should be a finite number"),
        (
            "epochs: 9\nestimators: [grad]\ndrop_epochs: [3, 9]",
            "drop_epochs must rise, and stay below epochs (9): [3, 9]",
        ),
        ("epochs: 9\nestimators: [grad]\ndrop_epochs: [3, 3]", "drop_epochs must rise"),
        ("estimators: [grad]\nbase_seed: 9223372036854775808", "base_seed = 9223372036854775808"),
        ("estimators: [grad]\nrecursive_steps: [30, 10]", "recursive_steps must rise: [30, 10]"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, line, says):
    with pytest.raises(InputError) as error:
        params.load(written(tmp_path, line))
    assert says in str(error.value) and "\n" not in str(error.value) and "mine.yaml" in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("estimators: [grad]\nseeds: [010]", "line 2: 010 starts with a zero; write 10, or '010' in quotes"),
        ("estimators: [grad]\n# more\nseeds:\n  - 1\n  - -07", "line 5: -07 starts with a zero; write -7"),
        ("estimators: [grad]\r\nbase_seed: 0o17", "line 2: 0o17 starts with a zero; write 15"),
        (
            "# é\nestimators: [m:f]\nestimator_options: {m:f: {\n  a: 1,\n  b: [+08]}}",
            "line 5: +08 starts with a zero; write 8",
        ),
        ("name: 007\nestimators: [grad]", "line 1: 007 starts with a zero; write 7, or '007' in quotes"),
        ("seeds: [0]\nestimators: [grad]\nseeds: [1]", "line 3: the key 'seeds' is given twice, first in line 1"),
        (
            "estimators: [m:f]\nestimator_options:\n  m:f: {a: 1}\n  'm:f': {a: 2}",
            "line 4: the key 'm:f' is given twice, first in line 3",
        ),
        (
            "estimators: [m:f]\nestimator_options: {m:f: {a: {x: 1,\n x: 2}}}",
            "line 3: the key 'x' is given twice, first in line 2",
        ),
        ("- {a: 1, a: 1}", "line 1: the key 'a' is given twice"),
        ("estimators: [paper,\n *-blur]", "line 2: *-blur needs quotes, '*-blur'"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nestimators: [*b, *b]", "line 2: *a needs quotes"),
        ("estimators: [grad]\nseeds: !!int '010'", "line 2: not readable as YAML: !!int is a tag"),
        ("estimators: [grad]\ndata_dir: !here", "line 2: not readable as YAML: !here is a tag"),
        ("<<: {seeds: [1]}\nestimators: [grad]", "unknown key '<<'"),
        (
            "seeds: [0]\nestimators: [grad\n",
            "not readable as YAML: while parsing a flow sequence from line 2: expected",
        ),
        ("estimators: [grad]\n\tseeds: [0]", "line 2: not readable as YAML: "),
        ("estimators: [grad]\nname: 'b\x07'", "line 2: not readable as YAML: the character '\\x07'"),
        ("[" * 5000, "nested too deeply"),
        ("seeds: [0]\n---\nseeds: [1]", "line 2: not readable as YAML: expected a single document"),
        ("seeds: [" + "9" * 5000 + "]", "Exceeds the limit"),
    ],
)
def test_what_is_no_yaml_of_ours_is_one_line_with_its_number(tmp_path, text, says):
    with pytest.raises(InputError, match="mine.yaml: ") as error:
        params.load(written(tmp_path, text))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text_name_their_line(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"estimators: [grad]\nname: caf\xe9\n")
    with pytest.raises(InputError, match="mine.yaml: line 2: not readable as YAML: this is not UTF-8"):
        params.load(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match="nothing.yaml: No such file"):
        params.read(tmp_path / "nothing.yaml")


def test_numbers_and_booleans_are_those_of_yaml_1_2(tmp_path):
    options = """
        numbers: [1e-3, 1E5, .5, 5., -1.5e+2, 0, -0, +12, 0x1F, 007.5, .inf]
        booleans: [true, false, True, FALSE]
        nothing: [null, ~, ]
        texts: [no, yes, on, off, y, 1:30, 1_000, 0b1, 2020-01-01, 12:30:45, 1e, e3, '010', "1e-3", nan, =, 0o8]
    """
    text = f"name: no\nlearning_rate: 1e-3\nepochs: 3\nestimators: [m:f]\nestimator_options:\n  m:f:{options}"
    study = params.load(written(tmp_path, text))
    found = study.estimator_options["m:f"]
    assert (study.name, study.learning_rate, study.epochs) == ("no", 0.001, 3)
    assert found["numbers"] == [0.001, 1e5, 0.5, 5.0, -150.0, 0, 0, 12, 31, 7.5, float("inf")]
    assert [type(value) for value in found["numbers"]] == [float] * 5 + [int] * 4 + [float] * 2
    assert found["booleans"] == [True, False, True, False] and found["nothing"] == [None, None]
    said = "no yes on off y 1:30 1_000 0b1 2020-01-01 12:30:45 1e e3 010 1e-3 nan = 0o8"
    assert found["texts"] == said.split()


def test_a_study_is_read_back_as_it_was_written(outputs, tmp_path):
    texts = ["1e-3", "no", "010", "-07", "0o17", "09", "1:30", "1_000", "null", "", "*-blur", "é", "<<", "a: b", "#"]
    shared = {"lr": 1e-3, "tiny": 1e-12, "texts": texts, "more": [True, None, 10, 0.5, 1e22]}
    study = tiny_study(
        name="no", data_dir="1e5", estimators=["m:f", "m:g"], estimator_options={"m:f": shared, "m:g": shared}
    )
    assert params.load(params.save(study)) == study
    assert params.load(written(tmp_path, params.dump(study))) == study
    assert yaml.safe_load(params.dump(study)) == study.model_dump()  # readers of YAML 1.1 agree
    for text in ("1e-3", "no", "010"):
        assert f"- '{text}'\n" in params.dump(study)


def test_any_text_survives_whatever_it_looks_like():
    draw = random.Random(0)
    for length in itertools.islice(itertools.cycle(range(7)), 1000):
        text = "".join(draw.choices("0123456789_.eE+-:oxnyNaf~*&!%@`'\"#,[]{}<=? \n\té\u2028", k=length))
        for value in (text, {text: [text]}):
            assert yaml12.load(yaml12.dump(value).encode()) == value
            flow = yaml12.dump(value, default_flow_style=True, width=10_000)
            assert yaml12.load(flow.encode()) == value == yaml.safe_load(flow)


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


def test_a_study_from_before_there_were_margins_has_the_default():
    file = root() / "outputs" / "vit-textures" / "study.yaml"
    assert "margin" not in file.read_text() and params.load(file).margin == 1


def test_zero_percent_is_always_shared():
    assert tiny_study(percents=[50, 0, 10]).percents == [10, 50]


def test_other_parameters_under_existing_outputs_are_an_error_that_shows_the_difference(outputs):
    run(tiny_study(), "grad")
    params.save(tiny_study(seeds=[0, 1], estimators=["grad", "ig"], workers=3))  # selections and machine may change
    with pytest.raises(InputError, match="epochs: 1 there, 2 now"):
        params.save(tiny_study(epochs=2))
    with pytest.raises(InputError, match="margin: 1.0 there, 2.0 now"):  # fixed beforehand
        params.save(tiny_study(margin=2.0))
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
    run(tiny_study(), "grad")
    params.save(tiny_study(estimators=["grad-recursive"], recursive_steps=[20], imputation_noise=0.1))
    with pytest.raises(params.InputError, match="recursive_steps"):
        params.save(tiny_study(recursive_steps=[30]))


@pytest.mark.parametrize("left", ["steps: 20", "estimators: [gard]", "name: [", "epochs: 7\nepochs: 8", "no study"])
def test_a_study_without_a_row_is_replaced_whatever_it_says(outputs, left):
    (outputs / "tiny").mkdir(parents=True)
    (outputs / "tiny" / "study.yaml").write_text(left)
    assert params.load(params.save(tiny_study(epochs=2))) == tiny_study(epochs=2)
    assert params.load(params.save(mine({"steps": 20}, epochs=3))) == mine({"steps": 20}, epochs=3)


def test_a_run_at_work_keeps_its_parameters_before_its_first_row(outputs):
    params.save(mine({"steps": 20}))
    lock = outputs / "tiny" / ".runs" / "lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        params.save(mine({"steps": 20}))
        with pytest.raises(InputError, match="epochs: 1 there, 2 now"):
            params.save(mine({"steps": 20}, epochs=2))
    params.save(mine({"steps": 30}, epochs=2))


@pytest.mark.parametrize(
    "name, says",
    [
        ("mine:edgse", "mine:edgse is no estimator of yours or Captum's in this study; did you mean mine:edges?"),
        ("mien:edges", "did you mean mine:edges?"),
        ("edges", "did you mean mine:edges?"),
        ("mine.edges", "did you mean mine:edges?"),
        ("captum:Oclusion", "did you mean captum:Occlusion?"),
        ("captum:occlusion", "did you mean captum:Occlusion?"),
        ("mine:edges-sgsq", "write mine:edges, whose ensembles and variants share its options"),
        ("mine:edges-sg-blur", "write mine:edges, whose"),
        ("grad", "grad is no estimator of yours or Captum's in this study"),
        ("ig-sgsq", "ig-sgsq is no estimator of yours"),
        ("random", "random is no estimator of yours"),
        ("anti-oracle", "anti-oracle is no estimator of yours"),
    ],
)
def test_options_under_a_wrong_name_are_an_error(tmp_path, name, says):
    listed = "estimators: [grad, mine:edges-sgsq, captum:Occlusion]"
    with pytest.raises(InputError) as error:
        params.load(written(tmp_path, f"{listed}\nestimator_options: {{{name}: {{a: 1}}}}"))
    assert f"estimator_options: {name} is no" in str(error.value) and says in str(error.value)


@pytest.mark.parametrize("name", ["mine:corners", "captum:Saliency", "other:edges", "captum:DeepLift", "mine:edge"])
def test_options_of_an_estimator_that_is_not_listed_do_no_harm(tmp_path, name):
    text = f"estimators: [grad, mine:edges]\nestimator_options: {{mine:edges: {{a: 1}}, {name}: {{b: 2}}}}"
    assert params.load(written(tmp_path, text)).estimator_options == {"mine:edges": {"a": 1}, name: {"b": 2}}
    text = f"estimators: [grad, random]\nestimator_options: {{{name}: {{b: 2}}}}"
    assert params.load(written(tmp_path, text)).estimator_options == {name: {"b": 2}}


def test_results_of_a_study_outside_of_the_project_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("ROAR_OUTPUTS")
    file = tmp_path / "mine.yaml"
    file.write_text("estimators: [random]\n")
    study = params.load(file)
    assert study.folder == tmp_path / "outputs" / "mine" and study.based(3).folder == study.folder
    assert params.load("params/smoke.yaml").folder == root() / "outputs" / "smoke"
    assert study.model_copy(update={"name": "other"}).folder == tmp_path / "outputs" / "other"
    own = study.folder / ".runs" / "1.yaml"  # what cells load, wherever they run and whatever they are told
    own.parent.mkdir(parents=True)
    own.write_text(params.dump(study))
    monkeypatch.setenv("ROAR_OUTPUTS", "/nowhere")
    assert params.load(own).folder == study.folder
    assert params.load(file).folder == Path("/nowhere/mine")


def test_a_users_own_study_yaml_is_not_taken_for_results(tmp_path, monkeypatch):
    """Nor would it be written over."""
    monkeypatch.delenv("ROAR_OUTPUTS")
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "study.yaml"
    file.write_text("name: mine\nestimators: [random]  # a comment\n")
    assert params.save(params.load(file)) == tmp_path / "mine" / "outputs" / "mine" / "study.yaml"
    assert "# a comment" in file.read_text()


def test_steps_and_noise_stay_while_rows_rest_on_them(outputs):
    """Though another run has left the estimator and the mode out meanwhile."""
    wanted = tiny_study(estimators=["grad", "grad-recursive"], modes=["remove", "remove-imputed"])
    run(wanted, "grad-recursive")
    results.write(wanted, Key("retrain", "grad", "pixel", "remove-imputed", 50), 0.5)
    for collected in (False, True):
        params.save(tiny_study(estimators=["grad"]))
        for key, value in {"recursive_steps": [20], "imputation_noise": 0.1}.items():
            with pytest.raises(InputError, match=key):
                params.save(wanted.model_copy(update={key: value}))
        if not collected:
            results.collect(wanted)
            for file in (outputs / "tiny").glob("*/*/rows/*"):
                file.unlink()
