"""What runs on a worker of a cluster: one unit at a time, where all is as the job wants it."""

import hashlib
import json
import logging
import os
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed

from refsd.errors import RefsdError
from refsd.farm.units import Unit, Worker, differences, kind_of

ALONE = threading.Lock()  # a process has one set of kernels and of choices: no two units at a time
opened: dict[str, Worker] = {}  # by kind and setup; the last one, which may be a model of gigabytes


def greet(head: str, scratch: str) -> dict[str, Any]:
    """What a worker says before it is given units: its host, and what of it `differs`.

    `head` is the job as JSON, without its units; `scratch` is the caller's folder for results that
    are not whole yet: `shared` says whether this worker can write there.
    """
    answer = {"host": socket.gethostname(), "pid": os.getpid(),
              "shared": os.path.isdir(scratch) and os.access(scratch, os.W_OK)}
    with ALONE:
        return answer | _answering(lambda: {"differs": _ready(head)[1]})


def do(head: str, unit: str, folder: str, shared: bool) -> dict[str, Any]:
    """Do a unit; `said`, and its results in the caller's new folder, or else as `files`.

    An error is an answer too: `raised`, with its kind, so that none is lost for want of its class.
    """
    with ALONE:
        return _answering(lambda: _done(head, unit, folder, shared))


def _done(head, unit, folder, shared):
    unit = Unit(**json.loads(unit))
    worker, differs = _ready(head)
    if differs:
        return {"differs": differs}
    if shared:
        os.mkdir(folder)
        return {"said": worker.do(unit, Path(folder))}
    # in the worker's own folder, which is emptied even after one that was killed
    own = distributed.get_worker().local_directory
    with tempfile.TemporaryDirectory(prefix="refsd-", dir=own) as made:
        said = worker.do(unit, Path(made))
        files = {path: (Path(made) / path).read_bytes() for path in _files(unit, Path(made))}
    return {"said": said, "files": files,
            "sha256": {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}}


def _files(unit: Unit, made: Path) -> Iterator[str]:
    """The files of a unit's results, those in folders too, as paths with /."""
    for name in unit.results:
        place = made / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if not path.is_dir():
                yield path.relative_to(made).as_posix()


def _ready(head):
    """The worker that does units of this job, and in what it is not as the job wants it."""
    job = json.loads(head)
    key = json.dumps([job["kind"], job["setup"]], sort_keys=True)
    if key not in opened:
        opened.clear()
        opened[key] = kind_of(job["kind"]).open_worker(job["setup"])
    return opened[key], differences(job["identity"], opened[key].identity)


class Heard(logging.Handler):
    """Keeps the library's warnings, which are the caller's to hear."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _answering(work):
    """What the work gives, or what it raised; and what it warned of."""
    heard = Heard()
    logging.getLogger("refsd").addHandler(heard)
    try:
        return _answer(work) | {"warned": heard.said}
    finally:
        logging.getLogger("refsd").removeHandler(heard)


def _answer(work):
    try:
        return work()
    except RefsdError as error:
        kind = next(each.__name__ for each in type(error).__mro__ if each.__module__ ==
                    RefsdError.__module__)
        return {"raised": kind, "message": str(error)}
    except OSError as error:
        return {"raised": "OSError", "message": f"{error.filename or 'reading or writing failed'}: "
                                                f"{error.strerror or error}"}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"raised": "fault", "message": f"{type(error).__name__}: {error} "
                                              f"({Path(last.filename).name}:{last.lineno})"}
