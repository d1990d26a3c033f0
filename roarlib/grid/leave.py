"""A Dask worker plugin for jobs: the process ends within seconds of its worker. Dask's own end can wait for ever."""

import os
import threading

from distributed.diagnostics.plugin import WorkerPlugin


class Leave(WorkerPlugin):
    name, idempotent = "roar-leave", True

    def teardown(self, worker):
        end = threading.Timer(5, os._exit, [0])
        end.daemon = True
        end.start()
