"""Run one notebook through papermill in a fresh kernel, without waiting for its imports.

A server process imports the heavy modules once and forks itself for each notebook, which thus has a process and
a state of its own half a second after the call. On systems other than Linux, ordinary kernels are used.
"""

import atexit
import contextvars
import gc
import logging
import os
import pickle
import shutil
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import connection, forkserver
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from time import monotonic

import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines

from roarlib.study import own

FORK = sys.platform == "linux"  # elsewhere a process that has loaded torch cannot be forked safely
# None of these may, at its import, touch CUDA, run a torch operation or look for a running IPython.
PRELOAD = """papermill ipykernel.kernelapp ipywidgets numpy pandas scipy.stats torch torchvision seaborn
    matplotlib.pyplot roarlib.explore roarlib.engine.recursive roarlib.grid.kernel roarlib.grid.status
    roarlib.answers.trust roarlib.answers.paper""".split()
SERVER = forkserver.ForkServer()  # not multiprocessing's own, which others may have started without PRELOAD


class NotebookFailed(RuntimeError):
    """A notebook that did not reach its end: `path` of its copy, `cause` in one line, `traceback` as text."""

    def __init__(self, path: Path, cause: str, traceback: str = ""):
        super().__init__(path, cause, traceback)  # all three, or it could not be pickled
        self.path, self.cause, self.traceback = path, cause, traceback

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


def execute(
    source: Path,
    target: Path,
    parameters: dict,
    *,
    timeout: float | None = None,
    threads: int | None = None,
    env: dict | None = None,
) -> None:
    """Run the notebook `source` with `parameters` in a fresh kernel and leave the executed copy at `target`.

    timeout: seconds for all cells together. threads: CPU threads of torch in the kernel. env: more variables.
    Several threads may call this at once. Raises ValueError for a parameter that the notebook does not take;
    NotebookFailed if a cell raises, time is up or the kernel dies, and `target` then holds the notebook so far.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    known = papermill.inspect_notebook(source)
    if unknown := ", ".join(name for name in parameters if name not in known):  # papermill would only warn
        raise ValueError(f"{source.name} has no parameter {unknown}; it takes {', '.join(known) or 'none'}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.ipynb")
    env = os.environ | (env or {}) | {"ROAR_HEADLESS": "1"}  # see status.bar
    env.pop("MPLBACKEND", None)  # figures show in the notebook, whatever the terminal prefers
    if threads:
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(threads)
    try:
        # In a context of its own: jupyter_core keeps an event loop in a context variable, and threads whose contexts
        # were copied from one that has a loop (Dask does so) would all run that loop at once.
        how = dict(kernel_name="python3", language="python", engine_name="roarlib", progress_bar=False)
        contextvars.Context().run(papermill.execute_notebook, source, part, parameters, env=env, timeout=timeout, **how)
    except Exception as error:
        name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        first = next(filter(str.strip, str(message).splitlines()), "no message").strip()
        raise NotebookFailed(target, f"{own.place_in(str(error))}{name}: {first}", str(error).strip()) from None
    finally:
        with suppress(FileNotFoundError):
            part.replace(target)


class _Engine(Engine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, env, timeout, **_):
        end = monotonic() + timeout if timeout else None
        folder = TemporaryDirectory(prefix="roar-", dir="/tmp" if FORK else None, ignore_cleanup_errors=True)
        with folder as path:  # for sockets: ports could be lost to others. Not TMPDIR: paths end at 107
            sockets = {"transport": "ipc", "ip": f"{path}/k", "connection_file": f"{path}/kernel.json"}
            manager = _ForkManager(**sockets) if FORK else AsyncKernelManager(kernel_name=kernel_name)
            client = _Client(nb_man, km=manager, log=logging.Logger("quiet", logging.CRITICAL + 1))
            client.timeout_func = lambda _: end and max(end - monotonic(), 0.01)
            client.execute(env=env, cleanup_kc=True)


papermill_engines.register("roarlib", _Engine)


class _Client(PapermillNotebookClient):
    def start_new_kernel_client(self):
        client = super().start_new_kernel_client()
        once = client.shell_channel.get_msg

        async def get_msg(timeout=None):
            """Look twice a second: a single wait can miss the reply and never end (nbclient issue 312)."""
            end = monotonic() + (float("inf") if timeout is None else timeout)
            while (left := end - monotonic()) > 0.5:
                with suppress(Empty):
                    return await once(timeout=0.5)
            return await once(timeout=max(left, 0))

        client.shell_channel.get_msg = get_msg
        return client


LIVE: set = set()  # kernels of this process


def stop(run_id: str) -> None:
    """Kill this process's kernels that run with ROAR_RUN = run_id; their `execute` raises NotebookFailed."""
    for process in [p for p in LIVE if p.env.get("ROAR_RUN") == run_id]:
        process.send_signal(signal.SIGKILL)


class _ForkManager(AsyncKernelManager):
    async def _async_launch_kernel(self, kernel_cmd, *, env, **_):
        process = self.provisioner.process = _Process(self.connection_file, env)
        LIVE.add(process)
        self.provisioner.pid = self.provisioner.pgid = process.pid


class _Process:
    """A forked kernel: acts as a Popen for jupyter_client; unpickled by the child, which calls `_bootstrap`."""

    stdin = stdout = stderr = returncode = None

    def __init__(self, connection_file, env):
        self.connection_file, self.env, self.owner = connection_file, dict(env), os.getpid()
        SERVER.set_forkserver_preload(PRELOAD)
        status, pipe = SERVER.connect_to_new_process([])
        with open(pipe, "wb", closefd=False) as file:
            # as multiprocessing does, except for "__main__": importing that would rerun an unguarded script
            pickle.dump({"sys_path": sys.path, "dir": os.getcwd(), "start_method": "fork"}, file)
            pickle.dump(self, file)
        self.status, self.pipe, self.pid = status, pipe, forkserver.read_signed(status)

    def poll(self):
        if self.returncode is None and connection.wait([self.status], 0):
            self.returncode = -signal.SIGKILL
            with suppress(EOFError):  # the server died, and its kernels with it
                self.returncode = forkserver.read_signed(self.status)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # what the kernel left behind
            os.close(self.pipe)
            os.close(self.status)
            LIVE.discard(self)
        return self.returncode

    wait = poll  # called only after the end

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def _bootstrap(self, pipe):
        import matplotlib
        import numpy
        import torch
        from ipykernel.kernelapp import IPKernelApp

        os.setsid()
        threading.Thread(target=self._die_with_owner, args=[pipe], daemon=True).start()
        gc.freeze()  # what came with the fork is not garbage: its memory stays shared, collections are short
        os.environ.clear()
        os.environ.update(self.env)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.modules["debugpy"] = None  # no debugger: it takes 0.3 s
        numpy.random.seed()  # else every notebook draws the same numbers
        matplotlib.rcParams["backend"] = self.env.get("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        if (threads := self.env.get("OMP_NUM_THREADS", "")).isdigit():
            torch.set_num_threads(int(threads))  # torch read its environment when it was imported
        app = IPKernelApp.instance(parent_handle=os.getppid())
        for noisy in ("tornado.general", "tornado.application"):  # a kernel's end can race with its last message,
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # and prints a traceback about nothing
        app.initialize(["-f", self.connection_file, "--HistoryManager.hist_file=:memory:", "--log-level=50"])
        app.start()
        atexit.unregister(app.close)  # not needed now, and one time in twenty it waits for its own threads
        atexit._run_exitfuncs()  # as at the end of an ordinary process
        return 0

    def _die_with_owner(self, pipe):
        watched = [pipe]  # closes with the owner, unless a child of the owner's holds it too
        with suppress(AttributeError, OSError):
            watched.append(os.pidfd_open(self.owner))
        connection.wait(watched)
        shutil.rmtree(Path(self.connection_file).parent, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
