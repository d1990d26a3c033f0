"""How easy is the package to find one's way in? Its size, its functions and its imports, as one table.

python benchmarks/house.py [FOLDER]: of the project in FOLDER, by default this one.
"""

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import nbformat

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
FILES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in sorted((ROOT / "roarlib").rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): ast.parse(file.read_text()) for name, file in FILES.items()}


def imports(name: str) -> set[str]:
    """The package's modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= below or {node.module}
    return (found & MODULES.keys()) - {name}


def reached(name: str) -> set[str]:
    """All modules behind a module's imports."""
    found, todo = set(), [name]
    while todo:
        todo += (new := imports(todo.pop()) - found)
        found |= new
    return found


def main() -> None:
    behind = {name: reached(name) for name in MODULES}
    circles = {frozenset(m for m in behind[n] if n in behind[m]) for n in MODULES if n in behind[n]}

    @cache
    def floor(name: str) -> int:
        below = [floor(other) for other in imports(name) if name not in behind[other]]
        return 1 + max(below, default=0)

    functions = [n for tree in MODULES.values() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    lengths = [n.end_lineno - n.lineno + 1 for n in functions]
    taken = [[a.arg for a in n.args.posonlyargs + n.args.args + n.args.kwonlyargs] for n in functions]
    lines = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    cells = [c for f in sorted((ROOT / "notebooks").glob("*.ipynb")) for c in nbformat.read(f, 4).cells]
    code = sum(len(c.source.splitlines()) for c in cells if c.cell_type == "code")
    prose = sum(len(c.source.split()) for c in cells if c.cell_type == "markdown")
    readme = re.sub(r"(?m)^ {4}.*$|(?s:```.*?```)", "", (ROOT / "README.md").read_text())
    largest = max(lines, key=lines.get)
    table = {
        "modules": len([name for name in FILES if not name.endswith("__init__")]),
        "lines": sum(lines.values()),
        "lines of engine": sum(n for name, n in lines.items() if name.startswith("roarlib.engine")),
        "largest file": f"{largest.removeprefix('roarlib.')}, {lines[largest]}",
        "functions with more than 6 parameters": sum(
            len([a for a in t if a not in ("self", "cls")]) > 6 for t in taken
        ),
        "function length, median": median(lengths),
        "function length, 90th percentile": round(quantiles(lengths, n=10)[-1]),
        "longest function": max(lengths),
        "import floors": max(floor(name) for name in MODULES),
        "circles": len(circles),
        "words in README, code left out": len(readme.split()),
        "words of prose per line of code in notebooks": round(prose / code, 1),
    }
    for what, value in table.items():
        print(f"{what:<48} {value}")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
