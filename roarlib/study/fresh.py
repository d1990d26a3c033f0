"""A study of the user's own, begun: `new.yaml` filled in."""

import json
from pathlib import Path

from roarlib.study import own, params
from roarlib.study.names import split_name
from roarlib.study.params import InputError


def write(file: Path, dataset: str, model: str, estimators: list[str]) -> str:
    """Write a commented study to a new file, and say what comes next.

    InputError, and no file, if it is there or the study is none.
    """
    if file.exists():
        raise InputError(f"{file} is there already")
    size = "image_size: 64  # px a side, cut from the centre\n" * dataset.startswith("folder:")
    quoted = ", ".join(json.dumps(name) for name in ["random", "sobel", "grad", "grad-sgsq", *estimators])
    template = Path(__file__).with_name("new.yaml").read_text()
    file.write_text(template.format(dataset=json.dumps(dataset), size=size, model=model, estimators=quoted))
    try:
        params.load(file)
    except InputError:
        file.unlink()
        raise
    named = dict.fromkeys([model, *(split_name(name)[0] for name in estimators)])
    lacks = [name.split(":") for name in named if own.is_own(name) and not _there(name)]
    first = "".join(f"write {function} in {module.replace('.', '/')}.py, then " for module, function in lacks)
    return f"{file} is written; next: {first}roar plan {file}"


def _there(name: str) -> bool:
    try:
        own.load(name)
    except InputError:
        return False
    return True
