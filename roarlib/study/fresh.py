"""A study of the user's own, begun: `new.yaml` filled in."""

import json
import shlex
from pathlib import Path

from roarlib.study import own, params
from roarlib.study.names import split_name
from roarlib.study.params import InputError


def write(file: Path, dataset: str, model: str, estimators: list[str]) -> str:
    """Write a commented study to a new file; returns what comes next. InputError, and no file, where it cannot be."""
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
    return "\n".join(
        [f"{file} is written", *filter(None, map(_lacking, named)), f"next: roar plan {shlex.quote(str(file))}"]
    )


def _lacking(name: str) -> str:
    """What keeps a function of the user's from being loaded so far; empty if nothing does, or the name is none."""
    try:
        if own.is_own(name):
            own.load(name)
    except InputError as error:
        return f"to do: {error}"
    return ""
