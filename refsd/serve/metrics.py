"""Numbers of the server in Prometheus' text format: jobs, pictures, steps, requests, memory."""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from refsd.serve.jobs import Job
from refsd.version import __version__


class Metrics:
    """Counts from the start of the server on. `job` is what a Studio's `ended` is told."""

    TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self):
        self._lock = threading.Lock()
        self._requests = Counter()
        self._jobs = Counter()

    def job(self, job: Job) -> None:
        """A job is over."""
        with self._lock:
            self._jobs[job.state] += 1

    def counting(self, app: Any) -> Any:
        """An ASGI application that counts what this one answers."""
        return app

    def text(self, jobs: Iterable[Job] = ()) -> str:
        """All numbers; the jobs are those that are known now."""
        return f'refsd_info{{version="{__version__}"}} 1\n'
