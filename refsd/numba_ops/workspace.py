"""Memory that kernels work in, kept for the next one, whatever size that asks for.

The pool of results (pool.py) gives a piece to the next result of its very size. What a convolution
works in has another size in every layer: asked of the pool, it would be fresh each time, and drive
results out that wait for their next.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from refsd.numba_ops.simd import WIDTH

MOST = 64 * 2**20  # bytes that are kept; what is larger goes when it is done
# A gap keeps arrays of one workspace from multiples of 4096 bytes, which share few cache sets.
GAP = 5 * WIDTH

_lock = threading.Lock()
_kept: np.ndarray | None = None  # raw memory that nobody uses now


@contextmanager
def workspace(dtype: np.dtype, *sizes: int) -> Iterator[list[np.ndarray]]:
    """Within the block: uninitialised, aligned 1-D arrays of so many elements each."""
    dtype = np.dtype(dtype)
    rooms = [-(-size * dtype.itemsize // WIDTH) * WIDTH + GAP for size in sizes]
    raw = _take(sum(rooms) + WIDTH)
    start = -raw.ctypes.data % WIDTH
    arrays = []
    for size, room in zip(sizes, rooms):
        arrays.append(raw[start:start + size * dtype.itemsize].view(dtype))
        start += room
    try:
        yield arrays
    finally:
        _give_back(raw)


def _take(size):
    """The kept memory where it is large enough; two threads never get the same."""
    global _kept
    with _lock:
        raw, _kept = _kept, None
    return np.empty(size, np.uint8) if raw is None or raw.nbytes < size else raw


def _give_back(raw):
    """Keep the larger of what is kept and what comes back."""
    global _kept
    with _lock:
        if raw.nbytes <= MOST and (_kept is None or _kept.nbytes < raw.nbytes):
            _kept = raw


def kept_bytes() -> int:
    """Memory that waits for the next kernel to work in."""
    raw = _kept
    return 0 if raw is None else raw.nbytes


def release() -> None:
    """Give it back to the system."""
    global _kept
    with _lock:
        _kept = None
