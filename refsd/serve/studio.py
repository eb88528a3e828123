"""The studio: a queue of jobs, and the one thread that draws them."""

import argparse
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refsd import atomic
from refsd.cli import output, threads
from refsd.cli.report import Warnings, one_line
from refsd.serve import asked as requests
from refsd.serve.asked import Asked, Limits
from refsd.serve.drawer import Drawer, Stop
from refsd.serve.jobs import CANCELLED, DONE, ENDS, FAILED, QUEUED, Job, TextJob
from refsd.serve.models import Model, TextModel
from refsd.serve.refusals import QueueFull, Refused, describe
from refsd.serve.writer import AskedText, Writer

logger = logging.getLogger(__name__)

FAULT = "a fault within refsd; the server's terminal shows it. Please report it"


class Studio:
    """Jobs in the order in which they came, drawn one at a time, their pictures in `folder`.

    base: the options of `refsd draw` that hold for all jobs, such as backend and dtype. ended: told
    of each job that is over, in a thread of the studio's choice. ahead: load the first model now,
    not for the first job. writers: the models of jobs that write texts, of which one
    is held beside the one that draws.
    """

    def __init__(self, models: Mapping[str, Model], folder: str | Path,
                 loras: Mapping[str, str] | None = None, limits: Limits | None = None, *,
                 base: argparse.Namespace | None = None,
                 ended: Callable[[Job], Any] = lambda job: None, ahead: bool = False,
                 writers: Mapping[str, TextModel] | None = None):
        self.writers = writers or {}
        self.models, self.folder, self.loras = models, Path(folder), loras or {}
        self.limits, self.base, self.ended = limits or Limits(), base or requests.defaults(), ended
        with atomic.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        output.try_out(os.path.join(self.folder, "refsd-0.png"), (".png",))
        self.current: Job | None = None  # that is being drawn
        self._queue: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._changed, self._closing = threading.Condition(threading.RLock()), False
        self._drawer = Drawer(self.models, self.folder)
        self._writer = Writer(self.writers, self.base)
        self._thread = threading.Thread(target=self._run, args=(ahead,), name="refsd-studio",
                                        daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that draws is there: until `close`, or a fault outside of a job."""
        return self._thread.is_alive()

    def read(self, said: Mapping[str, Any]) -> Asked:
        """The request of these fields; UsageError names what is wrong with it."""
        with Warnings(show=False).apart() as warnings:
            asked = requests.read(said, self.models, self.loras, self.limits, self.base)
        return asked._replace(warnings=(*map(requests.in_fields, warnings.said),))

    def submit(self, asked: Asked | AskedText) -> Job:
        """A new job at the end of the queue, a TextJob for a text.

        Raises QueueFull, and Refused when closing.
        """
        job = (TextJob if isinstance(asked, AskedText) else Job)(asked)
        with self._changed:
            if self._closing:
                raise Refused(503, "closing", "the server is being stopped; try again later")
            if len(self._queue) >= self.limits.queue:
                left = self.current and self.current.remaining
                raise QueueFull(len(self._queue), min(max(round(left or 5), 1), 60))
            self._forget()
            self._jobs[job.id] = job
            self._queue.append(job)
            self._place()
            self._changed.notify()
        return job

    def get(self, id: str) -> Job:
        """The job of an id; Refused (404) for one that is not known, or not any more."""
        with self._changed:
            self._forget()
            if id not in self._jobs:
                raise Refused(404, "job", "there is no job of this id; finished ones are known for "
                              f"{self.limits.kept:g} seconds")
            return self._jobs[id]

    def jobs(self) -> list[Job]:
        """All that are known, in the order in which they came."""
        with self._changed:
            self._forget()
            return list(self._jobs.values())

    def cancel(self, id: str) -> Job:
        """Have a job not drawn, or not further than this step; one that is over stays as it is."""
        with self._changed:
            job = self.get(id)
            job.stop = True
            if job.state == QUEUED and job in self._queue:
                self._queue.remove(job)
                self._end(job, CANCELLED)
                self._place()
        return job

    def skip(self) -> None:
        """Leave the picture that is being drawn after this step; its job goes on with the next."""
        with self._changed:
            if self.current is not None:
                self.current.skip = True

    def close(self) -> None:
        """Cancel all jobs, and wait for the end of the step that is being made."""
        with self._changed:
            self._closing = True
            for job in [*self._queue, *filter(None, [self.current])]:
                self.cancel(job.id)
            self._changed.notify()
        self._thread.join()

    def _run(self, ahead):
        with threads.limited(self.base.threads):
            if ahead:
                self._load_first()
            while (job := self._next()) is not None:
                self._end(job, *self._draw(job))
                del job  # nothing of it is held while there is nothing to do

    def _load_first(self):
        if next(iter(self.models.values())).takes != "latents":
            return  # its first request has the pictures that it is loaded for
        try:
            least = self.limits.least  # some size that may be asked for
            asked = self.read({"prompt": "", "width": least, "height": least})
            self._drawer.load(asked.model, asked.options)
        except Exception as error:
            logger.warning("%s", describe(error)[1])

    def _next(self):
        """The next job, when there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            self.current = self._queue.popleft()
            self._place()
            self.current.begin()
            return self.current

    def _draw(self, job):
        """How it ended: the state, and the error."""
        try:
            if isinstance(job, TextJob):
                self._writer.write(job)
            else:
                self._drawer.draw(job)
        except Stop:
            return CANCELLED, None
        except Exception as error:
            code, message = describe(error)
            if code == "internal":
                logger.error("job %s: %s", job.id, message, exc_info=error)
                message = FAULT
            return FAILED, {"code": code, "message": one_line(requests.in_fields(message))}
        return DONE, None

    def _end(self, job, state, error=None):
        with self._changed:
            if job is self.current:
                self.current = None
            job.end(state, error)
            try:
                self.ended(job)
            except Exception as problem:  # no fault of the job's, and no end of the thread
                logger.error("job %s: %s", job.id, problem, exc_info=problem)
            self._place()

    def _place(self):
        """Say to each job how many are before it."""
        for place, job in enumerate(self._queue, self.current is not None):
            if job.position != place:
                job.position = place
                job.changes.tell()

    def _forget(self):
        """Finished jobs that are too old, or of which there are too many."""
        over = [job for job in self._jobs.values() if job.state in ENDS]
        late = time.time() - self.limits.kept
        for at, job in enumerate(sorted(over, key=lambda job: job.ended)):
            if job.ended < late or at < len(over) - self.limits.history:
                del self._jobs[job.id]
