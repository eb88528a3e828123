"""Memory that a kernel works in and gives back when it is done."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from refsd.numba_ops.memory import allocate, flat
from refsd.numba_ops.simd import WIDTH

# A gap keeps arrays of one workspace from multiples of 4096 bytes, which share few cache sets.
GAP = 5 * WIDTH


@contextmanager
def workspace(dtype: np.dtype, *sizes: int) -> Iterator[list[np.ndarray]]:
    """Within the block: uninitialised, aligned 1-D arrays of so many elements each, as by flat."""
    dtype = np.dtype(dtype)
    rooms = rooms_of(dtype, *sizes)
    raw, start = allocate(sum(rooms)), 0
    arrays = []
    for size, room in zip(sizes, rooms):
        arrays.append(flat(raw[start:start + size * dtype.itemsize].view(dtype)))
        start += room
    yield arrays


def rooms_of(dtype: np.dtype, *sizes: int) -> list[int]:
    """The bytes that each of these arrays takes there."""
    return [-(-size * dtype.itemsize // WIDTH) * WIDTH + GAP for size in sizes]
