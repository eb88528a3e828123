"""Numbers of the server in Prometheus' text format: jobs, pictures, steps, requests, memory."""

import re
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from refsd.serve.jobs import DONE, DRAWING, ENDS, QUEUED, Job, TextJob
from refsd.version import __version__

SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)  # upper ends of the buckets
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
GONE = 499  # the status of a request whose client did not wait for the answer


class Metrics:
    """Counts from the start of the server on. `job` is what a Studio's `ended` is told."""

    TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self):
        self._lock, self._started = threading.Lock(), time.time()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._jobs = Counter(dict.fromkeys(ENDS, 0))
        self._pictures = self._steps = self._tokens = 0
        self._seconds, self._buckets = 0.0, [0] * (len(SECONDS) + 1)

    def job(self, job: Job) -> None:
        """A job is over."""
        with self._lock:
            self._jobs[job.state] += 1
            if isinstance(job, TextJob):
                self._tokens += len(job.pieces)
                return
            self._pictures += len(job.pictures)
            self._steps += job.made
            if job.state == DONE:
                self._seconds += job.seconds
                self._buckets[bisect_left(SECONDS, job.seconds)] += 1

    def counting(self, app: Any) -> Any:
        """An ASGI application that counts what this one answers, by the route's template."""
        async def counted(scope, receive, send):
            status = GONE

            async def noted(message):
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, noted)
            finally:
                if scope["type"] == "http":
                    self._count(scope, status)

        return counted

    def _count(self, scope, status):
        """Of what a client makes up only that it was something else."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        with self._lock:
            self._requests[method, getattr(scope.get("route"), "path", "other"), status] += 1

    def text(self, jobs: Iterable[Job] = ()) -> str:
        """All numbers; the jobs are those that are known now."""
        states = Counter(job.state for job in jobs)
        with self._lock:
            lines = [*_gauge("refsd_info", "The version.", 1, version=__version__),
                     *_gauge("process_start_time_seconds", "Since 1970.", self._started),
                     *_gauge("refsd_queue_jobs", "Jobs that wait.", states[QUEUED]),
                     *_gauge("refsd_drawing_jobs", "Jobs that are drawn.", states[DRAWING]),
                     *_head("refsd_jobs_total", "counter", "Jobs that are over."),
                     *(_line("refsd_jobs_total", count, end=end)
                       for end, count in self._jobs.items()),
                     *_counter("refsd_pictures_total", "Pictures written.", self._pictures),
                     *_counter("refsd_steps_total", "Steps of jobs that are over.", self._steps),
                     *_counter("refsd_tokens_total", "Tokens written of texts.", self._tokens),
                     *self._histogram(), *self._answers(), *_memory()]
        return "".join(f"{line}\n" for line in lines)

    def _histogram(self):
        name = "refsd_drawing_seconds"
        yield from _head(name, "histogram", "Seconds that jobs took whose pictures are done.")
        counts = list(accumulate(self._buckets))
        for end, count in zip((*SECONDS, "+Inf"), counts, strict=True):
            yield _line(f"{name}_bucket", count, le=str(end))
        yield _line(f"{name}_sum", self._seconds)
        yield _line(f"{name}_count", counts[-1])

    def _answers(self):
        name = "refsd_requests_total"
        yield from _head(name, "counter", "Requests by route, and 499 for clients that left.")
        for (method, route, status), count in sorted(self._requests.items()):
            yield _line(name, count, method=method, route=route, status=str(status))


def _line(name: str, value: float, **labels: str) -> str:
    """A sample. Labels come from this package alone, without quotes in them."""
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{f'{{{inside}}}' if inside else ''} {value}"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _gauge(name, about, value, **labels):
    return [*_head(name, "gauge", about), _line(name, value, **labels)]


def _counter(name, about, value):
    return [*_head(name, "counter", about), _line(name, value)]


def memory(status: Path = Path("/proc/self/status")) -> Mapping[str, int]:
    """Bytes in memory now (`resident`) and at most (`peak`); none where no system says it."""
    text = status.read_text() if status.exists() else ""
    found = dict(re.findall(r"(?m)^(VmRSS|VmHWM):\s*(\d+) kB$", text))
    return {name: int(found[key]) * 1024 for name, key in (("resident", "VmRSS"),
                                                           ("peak", "VmHWM")) if key in found}


def _memory():
    for name, value in memory().items():
        yield from _gauge(f"process_{name}_memory_bytes", f"Memory, {name}.", value)
