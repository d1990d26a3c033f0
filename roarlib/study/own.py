"""Users' own code, named as `module:function`: imported, and watched, as results must not mix two versions of it."""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

from roarlib import results
from roarlib.names import USERS_OWN, group_of, split_name
from roarlib.params import InputError, Study, root, write_atomically

IMPORTS = ast.Import | ast.ImportFrom
FILE = "own.json"  # in a study's folder: what its functions looked like when they were last run


def load(name: str) -> Callable:
    """The object behind `module:function`; modules are also looked for in the working folder and the project's root.

    InputError says which half is missing, or that it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    for folder in (str(root()), ""):
        if folder not in sys.path:
            sys.path.append(folder)
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
    """InputError where a function that rows of the study rest on is not what it was when they were made."""
    file = study.folder / FILE
    before = json.loads(file.read_text()) if file.is_file() else {}
    for name, mark in marks(study).items():
        groups = {group_of(e) for e in [name, *study.estimators] if split_name(e)[0] == name}
        cells = [("01-train", "base")] if name == study.model else [("02-attribute", group) for group in groups]
        made = any(file for cell in cells for file in results.folder(study, *cell).glob("rows/*"))
        if before.get(name, mark) != mark and made:
            what = "the study's folder" if name == study.model else f"its cells, 0?-*/{name.replace(':', '.')}*"
            raise InputError(
                f"{name} is not what it was when its results were made, and {study.folder} would mix both: give the "
                f"function or the study another name, or delete {what}"
            )


def keep(study: Study) -> None:
    """Note what the study's functions look like now; see `check`."""
    if found := marks(study):
        file = study.folder / FILE
        before = json.loads(file.read_text()) if file.is_file() else {}
        write_atomically(file, json.dumps(before | found, indent=1))


def marks(study: Study) -> dict[str, str]:
    """Name -> digest of the code, of the study's own estimators and model."""
    names = {split_name(name)[0] for name in study.estimators} | {study.model}
    return {name: mark(name) for name in sorted(names) if USERS_OWN.fullmatch(name) and not name.startswith("captum:")}


def mark(name: str) -> str:
    """Digest of a function's code and of all that it names in the user's files; comments and other functions are free.

    What it imports is followed, but for roarlib, installed packages and `from module import *`.
    """
    module_name, _, attribute = name.partition(":")
    load(name)
    known, code, wanted = {}, {}, [(module_name, attribute)]
    while wanted:
        place = module_name, word = wanted.pop()
        if module_name not in known:
            known[module_name] = _statements(module_name)
        package, bound = known[module_name]
        if place in code or word not in bound:
            continue
        code[place] = "\n".join(ast.unparse(node) for node in bound[word] if not isinstance(node, IMPORTS))
        for node in (n for statement in bound[word] for n in ast.walk(statement)):
            if isinstance(node, ast.Name):
                wanted.append((module_name, node.id))
            elif isinstance(node, IMPORTS):
                chosen = [a for a in node.names if word in ("*", _binds(a)) or node not in bound[word]]
                wanted += [place for alias in chosen for place in _behind(node, alias, package)]
    return hashlib.sha256("\n".join(code[place] for place in sorted(code) if code[place]).encode()).hexdigest()[:16]


def _statements(module_name: str) -> tuple[str, dict[str, list[ast.stmt]]]:
    """A module's package, and name -> the top-level statements that bind it, `*` for all; empty without a file."""
    try:
        spec = importlib.util.find_spec(module_name)
        if spec is None or not (spec.origin or "").endswith(".py"):
            return "", {}
        body = ast.parse(Path(spec.origin).read_bytes()).body
    except Exception:  # a function instead of a module, a package that fails, a file that is no Python: not followed
        return "", {}
    bound = {"*": body}
    for node in body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        names = [getattr(node, "name", ""), *(t.id for t in targets if isinstance(t, ast.Name))]
        for word in [_binds(a) for a in node.names if a.name != "*"] if isinstance(node, IMPORTS) else names:
            bound.setdefault(word, []).append(node)
    return spec.parent, bound


def _binds(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _behind(node: ast.Import | ast.ImportFrom, alias: ast.alias, package: str) -> list[tuple[str, str]]:
    """Where in the user's modules the code behind an imported name may be: (module, name), `*` for a whole module."""
    try:
        if isinstance(node, ast.Import):
            found = [(alias.name, "*")]
        else:
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found = [(source, alias.name), (f"{source}.{alias.name}", "*")]
        top = found[0][0].split(".")[0]
        spec = None if top in {*sys.stdlib_module_names, "roarlib"} else importlib.util.find_spec(top)
    except (ImportError, ValueError):  # tried and caught in the user's file
        return []
    places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else ["site-packages"]
    return [] if any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places) else found
