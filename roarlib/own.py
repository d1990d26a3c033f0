"""Users' own code, named as `module:function`: imported, and watched, as results must not mix two versions of it."""

import ast
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from roarlib import results
from roarlib.names import USERS_OWN, group_of, split_name
from roarlib.params import InputError, Study, root, write_atomically

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
        cell = ("01-train", "base") if name == study.model else ("02-attribute", group_of(name))
        if before.get(name, mark) != mark and any(results.folder(study, *cell).glob("rows/*")):
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
    """Digest of a function's code and of all that it names in its own file; comments and other functions are free."""
    module_name, _, attribute = name.partition(":")
    load(name)
    file = getattr(sys.modules[module_name], "__file__", None) or ""
    if not file.endswith(".py") or not os.path.isfile(file):
        return ""
    top, wanted, seen = {}, [attribute], set()
    for node in ast.parse(Path(file).read_text()).body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        for target in [getattr(node, "name", ""), *(t.id for t in targets if isinstance(t, ast.Name))]:
            top.setdefault(target, []).append(node)
    while wanted:
        if (word := wanted.pop()) in top and word not in seen:
            seen.add(word)
            wanted += [n.id for node in top[word] for n in ast.walk(node) if isinstance(n, ast.Name)]
    code = "\n".join(ast.unparse(node) for word in sorted(seen) for node in top[word])
    return hashlib.sha256(code.encode()).hexdigest()[:16]
