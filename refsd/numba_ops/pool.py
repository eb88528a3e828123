"""Memory for large results, taken again as soon as nobody uses it.

A fresh array costs more than writing it: the system clears each page at its first touch. Steps and
layers ask for the same sizes again and again, so what was given back is kept for the next of its
size. A size that is not there clears the pool first: idle memory never adds to a new peak.
"""

import numpy as np

LEAST = 2**20  # bytes; smaller pieces the C library keeps by itself

_idle: dict[int, list[np.ndarray]] = {}


class _Loan:
    """Memory under NumPy's array interface; it goes back when the last array on it is gone."""

    def __init__(self, memory: np.ndarray):
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self, idle=_idle):
        idle.setdefault(self.memory.nbytes, []).append(self.memory)


def take(size: int) -> np.ndarray:
    """`size` uninitialised bytes, of an array that is gone or fresh."""
    if size < LEAST:
        return np.empty(size, np.uint8)
    try:
        memory = _idle[size].pop()
    except (KeyError, IndexError):  # pop itself asks: another thread may have been quicker
        clear()
        memory = np.empty(size, np.uint8)
    return np.asarray(_Loan(memory))


def clear() -> None:
    """Give all idle memory back to the system."""
    _idle.clear()


def idle_bytes() -> int:
    """Memory that is held for the next result of its size."""
    return sum(size * len(pieces) for size, pieces in list(_idle.items()))
