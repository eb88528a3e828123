"""--dask ADDRESS: a job's units on the workers of a Dask cluster, or of its own (local:N)."""

import logging
import os
import re
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refsd.atomic import writing
from refsd.errors import ResourceError, UsageError
from refsd.farm.units import Job, Unit, kind_of

LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
ELSEWHERE = re.compile(r"(?!local:)((tcp|tls)://)?[^\s/]+:[0-9]{1,5}")
CONNECT = 10  # seconds for a scheduler to answer
PATIENCE = 60.0  # seconds without a worker, after which a run ends


def check_address(address: str) -> str:
    """The address itself. Raises UsageError where it is none, or Dask is not installed."""
    if not (LOCAL.fullmatch(address) or ELSEWHERE.fullmatch(address)):
        raise UsageError(f"--dask: got {address[:60]!r}; give the scheduler's address, as "
                         "tcp://HOST:PORT or tls://HOST:PORT, or local:N for N processes here")
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f'--dask: there is no {error.name} here. Install it with pip install '
                         '"refsd[distributed]"') from None
    return address


def run(job: Job, address: str, folder: str | Path, on_done: Callable[[Unit, dict[str, Any]], None],
        *, patience: float = PATIENCE) -> None:
    """Have the job's units done; their results are in the folder, and on_done is told of each.

    What was done before is not done again. Raises what a unit is refused with, and ResourceError
    where units are missing at the end.
    """
    check_address(address)
    folder, kind, left = Path(folder).resolve(), kind_of(job.kind), []
    for unit in job.units:
        said = kind.finished(unit, folder)
        if said is None:
            left.append(unit)
        else:
            on_done(unit, said)
    if not left:
        return
    from refsd.farm.dispatch import Dispatch

    with _scratch(folder) as scratch, connected(address) as client:
        missing = Dispatch(client, job, folder, scratch, on_done, patience,
                           grows=LOCAL.fullmatch(address) is None).run(left)
    if missing:
        first = "; ".join(f"{name}: {why}" for name, why in list(missing.items())[:3])
        raise ResourceError(f"{len(missing)} of {len(job.units)} could not be done: {first}"
                            f"{'; ...' if len(missing) > 3 else ''}. Mend it, and run the command "
                            "again, which does what is missing")


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of the scheduler at an address, or of workers that end with the block."""
    import distributed

    handlers = logging.getLogger("distributed").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:  # what matters of it, Dispatch says
        handler.setLevel(logging.CRITICAL + 1)
    try:
        if local := LOCAL.fullmatch(address):
            with (_local(int(local[1])) as cluster, distributed.Client(cluster) as client,
                  _ending(cluster)):
                yield client
        else:
            with _remote(address) as client:
                yield client
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _remote(address):
    import distributed

    try:
        return distributed.Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ResourceError(f"--dask {address}: no scheduler answers there ({error}). Start one "
                            "with `dask scheduler`, and workers with `dask worker`, or give "
                            "local:N") from None


def _local(count):
    """Processes that nobody else can reach: whoever could might have them run anything."""
    import dask
    import distributed

    own = "127.0.0.1:0"
    with dask.config.set({f"distributed.{who}.http.routes": [] for who in ("scheduler", "worker")}):
        return distributed.LocalCluster(
            count, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=None,
            dashboard_address=own, worker_dashboard_address=own, silence_logs=logging.CRITICAL,
            protocol="tls://", security=distributed.Security.temporary(),
            preload="refsd.farm.preload")


@contextmanager
def _ending(cluster):
    """Kill the workers after the block: Dask would wait seconds for a unit that nobody wants."""
    try:
        yield
    finally:
        for nanny in cluster.workers.values():
            nanny.close_gracefully("refsd is done")
            if nanny.pid is not None:
                os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def _scratch(folder):
    """A new folder in a folder, for what is not whole yet; the name is a secret that workers show.
    """
    place = folder / f".refsd-{secrets.token_hex(16)}"
    with writing(place):
        place.mkdir()
    try:
        yield place
    finally:
        for _ in range(3):  # a worker that is still at work may write into it meanwhile
            shutil.rmtree(place, ignore_errors=True)
