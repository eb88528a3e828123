"""How many threads the matrix products use: BLAS's, which NumPy calls."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def limited(threads: int | None) -> AbstractContextManager:
    """Within the block BLAS uses at most this many threads; None leaves it as it is."""
    if threads is None:
        return nullcontext()
    import numpy  # noqa: F401  (only a library that is loaded can be limited)
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=threads)


def pools() -> list[dict[str, Any]]:
    """The thread pools of this process, as threadpoolctl describes them."""
    from threadpoolctl import threadpool_info

    return threadpool_info()


def in_use() -> int:
    """The threads of the pool that has most of them."""
    return max([pool["num_threads"] for pool in pools()], default=1)
