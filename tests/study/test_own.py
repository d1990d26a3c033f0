"""roarlib.own: users' functions are found, and results of two versions of one are not mixed."""

import sys

import pytest
from conftest import tiny_study
from test_grid import finish

from roarlib.grid import cells as grid
from roarlib.study import own
from roarlib.study.params import InputError

CODE = """
FACTOR = 2

def helper(x):
    return FACTOR * x

def edges(model, images, targets):
    return helper(images)  # as they are

def other(model, images, targets):
    return -images
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the module `mine_own`, as an editor and a new process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(old="", new=""):
        (tmp_path / "mine_own.py").write_text(CODE.replace(old, new) if old else CODE)
        sys.modules.pop("mine_own", None)

    write()
    yield write
    sys.modules.pop("mine_own", None)


def test_a_mark_is_of_the_function_and_what_it_names(write):
    first, other = own.mark("mine_own:edges"), own.mark("mine_own:other")
    for free in (("# as they are", "# yes"), ("return -images", "return images"), ("\n\n", "\n\n\n")):
        write(*free)
        assert own.mark("mine_own:edges") == first, free
    for matters in (("FACTOR = 2", "FACTOR = 3"), ("FACTOR * x", "FACTOR + x"), ("helper(images)", "helper(-images)")):
        write(*matters)
        assert own.mark("mine_own:edges") != first and own.mark("mine_own:other") == other, matters


def test_what_a_function_imports_belongs_to_its_mark(write, tmp_path):
    package = tmp_path / "mine_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("def deep(x):\n    return x + 1\n")
    plain, unused = "def free(x):\n    return x\n", "def unused(x):\n    return x\n"
    (package / "near.py").write_text("from .deep import deep as d\ndef near(x):\n    return d(x)\n" + plain)
    (tmp_path / "mine_whole.py").write_text("import os\n" + unused)
    imports = "import numpy\nimport mine_whole as w\nfrom mine_parts.near import near, free\n"

    changes = (  # what the functions use, what is edited, whether it is theirs
        ("near(FACTOR) * x", package / "deep.py", True),  # a relative import under another name
        ("near(FACTOR) * x", package / "near.py", False),  # another function of that module
        ("w.anything(x)", tmp_path / "mine_whole.py", True),  # a module as a whole
        ("numpy.abs(x)", tmp_path / "mine_whole.py", False),
    )
    for use, file, theirs in changes:
        (tmp_path / "mine_own.py").write_text(imports + CODE.replace("FACTOR * x", use))
        before, text = (own.mark("mine_own:edges"), own.mark("mine_own:other")), file.read_text()
        file.write_text(text.replace("return x", "return 2 * x"))
        after = own.mark("mine_own:edges"), own.mark("mine_own:other")
        assert (before[0] != after[0]) == theirs and before[1] == after[1], (use, file)
        file.write_text(text)


def test_an_import_inside_a_function_counts(write, tmp_path):
    (tmp_path / "mine_late.py").write_text("def late(x):\n    return x\n")
    write("return helper(images)", "from mine_late import late; return late(images)")
    before = own.mark("mine_own:edges")
    (tmp_path / "mine_late.py").write_text("def late(x):\n    return -x\n")
    assert own.mark("mine_own:edges") != before


def test_imports_that_fail_do_not_matter(write, tmp_path):
    (tmp_path / "mine_broken.py").write_text("def late(x: return\n")
    failing = ("from .near import near", "from mine_broken import late", "import __main__", "import no_such_module_x.y")
    for line in failing:
        write("return helper(images)", f"try:\n        {line}\n    except Exception: pass\n    return images")
        assert len(own.mark("mine_own:edges")) == 16, line


def test_changed_functions_with_results_are_an_error(outputs, write):
    study = tiny_study(estimators=["mine_own:edges", "mine_own:edges-sgsq", "mine_own:other", "random"])
    own.keep(study)
    write("FACTOR = 2", "FACTOR = 3")
    own.check(study)  # nothing was made with it yet
    for cell in grid.cells(study):
        finish(study, cell)
    with pytest.raises(InputError, match="mine_own:edges is not what it was .* 0.-./mine_own.edges"):
        own.check(study)
    write("return -images", "return images - 1")
    with pytest.raises(InputError, match="mine_own:other is not what it was"):
        own.check(study)
    write()
    own.check(study)
    own.check(tiny_study(estimators=["grad", "random"]))


def test_a_recursive_estimator_is_watched_alone(outputs, write):
    study = tiny_study(estimators=["mine_own:edges-recursive", "random"], recursive_steps=[50])
    own.keep(study)
    for cell in grid.cells(study):
        finish(study, cell)
    own.check(study)
    write("FACTOR = 2", "FACTOR = 3")
    with pytest.raises(InputError, match="mine_own:edges is not what it was"):
        own.check(study)


def test_what_is_missing_is_named(write):
    for name, says in (
        ("no_such_module_x:f", "cannot import no_such_module_x .it is neither in "),
        ("mine_own:nothing", "mine_own has no nothing"),
        ("mine_own:FACTOR", "FACTOR is a int, and not a function"),
        ("mine_own.py:edges", "write it without .py"),
    ):
        with pytest.raises(InputError, match=says):
            own.load(name)
