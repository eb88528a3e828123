"""--dask ADDRESS: a command's units, done by the workers of a cluster."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refsd.cli.progress import Progress
from refsd.errors import UsageError


def add_option(add: Callable, what: str) -> None:
    """The option, for a command whose units are `what`."""
    add("--dask", metavar="ADDRESS",
        help=f"have the {what} made by the workers of Dask's scheduler at HOST:PORT, or by N "
        "processes on this machine: local:N (pip install refsd[distributed])")


def check(options: argparse.Namespace) -> None:
    """UsageError for an address that is none, and for --shard beside it."""
    if options.dask is None:
        return
    if options.shard not in (None, (1, 1)):
        raise UsageError("--shard is for machines that know nothing of each other, --dask for "
                         "workers that are given one unit after the other; leave one of them out")
    from refsd.farm.cluster import check_address

    check_address(options.dask)


def threads_of(address: str, asked: int | None) -> int | None:
    """How many threads each worker computes with: processes of one machine share its processors.

    None is all that a worker finds.
    """
    from refsd import parallel
    from refsd.farm.cluster import LOCAL

    local = LOCAL.fullmatch(address)
    if asked is not None or local is None:
        return asked
    return max(1, (parallel.quota() or parallel.cores()) // int(local[1]))


def run(job: Any, address: str, folder: str, on_done: Callable, *, what: str, show: bool) -> None:
    """Have a job done, with progress; on_done(unit, said) is told of each unit, old or new.

    Raises as refsd.farm.cluster.run.
    """
    from refsd.farm import cluster

    with Progress(len(job.units), what, show=show, each="unit") as progress:
        def done(unit, said):
            progress.step()
            with progress.aside():
                on_done(unit, said)

        cluster.run(job, address, Path(folder), done)
