"""How many threads compute: one setting for Numba's kernels and for BLAS, which NumPy calls.

A part of the package with threads of its own declares a function that sets their number. So this
module imports no such part, and what is imported within a block is limited there too.
"""

import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refsd import cgroups
from refsd.arguments import as_integer, shown
from refsd.errors import UsageError

_pools: dict[str, Callable[[int], int]] = {}
_blocks: list["_Block"] = []  # those that are open, in the order in which they were entered
_blas: dict[tuple[str, int | None], int] = {}  # the threads of BLAS before the first of them
_lock = threading.Lock()


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota() -> int | None:
    """The processors that a control group gives time for, if they are fewer; None if not.

    More threads would be stopped together, for most of every period, once the time is used up.
    """
    given = cgroups.processors()
    return given if given is not None and given < cores() else None


def processor() -> str:
    """The processor's own name for itself."""
    facts = Path("/proc/cpuinfo")  # of Linux; elsewhere platform knows
    lines = facts.read_text(errors="replace").splitlines() if facts.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def check_threads(name: str, count: Any) -> int:
    """The number itself; UsageError unless it is an integer from 1 to the processors there are."""
    most, found = cores(), as_integer(count)
    if found is None or not 1 <= found <= most:
        raise UsageError(f"{name} is {shown(count)}; give an integer from 1 to {most}, the "
                         "processors that this process may use")
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block kernels and matrix products use at most `count` threads.

    Blocks nest; Numba's own NUMBA_NUM_THREADS is an upper limit. The kernels' limit holds for the
    Python thread that enters the block. BLAS has one number for the whole process: of blocks that
    overlap in several Python threads the one entered last counts. Raises UsageError unless count
    is an integer from 1 to the processors there are.
    """
    with limited(check_threads("threads", count)):
        yield


@contextmanager
def limited(count: int) -> Iterator[None]:
    """The same for a number that may be larger than there are processors."""
    block = _Block(count)
    with _lock:
        _blocks.append(block)
        _limit_blas()
    try:
        for name in _pools:
            block.set(name)
        yield
    finally:
        block.restore()
        with _lock:
            _blocks.remove(block)
            _limit_blas()


def limit() -> int | None:
    """The number of the innermost block that this Python thread is in; None outside of all.

    Another Python thread, which begins outside, enters `limited` with it to compute as this one.
    """
    here = [block for block in _blocks if block.thread == threading.get_ident()]
    return here[-1].count if here else None


class _Block:
    """A limit, the Python thread that set it, and what that thread's pools had before."""

    def __init__(self, count: int):
        self.count, self.before, self.thread = count, {}, threading.get_ident()

    def set(self, name: str) -> None:
        self.before[name] = _pools[name](self.count)

    def restore(self) -> None:
        for name, count in self.before.items():
            _pools[name](count)


def _limit_blas() -> None:
    """Give BLAS, which has one number for the process, that of the block entered last.

    Blocks of several Python threads may overlap and end in any order: what BLAS had before the
    first of them is kept once, and comes back with the end of the last. (An OpenBLAS on OpenMP has
    a number for each Python thread: there only this one's blocks count.)
    """
    # only a library that is loaded can be limited, and SciPy's comes with its special functions
    import numpy  # noqa: F401
    import scipy.special  # noqa: F401
    from threadpoolctl import ThreadpoolController

    here = threading.get_ident()
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        shared = getattr(library, "threading_layer", None) != "openmp"
        key = library.filepath, None if shared else here
        blocks = [block for block in _blocks if shared or block.thread == here]
        before = _blas.setdefault(key, library.num_threads)
        _set(library, blocks[-1].count if blocks else before)
        if not blocks:
            del _blas[key]


def _set(library: Any, count: int) -> None:
    """threadpoolctl 3.8 lets one Python thread set the number, and ignores others without a word.

    Here whose number it is has been decided.
    """
    clear = getattr(library, "clear_controlling_thread", lambda force: None)
    clear(force=True)
    library.set_num_threads(count)
    clear(force=True)


def blas_pools() -> list[dict[str, Any]]:
    """The BLAS libraries of this process, as threadpoolctl describes them."""
    from threadpoolctl import threadpool_info

    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]


def add_pool(name: str, set_threads: Callable[[int], int]) -> None:
    """Declare a pool: set_threads(n) lets it use n threads and gives how many it used before.

    A pool's number is that of the Python thread, so only this one's blocks are its concern.
    """
    _pools[name] = set_threads
    for block in list(_blocks):
        if block.thread == threading.get_ident():
            block.set(name)


def check_environment() -> None:
    """Before Numba is imported: see that NUMBA_NUM_THREADS is one that it takes.

    UsageError for one that it would refuse with a traceback, or ignore. Where there is none, and a
    control group gives time for fewer processors than there are, it becomes their number. (It
    stays: Numba reads it again whenever it has changed.)
    """
    text = os.environ.get("NUMBA_NUM_THREADS")
    if text is not None and not (text.strip().isdecimal() and int(text) > 0):
        raise UsageError(f"NUMBA_NUM_THREADS is {text!r}; give a positive integer, or unset it")
    if text is None and "numba" not in sys.modules and (most := quota()) is not None:
        os.environ["NUMBA_NUM_THREADS"] = str(most)
