"""A notebook runs in a process of its own, fails in one way, and leaves nothing behind."""

import contextvars
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from roarlib.grid import kernel
from roarlib.study.files import root

linux = pytest.mark.skipif(not kernel.FORK, reason="kernels are forked on Linux only")


@pytest.fixture
def notebook(tmp_path):
    """-> function(cells) that writes a notebook with a parameters cell and returns its path."""

    def write(*cells: str) -> Path:
        new = nbformat.v4.new_code_cell
        nodes = [new("value: int = 1  # a number\nwords: list = []", metadata={"tags": ["parameters"]})]
        spec = {"name": "python3", "language": "python", "display_name": "Python 3"}
        book = nbformat.v4.new_notebook(cells=nodes + list(map(new, cells)), metadata={"kernelspec": spec})
        nbformat.write(book, tmp_path / "source.ipynb")
        return tmp_path / "source.ipynb"

    return write


def output(path: Path) -> str:
    """All that the notebook printed."""
    cells = nbformat.read(path, 4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    """Whether the processes end; a busy machine gets all the time it needs."""
    end = time.monotonic() + 300
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_every_notebook_starts_fresh(notebook, tmp_path, monkeypatch):
    """Parameters arrive, state and random numbers of one run are not those of the next, pictures are kept."""
    monkeypatch.setenv("MPLBACKEND", "agg")  # as on many servers
    source = notebook(
        "import os, builtins, matplotlib, numpy, torch\nseen = hasattr(builtins, 'mark')\nbuiltins.mark = 1",
        "print(value, words, seen, torch.cuda.is_initialized(), os.getpid(), numpy.random.rand())",
        "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    )
    printed = []
    for value in range(3):
        kernel.execute(source, tmp_path / "deep" / "out.ipynb", {"value": value, "words": ["a"]})
        printed.append(output(tmp_path / "deep/out.ipynb").split())
    assert [line[:4] for line in printed] == [[str(value), "['a']", "False", "False"] for value in range(3)]
    assert len({line[4] for line in printed}) == len({line[5] for line in printed}) == 3
    assert str(os.getpid()) not in {line[4] for line in printed}
    picture = nbformat.read(tmp_path / "deep/out.ipynb", 4).cells[-1].outputs[0]
    assert "image/png" in picture.data
    assert os.listdir(tmp_path / "deep") == ["out.ipynb"]


def test_unknown_parameter_is_named_with_those_there_are(notebook, tmp_path):
    with pytest.raises(ValueError, match="source.ipynb has no parameter valeu, x; it takes value, words"):
        kernel.execute(notebook("1"), tmp_path / "out.ipynb", {"valeu": 1, "value": 2, "x": 3})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failure_in_a_users_file_names_its_line(notebook, tmp_path):
    (tmp_path / "their own.py").write_text("def f(x):\n    y = x\n    return y / 0\n")
    load = f"from runpy import run_path; f = run_path({str(tmp_path / 'their own.py')!r})['f']"
    with pytest.raises(kernel.NotebookFailed, match=r"^.*: their own\.py:3: ZeroDivisionError: division by zero$"):
        kernel.execute(notebook(load, "f(1)"), tmp_path / "out.ipynb", {})


def test_a_failing_cell_leaves_the_notebook_and_one_short_exception(notebook, tmp_path, capfd):
    source = notebook("print('before')", "def f():\n    raise KeyError('lost')\nf()", "print('after')")
    target = tmp_path / "out.ipynb"
    with pytest.raises(kernel.NotebookFailed) as caught:
        kernel.execute(source, target, {})
    failed = pickle.loads(pickle.dumps(caught.value))
    assert str(failed) == f"{target}: KeyError: 'lost'"
    assert (failed.path, failed.cause) == (target, "KeyError: 'lost'")
    assert "raise KeyError" in failed.traceback and "\x1b" not in failed.traceback
    assert output(target) == "before\n"
    assert sorted(os.listdir(tmp_path)) == ["out.ipynb", "source.ipynb"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_hold_for_torch_and_what_the_kernel_starts(notebook, tmp_path, threads):
    """The convolution really runs with that many: OpenMP adds threads - 1 to the one that calls."""
    source = notebook(
        "import os, torch\nbefore = len(os.listdir('/proc/self/task')) if os.path.exists('/proc') else 0",
        "torch.nn.functional.conv2d(torch.rand(16, 8, 64, 64), torch.rand(8, 8, 3, 3)).sum().item()\n"
        "more = len(os.listdir('/proc/self/task')) - before if before else torch.get_num_threads() - 1",
        "print(torch.get_num_threads(), more, os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])",
    )
    kernel.execute(source, tmp_path / "out.ipynb", {}, threads=threads)
    assert list(map(int, output(tmp_path / "out.ipynb").split())) == [threads, threads - 1, threads, threads]


@pytest.mark.parametrize("death", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_kernel_that_dies_fails_within_seconds_and_takes_its_children_along(notebook, tmp_path, death):
    start = "import os, subprocess\nprint(subprocess.Popen(['sleep', '3600']).pid, flush=True)"
    with pytest.raises(kernel.NotebookFailed, match="DeadKernelError: Kernel died"):
        kernel.execute(notebook(start, death), tmp_path / "out.ipynb", {})
    if kernel.FORK:
        assert gone([int(output(tmp_path / "out.ipynb"))])


def test_time_is_counted_over_all_cells(notebook, tmp_path, capfd):
    sleep = "import time; time.sleep(0.7)"  # each cell for itself would have the time
    with pytest.raises(kernel.NotebookFailed, match="CellTimeoutError"):
        kernel.execute(notebook(*[sleep] * 20), tmp_path / "out.ipynb", {}, timeout=1)
    assert capfd.readouterr().err == ""


def test_two_at_once_from_threads_of_one_process(notebook, tmp_path):
    """Each waits for a file that the other writes."""
    source = notebook(
        "import pathlib, time\nhere = pathlib.Path(words[0])\n(here / f'at-{value}').touch()",
        "while not (here / f'at-{1 - value}').exists():\n    time.sleep(0.02)\nprint(value)",
    )
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(
                kernel.execute,
                source,
                tmp_path / f"out-{value}.ipynb",
                {"value": value, "words": [str(tmp_path)]},
                timeout=600,
            )
            for value in (0, 1)
        ]
        [run.result() for run in runs]
    assert [output(tmp_path / f"out-{value}.ipynb") for value in (0, 1)] == ["0\n", "1\n"]


@linux
def test_nothing_survives_its_owner(notebook, tmp_path):
    """SIGKILL of an unguarded script ends kernel, server and what the kernel started, and clears the sockets."""
    source = notebook(
        "import os, pathlib, subprocess, time\nchild = subprocess.Popen(['sleep', '3600']).pid",
        "folder = os.path.dirname(get_ipython().kernel.parent.connection_file)",
        "pathlib.Path(words[0] + '.new').write_text(f'{folder} {os.getpid()} {os.getppid()} {child}')\n"
        "os.rename(words[0] + '.new', words[0])\ntime.sleep(3600)",
    )
    told, script = tmp_path / "told", tmp_path / "driver.py"
    script.write_text(
        "import sys\nfrom roarlib.grid import kernel\nkernel.PRELOAD = []\n"
        "kernel.execute(sys.argv[1], sys.argv[2], {'words': [sys.argv[3]]})\n"
    )
    owner = subprocess.Popen(
        [sys.executable, script, source, tmp_path / "out.ipynb", told],
        env=os.environ | {"PYTHONPATH": str(root())},
    )
    while not told.exists() and owner.poll() is None:
        time.sleep(0.05)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    folder, *pids = told.read_text().split()
    assert gone(list(map(int, pids)))
    assert not Path(folder).exists()


def test_ordinary_kernels_do_the_same(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "FORK", False)
    source = notebook("import torch\nprint(torch.get_num_threads(), value)", "assert value < 5, 'too large'")
    with pytest.raises(kernel.NotebookFailed, match="AssertionError: too large"):
        kernel.execute(source, tmp_path / "out.ipynb", {"value": 7}, threads=1)
    assert output(tmp_path / "out.ipynb") == "1 7\n"


def test_threads_that_share_a_context_have_event_loops_of_their_own(notebook, tmp_path):
    """As Dask's workers do after a notebook ran in the main thread: contexts copied from it hold its event loop."""
    source = notebook("import time; time.sleep(1); print(value)")
    kernel.execute(source, tmp_path / "first.ipynb", {}, timeout=600)
    contexts = [contextvars.copy_context() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(context.run, kernel.execute, source, tmp_path / f"{k}.ipynb", {"value": k}, timeout=600)
            for k, context in enumerate(contexts)
        ]
        assert all(run.exception() is None for run in runs)
    assert [output(tmp_path / f"{k}.ipynb").strip() for k in range(2)] == ["0", "1"]
