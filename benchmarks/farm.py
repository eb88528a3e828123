"""What dealing units to a cluster costs: the caller's time for each, and how fast results come.

    python -m benchmarks.farm [--units N] [--megabytes M]

Three lines, each measured: units that do nothing at two real processes, through Dask and back; the
dealing alone, to 1,000 workers that only pretend; results of M megabytes, over the network and in a
shared folder. docs/farm.md says what follows for 1,000 workers.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import patch

from refsd.farm import cluster, dispatch, units
from refsd.farm.units import Job, Unit

units.KINDS["benchmark"] = __name__  # in the workers too, which preload this file


def dask_setup(worker):
    """Loading it is all."""


def open_worker(setup):
    return Idle()


def finished(unit, folder):
    return None


class Idle:
    """A worker whose results are as large as it is told."""

    identity: dict[str, str] = {}

    def do(self, unit, folder):
        for name in unit.results:
            (folder / name).write_bytes(os.urandom(unit.recipe["bytes"]))
        return {}


class Pretended:
    """A client of `count` workers, each of which answers at once; they have made no results."""

    def __init__(self, count):
        self.there = dict.fromkeys((f"tcp://node{i}:1" for i in range(count)), 1)

    def nthreads(self):
        return self.there

    def submit(self, function, *args, **options):
        answer = {"host": "", "pid": 1, "shared": False, "differs": []}
        future = Future()
        future.release = future.cancel
        future.set_result(answer if function is dispatch.worker.greet else {
            "said": {}, "files": {}, "sha256": {}})
        return future


def job(count, size=0):
    """`count` units with results of `size` bytes."""
    return Job("benchmark", {}, {}, tuple(
        Unit(units.key_of({"unit": i}), f"unit {i}", {"bytes": size}, 1,
             (f"{i}.bin",) if size else ()) for i in range(count)))


def pretended(count, workers):
    """Seconds of dealing `count` units to so many workers that answer at once."""
    with tempfile.TemporaryDirectory() as folder:
        made = dispatch.Dispatch(Pretended(workers), job(count), Path(folder), Path(folder),
                                 lambda *_: None, 60.0)
        begun = time.perf_counter()
        made.run(list(job(count).units))
        return time.perf_counter() - begun


def real(address, count, size, *, shared=True):
    """Seconds of `count` units with results of `size` bytes at the workers of an address."""
    alone = property(lambda _: False, lambda *_: None)
    seat = dispatch.Seat if shared else type("Seat", (dispatch.Seat,), {"shared": alone})
    with tempfile.TemporaryDirectory() as folder, patch.object(dispatch, "Seat", seat):
        begun = time.perf_counter()
        cluster.run(job(count, size), address, folder, lambda *_: None)
        return time.perf_counter() - begun


def main():
    import distributed

    found = argparse.ArgumentParser(prog="python -m benchmarks.farm", description=__doc__)
    found.add_argument("--units", type=int, default=1000)
    found.add_argument("--megabytes", type=int, default=20)
    asked = found.parse_args()
    took = pretended(10 * asked.units, 1000)
    print(f"dealing to 1,000 workers that pretend: {1e6 * took / (10 * asked.units):.0f} us a unit")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0",
                                  memory_limit=None, preload="benchmarks.farm") as two:
        address = two.scheduler_address
        real(address, 10, 0)
        took = real(address, asked.units, 0)
        print(f"two processes, units that do nothing: {1e3 * took / asked.units:.2f} ms a unit")
        for shared in (False, True):
            took = real(address, 20, asked.megabytes * 10**6, shared=shared)
            print(f"results of {asked.megabytes} MB {'in a shared folder' if shared else 'sent'}: "
                  f"{20 * asked.megabytes / took:.0f} MB/s")


if __name__ == "__main__":
    main()
