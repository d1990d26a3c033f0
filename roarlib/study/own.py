"""Users' own code, named `module:function`: imported, and digested so that results do not mix two versions of it."""

import ast
import difflib
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

from roarlib.study import brought
from roarlib.study.files import root
from roarlib.study.names import PACKAGES, USERS_OWN, split_name
from roarlib.study.params import InputError, Study

NOT_OWN = {"site-packages", "dist-packages"}


def load(name: str) -> Callable:
    """The function named `module:function`; modules are also looked for in the working folder and the project's root.

    InputError says which half is missing, or that the object is not callable.
    """
    module_name, _, attribute = name.partition(":")
    for place in ("", str(root())):
        if place not in sys.path:
            sys.path.append(place)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code: a missing module, but also any mistake in it
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.removesuffix(".py")):
            hint = "; write it without .py" if module_name.endswith(".py") else ""
            file = f"{module_name.removesuffix('.py').replace('.', '/')}.py"
            why = f"there is no {file} in {' or '.join(dict.fromkeys(map(str, (Path.cwd(), root()))))}{hint}"
        raise InputError(f"{name}: cannot import {module_name} ({why})") from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), 1)
        raise InputError(f"{name}: {module_name} has no {attribute}{f'; did you mean {near[0]}?' if near else ''}")
    if not callable(made := getattr(module, attribute)):
        raise InputError(f"{name}: {attribute} is a {type(made).__name__}, and not a function")
    return made


def is_own(name: str) -> bool:
    """Whether the name of a model, base or data set is a `module:function` of the user's."""
    return bool(USERS_OWN.fullmatch(name)) and not name.startswith(PACKAGES)


def said(error: BaseException) -> str:
    """What went wrong in a user's code, in one line: where in their file, and the first line of the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename))]
    place = f"{Path(where[-1].filename).name}:{where[-1].lineno}: " if where else ""
    return f"{place}{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


@contextmanager
def told(what: str, estimator: str = "") -> Iterator[None]:
    """Turn any error of a user's code into an InputError of one line that says where; an InputError's message stays."""
    try:
        yield
    except InputError as error:
        named = not estimator or split_name(estimator)[0] in str(error)
        raise InputError(f"{'estimator ' * bool(estimator)}{'' if named else estimator + ': '}{error}") from None
    except Exception as error:
        raise InputError(f"{what}: {said(error)}") from error


def place_in(traced: str) -> str:
    """The last place in a user's own file that a traceback's text names, as 'mine.py:6: '; empty if there is none."""
    frames = re.findall(r"^File (.+?\.py):(\d+)", traced, re.M)
    where = [(Path(file), line) for file, line in frames if _is_own(Path(file).expanduser())]
    return f"{where[-1][0].name}:{where[-1][1]}: " if where else ""


def source(study: Study, estimator: str) -> str | None:
    """What an estimator's rows depend on that is the user's: digests of code and files, and options; else `ours`.

    None if that cannot be determined because one of the user's files is not here.
    """
    base = "" if estimator == "clean" else split_name(estimator)[0]
    options = json.loads(json.dumps(study.estimator_options.get(base), default=str))  # keys as text, to be sorted
    try:
        found = [*map(_digest_as_run, filter(is_own, [study.model, base])), brought.digest(study, estimator)]
        found += [json.dumps(options, sort_keys=True)] * bool(options)
        return " ".join(filter(None, found)) or "ours"
    except (InputError, OSError):
        return None


def is_source(study: Study, estimator: str, made) -> bool:
    """Whether rows made with this `source` fit the current one. Options of estimators not listed do not count."""
    if not isinstance(made, str):  # an earlier version's row
        return True
    now = source(study, estimator)
    if estimator != "clean" and split_name(estimator)[0] not in study.bases:
        made, now = (text and (text.partition("{")[0].strip() or "ours") for text in (made, now))
    return now is None or made == now


_AS_RUN: WeakKeyDictionary = WeakKeyDictionary()  # module -> name -> digest when this process first asked


def _digest_as_run(name: str) -> str:
    """`digest` of the code as it was imported, not as an editor has saved it since."""
    load(name)
    known = _AS_RUN.setdefault(sys.modules[name.partition(":")[0]], {})
    return known.get(name) or known.setdefault(name, digest(name))


def digest(name: str) -> str:
    """Digest of a function's whole module and of all of the user's modules that it imports, directly or not.

    Comments, docstrings and layout do not count. roarlib, the standard library and installed packages are not followed,
    but for the package that the function itself is in.
    """
    load(name)  # InputError where it cannot be found
    sources, todo = {}, [name.partition(":")[0]]
    named = todo[0].partition(".")[0]
    while todo:
        module = todo.pop()
        if module in sources or not (file := _own_file(module, named)):
            continue
        try:
            tree = ast.parse(code := file.read_bytes())
        except (SyntaxError, ValueError):  # not valid Python; the user's file must catch that on import
            sources[module] = repr(code)
            continue
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        todo += _imported(tree, package)
        sources[module] = ast.unparse(_without_docstrings(tree))
    return hashlib.sha256("\n".join(f"# {m}\n{sources[m]}" for m in sorted(sources)).encode()).hexdigest()[:16]


def _own_file(module: str, named: str) -> Path | None:
    """The file of a module of the user's own, or of the package `named`; None for others, and for no module's name."""
    if module.partition(".")[0] in {*sys.stdlib_module_names, "roarlib"}:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # no such module, or a package whose import fails and is caught in the user's file
        return None
    file = Path(spec.origin) if spec and spec.has_location else None
    return file if file and (_is_own(file) or module.partition(".")[0] == named) else None


def _is_own(file: Path) -> bool:
    """Whether a source file is the user's: not roarlib's, the standard library's or an installed package's."""
    others = (sysconfig.get_path("stdlib"), Path(__file__).parents[1])
    module = file.suffix == ".py" and not file.stem.isdigit()  # a notebook's cell is 1234.py
    return module and not NOT_OWN & set(file.parts) and not any(map(file.is_relative_to, others))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Every module that a source file may import, anywhere in it, including parent packages."""
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
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
