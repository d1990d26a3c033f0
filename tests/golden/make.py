"""Write the golden values of the smoke study: python tests/golden/make.py outputs/smoke"""

import hashlib
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
ANYWHERE = ["controls/random-pixel-train", "controls/random-value-test", "controls/oracle-pixel-test"]
RANKED = ["controls/sobel-value-test", "grad/grad-pixel-train", "grad/grad-sgsq-pixel-test", "gb/gb-var-value-test"]
RANKED += ["ig/ig-pixel-test", "ig/ig-sg-squared-value-train"]


def machine() -> str:
    """What the last bits of a number depend on: processor and torch, as a digest."""
    words = ("cpu family", "model", "stepping", "flags", "cache size")
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.is_file() else []
    told = [line for line in lines if line.startswith(words)]
    return hashlib.sha256("\n".join([torch.__version__, *told]).encode()).hexdigest()[:16]


def rows(folder: Path) -> dict[str, float | None]:
    """Accuracy of every row file, by its name."""
    found = {file.name: json.loads(file.read_text())["accuracy"] for file in folder.glob("*/*/rows/*.json")}
    return dict(sorted(found.items()))


def digests(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of ranking files."""
    files = {name: folder / "02-attribute" / f"{name}.npy" for name in names}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


if __name__ == "__main__":
    made = Path(sys.argv[1])
    lines = [f"{name},{'' if accuracy is None else repr(accuracy)}" for name, accuracy in rows(made).items()]
    (HERE / "smoke-rows.csv").write_text("\n".join(["row,accuracy", *lines]) + "\n")
    parts = {"machine": machine(), "anywhere": digests(made, ANYWHERE), "here": digests(made, RANKED)}
    (HERE / "smoke-rankings.json").write_text(json.dumps(parts, indent=1) + "\n")
