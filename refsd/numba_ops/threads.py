"""The threads that kernels run on: how many, one caller at a time, and none after a fork."""

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numba

from refsd.errors import UsageError
from refsd.parallel import add_pool


def one_at_a_time() -> AbstractContextManager:
    """Within the block no other Python thread runs a kernel.

    Numba's layer `workqueue` ends the process when two threads call it at once; with the others two
    callers would only take each other's processors.
    """
    return _lock


class _Refusal:
    """Takes the place of the lock in a forked child, where GNU OpenMP would end the process."""

    def __enter__(self):
        raise UsageError("this process was forked from one that had run kernels on several "
                         "threads, which GNU OpenMP does not survive. Start workers with "
                         'multiprocessing.get_context("spawn")')

    def __exit__(self, *error):
        raise AssertionError("it is never entered")


def _after_fork():
    """The child has one thread: nobody else holds its lock, and OpenMP's threads are gone."""
    global _lock
    _lock = _Refusal() if _layer_now() == "omp" and _openmp() == "GNU" else threading.RLock()


_lock: Any = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _layer_now() -> str | None:
    try:
        return numba.threading_layer()
    except ValueError:  # no threads were started yet
        return None


def _openmp() -> str:
    """Whose OpenMP it is. GNU's cannot be used on both sides of a fork."""
    from numba.np.ufunc import omppool

    return getattr(omppool, "openmp_vendor", "GNU")


# How often an idle thread of GNU OpenMP looks for work before it sleeps: about 0.1 ms, longer than
# Python takes from one kernel to the next. Left alone it looks for 10 ms or more, and where others
# compute on the same processors it keeps them, and our own threads, from working: docs/cli.md.
SPINS = "2000"


def layer() -> str:
    """Numba's threading layer: tbb, omp or workqueue; starts the threads.

    Raises UsageError where NUMBA_THREADING_LAYER names one that is not there.
    """
    ours = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}.isdisjoint(os.environ)
    if ours:
        os.environ["GOMP_SPINCOUNT"] = SPINS  # read once, when Numba loads OpenMP
    try:
        numba.get_num_threads()
    except ValueError as problem:
        why = str(problem).partition("\n")[0]
        raise UsageError(f"NUMBA_THREADING_LAYER={numba.config.THREADING_LAYER}: {why} Unset it, "
                         "or give omp or workqueue") from None
    finally:
        if ours:
            os.environ.pop("GOMP_SPINCOUNT", None)
    return numba.threading_layer()


def count() -> int:
    """The threads that kernels use which this Python thread calls."""
    layer()
    return numba.get_num_threads()


def _mask(count: int) -> int:
    """Let kernels use `count` threads, or as many as Numba has; gives how many it was before."""
    layer()
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    return before


add_pool("numba", _mask)
