"""Starting a study of the user's own: the template `new.yaml`, filled in."""

import json
import shlex
from pathlib import Path

from roarlib.study import own, params
from roarlib.study.names import split_name
from roarlib.study.params import InputError


def write(file: Path, dataset: str, model: str, estimators: list[str]) -> str:
    """Write a commented study to a new file; returns what to do next. InputError, and no new file, if it is invalid."""
    if file.exists():
        raise InputError(f"{file} exists already")
    size = "image_size: 64  # px a side, cut from the centre\n" * dataset.startswith("folder:")
    quoted = ", ".join(json.dumps(name) for name in ["random", "sobel", "grad", "grad-sgsq", *estimators])
    template = Path(__file__).with_name("new.yaml").read_text()
    file.write_text(template.format(dataset=json.dumps(dataset), size=size, model=model, estimators=quoted))
    try:
        study = params.load(file)
    except InputError:
        file.unlink()
        raise
    named = dict.fromkeys([study.model, *(split_name(name)[0] for name in study.estimators)])
    lines = f"{file} is written", *map(_lacking, named), f"next: roar plan {shlex.quote(str(file))}"
    return "\n".join(filter(None, lines))


def _lacking(name: str) -> str:
    """Why a function of the user's cannot be loaded yet; empty if it can, or if the name is not such a function."""
    try:
        if own.is_own(name):
            own.load(name)
    except InputError as error:
        return f"to do: {error}"
    return ""
