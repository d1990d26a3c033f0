"""What a GPU should show, in ten minutes at most: python benchmarks/gpu.py [--out outputs/gpu] [--rehearse]

Each part is a process of its own with a limit of seconds; one that fails, runs out of time or lacks a package is noted,
and the rest goes on. gpu.json is written anew after every part; gpu.log holds what the parts printed. Without a GPU, or
with --rehearse, everything runs on the processor with small sizes: to see that it runs, and not for its numbers.
CIFAR-10 is taken from $ROAR_DATA; where it is not there, random images of its size are, and accuracy is null.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
MINUTES, LEAST = 9.0, 15  # of all parts together, twice that in a rehearsal; seconds that a part must have left
# part -> (seconds it may take; a benchmark beside this file with options for a GPU, and for a rehearsal; where none is
# named, a function of gpu_parts does it). What matters most comes first.
PARTS = {
    "facts": (60,),
    "retraining": (90,),
    "at_once": (150,),
    "ranking": (90,),
    "smoke": (150,),
    "projection": (30,),
    "attribution": (
        150,
        "attribution.py --device cuda --images 512 --line",
        "attribution.py --images 2 --size 8 --rounds 1 --check 0 --line",
    ),
    "imputation": (
        90,
        "imputation.py --device cuda --images 256 --large 8",
        "imputation.py --images 4 --large 1 --rounds 1",
    ),
    "memory": (60,),
}


def command(name: str, rehearsal: bool, out: Path) -> list[str]:
    """What to start for a part."""
    words = PARTS[name][2 if rehearsal else 1].split() if len(PARTS[name]) > 1 else ["gpu_parts.py", name, str(out)]
    more = ["--rehearse"] if rehearsal and len(PARTS[name]) == 1 else []
    return [sys.executable, str(HERE / words[0]), *words[1:], *more]


def attempt(words: list[str], limit: float, log: Path, env: dict | None = None) -> dict:
    """Run a part; its status (ok, skipped, failed, timeout), seconds, and figures: the last line of JSON it prints."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, gpu_memory() as peak:
        child = subprocess.Popen(
            words, stdout=said, stderr=subprocess.STDOUT, env=env, cwd=HERE.parent, start_new_session=True
        )
        try:
            child.wait(limit)
            status = "failed" if child.returncode else "ok"
        except subprocess.TimeoutExpired:
            status = "timeout"
        with suppress(ProcessLookupError):  # and whatever it has started
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        said.seek(0)
        text = said.read()
    with log.open("a") as file:
        file.write(f"\n=== {' '.join(words[1:])}\n{text}")
    return told(status, text) | {"seconds": round(time.perf_counter() - started, 1), "gpu_peak_gb": peak()}


def told(status: str, text: str) -> dict:
    """A part's status, and the reason or the figures, from what it printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if status == "ok":
        for line in reversed(lines):
            with suppress(ValueError):
                if isinstance(figures := json.loads(line), dict):
                    return {"status": status, "figures": figures}
        return {"status": "failed", "reason": "printed no figures"}
    if (
        status == "failed"
        and lines
        and (lacks := re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", lines[-1]))
    ):
        return {"status": "skipped", "reason": f"needs the package {lacks[1]}"}
    return {"status": status, "reason": lines[-1][:300] if lines else "printed nothing"}


@contextmanager
def gpu_memory():
    """A function that gives the most memory in use on the first GPU meanwhile, GB by nvidia-smi; None without it."""
    seen = []
    try:
        call = "nvidia-smi -i 0 --query-gpu=memory.used --format=csv,noheader,nounits -lms 250".split()
        child = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield lambda: None
        return
    reader = threading.Thread(target=lambda: seen.extend(line.strip() for line in child.stdout), daemon=True)
    reader.start()
    try:
        yield lambda: max((round(int(n) * 2**20 / 1e9, 2) for n in seen if n.isdigit()), default=None)
    finally:
        child.kill()
        child.wait()


def prepare_rehearsal(minutes: float) -> float:
    """More seconds, and one core: on a busy machine threads that wait for each other crawl."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return 60 * minutes


def run(names: list[str], out: Path, rehearsal: bool, minutes: float) -> dict:
    """All parts in turn, written to gpu.json after each."""
    ends, found = time.monotonic() + 60 * minutes, {"device": None, "rehearsal": rehearsal, "parts": {}}
    out.mkdir(parents=True, exist_ok=True)
    log = out / "gpu.log"
    log.write_text("")
    with tempfile.TemporaryDirectory() as outputs:
        paths = [str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = os.environ | {"ROAR_OUTPUTS": outputs, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        for name in names:
            left = ends - time.monotonic()
            if left < LEAST:
                part = {"status": "skipped", "reason": "no time left", "seconds": 0.0}
            else:
                limit = PARTS[name][0] * (2 if found["rehearsal"] else 1)
                part = attempt(command(name, found["rehearsal"], out), min(left, limit), log, env)
            found["parts"][name] = part
            if name == "facts":
                found["device"] = part.get("figures", {}).get("device")
                found["rehearsal"] = rehearsal or found["device"] == "cpu"
                ends += prepare_rehearsal(minutes) if found["rehearsal"] else 0
            (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            said = part.get("reason") or json.dumps(part["figures"])
            print(f"{name:<12}{part['status']:<9}{part['seconds']:>6.0f} s  {said[:1500]}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT") or HERE.parent / "outputs" / "gpu")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="these parts, after the facts")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts")
    options = parser.parse_args()
    names = [name for name in PARTS if name == "facts" or not options.only or name in options.only]
    found = run(names, Path(options.out).resolve(), options.rehearse, options.minutes)
    if best := found["parts"].get("at_once", {}).get("figures", {}).get("recommended_workers"):
        print(f"Most retrainings a minute with {best} at once: workers: {best}")
    print(f"{options.out}/gpu.json: {found['device']}{', a rehearsal: no numbers to quote' * found['rehearsal']}")


if __name__ == "__main__":
    main()
