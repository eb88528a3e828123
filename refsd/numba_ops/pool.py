"""Memory for large results, taken again as soon as nobody uses it.

A fresh array costs more than writing it: the system clears each page at its first touch. Layers and
steps ask for the same sizes again and again, so what was given back waits for the next of its size.
What waits longest goes first, so that idle memory hardly adds to a peak.
"""

import ctypes

import numpy as np

LEAST = 2**20  # bytes; smaller pieces the C library keeps by itself
MOST_IDLE = 192 * 2**20  # what may wait when a size is asked for that is not there

_idle: list["_Piece"] = []  # from the one that waits longest to the latest


class _Piece:
    """Memory that comes back when the last array on it is gone."""

    def __init__(self, memory: np.ndarray):
        self.memory = memory

    def lend(self) -> np.ndarray:
        return np.asarray(_Loan(self))


class _Loan:
    """A piece under NumPy's array interface: arrays hold the loan, not the piece."""

    def __init__(self, piece: _Piece):
        self.piece = piece
        self.__array_interface__ = piece.memory.__array_interface__

    def __del__(self, idle=_idle):
        idle.append(self.piece)


def take(size: int) -> np.ndarray:
    """`size` uninitialised bytes, of an array that is gone or fresh."""
    if size < LEAST:
        return np.empty(size, np.uint8)
    for piece in reversed(_idle.copy()):
        if piece.memory.nbytes == size and _removed(piece):
            return piece.lend()
    shrink(MOST_IDLE - size)
    return _Piece(np.empty(size, np.uint8)).lend()


def shrink(most: int) -> None:
    """Give back to the system what waits longest, until no more than `most` bytes are idle."""
    for piece in _idle.copy():
        if idle_bytes() <= max(most, 0):
            return
        _removed(piece)


def release() -> None:
    """Give all idle memory back, and have the C library do the same with what it keeps.

    After a UNet of Stable Diffusion 1.5 that is 0.3 GB, which the decoder cannot use.
    """
    shrink(0)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def idle_bytes() -> int:
    """Memory that waits for the next result of its size."""
    return sum(piece.memory.nbytes for piece in _idle.copy())


def _removed(piece: _Piece) -> bool:
    """Whether it was there to be removed: another thread may have been quicker."""
    try:
        _idle.remove(piece)
        return True
    except ValueError:
        return False
