"""Users' own code, named as `module:function`: imported, and watched, as results must not mix two versions of it."""

import ast
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from roarlib.study.files import root, write_atomically
from roarlib.study.names import USERS_OWN, split_name
from roarlib.study.params import InputError, Study
from roarlib.study.results import Key, folder

FILE = "functions.json"  # in a study's folder: digests of its functions' sources when they were last run
NOT_OWN = {"site-packages", "dist-packages"}


def load(name: str) -> Callable:
    """The object behind `module:function`; modules are also looked for in the working folder and the project's root.

    InputError says which half is missing, or that it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    for place in (str(root()), ""):
        if place not in sys.path:
            sys.path.append(place)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code: a missing module, but also any mistake in it
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.removesuffix(".py")):
            hint = "; write it without .py" if module_name.endswith(".py") else ""
            why = f"it is neither in {Path.cwd()} nor in {root()}{hint}"
        raise InputError(f"{name}: cannot import {module_name} ({why})") from None
    if not hasattr(module, attribute):
        raise InputError(f"{name}: {module_name} has no {attribute}")
    if not callable(made := getattr(module, attribute)):
        raise InputError(f"{name}: {attribute} is a {type(made).__name__}, and not a function")
    return made


def check(study: Study) -> None:
    """InputError where the source behind a function is not what it was when rows of the study were made by it."""
    before = _before(study)
    for name, now in digests(study).items():
        made_by_it = [e for e in [name, *study.estimators] if split_name(e)[0] == name] if name != study.model else []
        cells = [Key("ranking", e).cell for e in made_by_it] or [Key("base").cell]
        made = any(file for cell in cells for file in folder(study, cell).glob("rows/*"))
        if before.get(name, now) != now and made:
            what = "the study's folder" if name == study.model else f"its cells, 0?-*/{name.replace(':', '.')}*"
            raise InputError(
                f"{name} is not what it was when its results were made: its module, or one it imports, has changed, "
                f"and {study.folder} would mix both. Give the function or the study another name, or delete {what}"
            )


def keep(study: Study) -> None:
    """Note what the sources behind the study's functions are now; see `check`."""
    if found := digests(study):
        write_atomically(study.folder / FILE, json.dumps(_before(study) | found, indent=1))


def _before(study: Study) -> dict[str, str]:
    file = study.folder / FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def digests(study: Study) -> dict[str, str]:
    """Name -> digest of the source behind it, for the study's own estimators and model."""
    names = {split_name(name)[0] for name in study.estimators} | {study.model}
    own = (name for name in sorted(names) if USERS_OWN.fullmatch(name) and not name.startswith("captum:"))
    return {name: digest(name) for name in own}


def digest(name: str) -> str:
    """Digest of the whole module of a function and of all of the user's modules behind its imports.

    Comments, docstrings and layout are free. roarlib, the standard library and installed packages are not followed.
    """
    load(name)  # InputError where it cannot be found
    sources, todo = {}, [name.partition(":")[0]]
    while todo:
        module = todo.pop()
        if module in sources or not (file := _own_file(module)):
            continue
        try:
            tree = ast.parse(code := file.read_bytes())
        except (SyntaxError, ValueError):  # no Python, which an import caught in the user's file has met
            sources[module] = repr(code)
            continue
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        todo += _imported(tree, package)
        sources[module] = ast.unparse(_without_docstrings(tree))
    return hashlib.sha256("\n".join(f"# {m}\n{sources[m]}" for m in sorted(sources)).encode()).hexdigest()[:16]


def _own_file(module: str) -> Path | None:
    """The source file of a module of the user's own; None for any other, and for what is no module."""
    if module.partition(".")[0] in {*sys.stdlib_module_names, "roarlib"}:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # no such module, or a package whose import fails and is caught in the user's file
        return None
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None
    file = Path(spec.origin)
    installed = NOT_OWN & set(file.parts) or file.is_relative_to(sysconfig.get_path("stdlib"))
    return None if installed else file


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Every module that a source may import anywhere, packages around it included."""
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        for name in found:
            parts = name.split(".")
            yield from (".".join(parts[: k + 1]) for k in range(len(parts)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
