"""Users' functions are found, and results of two versions of one are not mixed."""

import sys
from pathlib import Path

import pytest
from conftest import tiny_study

from roarlib.study import own
from roarlib.study.params import InputError

CODE = """
from mine_helpers import *

FACTOR = 2
POWER, SHIFT = 2, 0
TABLE = {"x": 1}
TABLE["x"] = 2
try:
    import no_such_module_x
    BOUND = 1
except ImportError:
    BOUND = 2

def helper(x):
    return FACTOR * x

def edges(model, images, targets):
    return helper(images)  # as they are

def other(model, images, targets):
    return -images
"""
HELPERS = """
def behind_a_star(x):
    return x
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the module `mine_own`, as an editor and a new process would."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_helpers.py").write_text(HELPERS)

    def write(old="", new=""):
        assert old in CODE
        (tmp_path / "mine_own.py").write_text(CODE.replace(old, new) if old else CODE)
        sys.modules.pop("mine_own", None)

    write()
    yield write
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "old, new",
    [
        ("# as they are", "# yes"),
        ("  # as they are", ""),
        ("\n\n", "\n\n\n"),
        ("FACTOR * x", "(FACTOR*x)"),
        ("def helper(x):\n", 'def helper(x):\n    """Twice\n\n    of it."""\n'),
        ("FACTOR = 2\n", "# twice\nFACTOR = 2\n"),
        ("\nfrom mine_helpers", '"""What is mine."""\nfrom mine_helpers'),
    ],
)
def test_comments_docstrings_and_layout_are_free(write, old, new):
    before = own.digest("mine_own:edges")
    write(old, new)
    assert own.digest("mine_own:edges") == before


@pytest.mark.parametrize(
    "old, new",
    [
        ("FACTOR = 2", "FACTOR = 3"),
        ("FACTOR * x", "FACTOR + x"),
        ("helper(images)", "helper(-images)"),
        ("POWER, SHIFT = 2, 0", "POWER, SHIFT = 2, 1"),  # a tuple
        ("    BOUND = 1", "    BOUND = 3"),  # inside of try
        ("    BOUND = 2", "    BOUND = 3"),  # inside of except
        ('TABLE["x"] = 2', 'TABLE["x"] = 3'),  # an item of a table
        ('TABLE["x"] = 2', 'TABLE["x"] += 2'),
        ("return -images", "return images"),  # another function: it may be reached in ways that no name tells
        ("return -images", 'return {"a": "# as they are"}'),
    ],
)
def test_an_edit_of_any_statement_is_noticed(write, old, new):
    before = own.digest("mine_own:edges"), own.digest("mine_own:other")
    write(old, new)
    after = own.digest("mine_own:edges"), own.digest("mine_own:other")
    assert before[0] != after[0] and before[1] != after[1]


def test_an_edit_behind_an_import_of_everything_is_noticed(write, tmp_path):
    before = own.digest("mine_own:edges")
    (tmp_path / "mine_helpers.py").write_text("# A comment\n" + HELPERS)
    assert own.digest("mine_own:edges") == before
    (tmp_path / "mine_helpers.py").write_text(HELPERS.replace("return x", "return -x"))
    assert own.digest("mine_own:edges") != before


def test_what_a_module_imports_belongs_to_it(write, tmp_path):
    package = tmp_path / "mine_parts"
    package.mkdir()
    (package / "__init__.py").write_text("def first(x):\n    return x\n")
    (package / "deep.py").write_text("def deep(x):\n    return x + 1\n")
    (package / "near.py").write_text("from .deep import deep as d\ndef near(x):\n    return d(x)\n")
    (package / "apart.py").write_text("def apart(x):\n    return x\n")
    (tmp_path / "mine_whole.py").write_text("import os\ndef unused(x):\n    return x\n")
    imports = "import numpy\nimport mine_whole as w\nfrom mine_parts.near import near\n"
    (tmp_path / "mine_own.py").write_text(imports + CODE.replace("FACTOR * x", "near(FACTOR) * x"))
    for file, belongs in (
        (package / "deep.py", True),  # a relative import under another name
        (package / "near.py", True),
        (package / "__init__.py", True),  # runs before near does
        (tmp_path / "mine_whole.py", True),  # a module as a whole
        (package / "apart.py", False),  # which nothing imports
    ):
        before, text = own.digest("mine_own:edges"), file.read_text()
        file.write_text(text.replace("return ", "return 2 * "))
        assert (own.digest("mine_own:edges") != before) == belongs, file
        file.write_text(text)
        assert own.digest("mine_own:edges") == before, file


def test_a_function_in_an_installed_package_is_followed_within_it(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(site := tmp_path / "site-packages")
    (package := site / "mine_installed").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import sign\ndef f(model, images, targets):\n    return sign\n")
    (package / "inner.py").write_text("sign = 1\n")
    (tmp_path / "mine_own.py").write_text("from mine_installed import f\nedges = f\n")
    before = {name: own.digest(name) for name in ("mine_installed:f", "mine_own:edges")}
    (package / "inner.py").write_text("sign = -1\n")
    assert own.digest("mine_installed:f") != before["mine_installed:f"]
    assert own.digest("mine_own:edges") == before["mine_own:edges"]  # only named packages: numpy may be upgraded


def test_an_import_inside_a_function_counts(write, tmp_path):
    (tmp_path / "mine_late.py").write_text("def late(x):\n    return x\n")
    write("return helper(images)", "from mine_late import late; return late(images)")
    before = own.digest("mine_own:edges")
    (tmp_path / "mine_late.py").write_text("def late(x):\n    return -x\n")
    assert own.digest("mine_own:edges") != before


def test_imports_that_fail_do_not_matter(write, tmp_path):
    (tmp_path / "mine_broken.py").write_text("def late(x: return\n")
    failing = ("from .near import near", "from mine_broken import late", "import __main__", "import no_such_module_x.y")
    for line in failing:
        write("return helper(images)", f"try:\n        {line}\n    except Exception: pass\n    return images")
        assert len(own.digest("mine_own:edges")) == 16, line
    write("return helper(images)", "try:\n        import mine_broken\n    except Exception: pass\n    return images")
    before = own.digest("mine_own:edges")
    (tmp_path / "mine_broken.py").write_text("def late(x): return\n")
    assert own.digest("mine_own:edges") != before  # it can be imported by now


def test_what_is_missing_is_named(write):
    for name, says in (
        ("no_such_module_x:f", "cannot import no_such_module_x .there is no no_such_module_x.py in "),
        ("mine_own:nothing", "mine_own has no nothing"),
        ("mine_own:FACTOR", "FACTOR is a int, and not a function"),
        ("mine_own.py:edges", "write it without .py"),
    ):
        with pytest.raises(InputError, match=says):
            own.load(name)


def test_rows_name_the_code_as_imported_and_not_as_saved_since(write):
    study = tiny_study(estimators=["mine_own:edges"])
    before = own.source(study, "mine_own:edges")
    file = Path(sys.modules["mine_own"].__file__)
    file.write_text(file.read_text().replace("FACTOR = 2", "FACTOR = 3"))  # saved in an editor while cells run
    assert own.source(study, "mine_own:edges-sgsq") == before != own.digest("mine_own:edges")
    del sys.modules["mine_own"]
    assert own.source(study, "mine_own:edges") == own.digest("mine_own:edges") != before


def test_the_working_folder_comes_before_the_projects_root(tmp_path, monkeypatch):
    for place in ("here", "root"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine_twice.py").write_text(f"def f():\n    return {place!r}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(own, "root", lambda: tmp_path / "root")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert own.load("mine_twice:f")() == "here"
    sys.modules.pop("mine_twice")
