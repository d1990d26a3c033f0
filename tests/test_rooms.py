"""Who imports whom: rooms only those above them, no module itself in a circle, and answers no torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

from conftest import ROOT

MAY = {"study": {"study"}, "data": {"study", "data"}, "engine": {"study", "data", "engine"}}
MAY |= {"answers": {"study", "data", "answers"}, "grid": {"study", "data", "engine", "answers", "grid"}}
MAY |= {"views": {*MAY, "views"}, "cli": {*MAY, "views", "explore"}, "explore": {*MAY, "views", "cli"}, "__init__": {}}
FILES = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in (ROOT / "roarlib").rglob("*.py")}


def imported(file):
    """The modules of ours that a file imports, anywhere in its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            found = [f"{node.module}.{name}" if f"{node.module}.{name}" in FILES else node.module for name in found]
        yield from (name for name in found if name.partition(".")[0] == "roarlib")


IMPORTS = {name: set(imported(file)) for name, file in FILES.items()}


def test_rooms_import_only_rooms_above_them():
    rooms = {(name, other): (name.split(".")[1], other.split(".")[1]) for name in IMPORTS for other in IMPORTS[name]}
    assert not [pair for pair, (room, other) in rooms.items() if pair[1] not in FILES or other not in MAY[room]]
    assert not any(found for name, found in IMPORTS.items() if name.endswith("__init__"))  # they re-export nothing


def test_no_module_imports_itself_in_a_circle():
    assert set(TopologicalSorter(IMPORTS).static_order()) == set(FILES)  # a CycleError names the circle


def test_answers_do_without_torch():
    modules = [name for name in FILES if name.startswith("roarlib.answers.")]
    call = f"import sys, {', '.join(modules)}\n"
    subprocess.run([sys.executable, "-c", call + "sys.exit('torch' in sys.modules)"], check=True)


def test_files_and_functions_are_short_enough_to_be_read():
    lines = {name: file.read_text().count("\n") for name, file in FILES.items()}
    functions = {
        (name, node.name): node.end_lineno - node.lineno + 1
        for name, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert not [name for name, count in lines.items() if count >= 300]
    assert not [name for name, count in functions.items() if count > 70]
