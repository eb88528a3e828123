"""How many threads compute: Numba's kernels, and BLAS's matrix products, which NumPy calls."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from refsd import parallel
from refsd.backends import find_backend


def check(threads: int | None) -> None:
    """UsageError for a number of threads that this machine does not have; None is all of them."""
    if threads is not None:
        parallel.check_threads("--threads", threads)


def limited(threads: int | None) -> AbstractContextManager:
    """Within the block kernels and BLAS use at most this many threads.

    None leaves all as it is, but where a control group gives time for fewer processors.
    """
    if threads is None:
        threads = parallel.quota()
    return nullcontext() if threads is None else parallel.limited(threads)


def pools() -> list[dict[str, Any]]:
    """The thread pools of this process, as threadpoolctl describes them."""
    from threadpoolctl import threadpool_info

    return threadpool_info()


def in_use(backend: str = "numpy") -> int:
    """The threads that a backend's ops use here and now."""
    return find_backend(backend).threads()
