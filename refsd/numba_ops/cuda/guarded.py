"""Memory as a kernel sees it in lockstep: what hardware would let pass in silence is an error here.

An index outside, a vector that lies across its alignment, a number of another type than the memory
(a float64 that crept in), and a *race*: two threads touch one element, one of them writes, and no
barrier is between. Two threads of a warp are ordered by `syncwarp`, others by `syncthreads`, blocks
by nothing. A race is seen whatever the order in which threads happen to run.
"""

from operator import index as integer
from typing import Any

import greenlet
import numpy as np

THREADS = 4096  # more than a block has: time * THREADS + thread is when, and who
FLYING = 1 << 62  # the time of a copy that was not waited for yet
_WIDE = {"u": np.uint64, "i": np.int64}


class Guarded:
    """An array of a kernel. raw: its elements, one-dimensional, whatever its shape is."""

    __slots__ = ("raw", "shape", "deep", "size", "dtype", "kind", "wide", "alignment", "touched")

    def __init__(self, raw: np.ndarray, shape: Any = None, alignment: int = 0, touched: Any = None):
        self.raw, self.size, self.dtype, self.kind = raw, raw.size, raw.dtype, raw.dtype.type
        self.shape = (raw.size,) if shape is None else shape
        self.deep = len(self.shape) > 1
        self.wide = _WIDE.get(raw.dtype.kind)  # Numba computes with integers in 64 bits
        self.alignment = alignment or raw.ctypes.data & -raw.ctypes.data
        self.touched = touched

    def __getitem__(self, index: Any) -> Any:
        i = self.place(index) if self.deep else integer(index)
        if not 0 <= i < self.size:
            raise IndexError(f"index {i} is outside of {self.shape}")
        if self.touched is not None:
            self.touched.read(i, i + 1)
        value = self.raw[i]
        return self.wide(value) if self.wide else value

    def __setitem__(self, index: Any, value: Any) -> None:
        i = self.place(index) if self.deep else integer(index)
        if not 0 <= i < self.size:
            raise IndexError(f"index {i} is outside of {self.shape}")
        if type(value) is not self.kind and not (self.wide and hasattr(value, "__index__")):
            raise TypeError(f"a {type(value).__name__} is written to memory of {self.dtype}")
        if self.touched is not None:
            self.touched.write(i, i + 1)
        self.raw[i] = value

    def place(self, index: tuple) -> int:
        """Where the element of several indices is; IndexError if it is not."""
        if type(index) is not tuple or len(index) != len(self.shape):
            raise IndexError(f"index {index} for an array of shape {self.shape}")
        i = 0
        for part, size in zip(index, self.shape):
            if not 0 <= integer(part) < size:
                raise IndexError(f"index {index} is outside of {self.shape}")
            i = i * size + integer(part)
        return i

    def vector(self, index: Any, nbytes: int, what: str, touch: str | None = "read") -> np.ndarray:
        """Neighbours in one access, which begin at a multiple of its bytes."""
        count, i = nbytes // self.dtype.itemsize, integer(index)
        if i % count or self.alignment % nbytes:
            raise IndexError(f"{what} at element {i} of {self.dtype} memory that is aligned to "
                             f"{self.alignment} bytes: wanted a multiple of {nbytes}")
        if not 0 <= i <= self.size - count:
            raise IndexError(f"{what} at element {i} of {self.size}: out of bounds")
        if self.touched is not None and touch:
            getattr(self.touched, touch)(i, i + count)
        return self.raw[i:i + count]


class Touched:
    """For each element of shared memory, who wrote it last and who read it, and when.

    scale: units of an element, where views of several types share one memory.
    """

    __slots__ = ("writes", "reads", "others", "scale")

    def __init__(self, count: int, scale: int = 1):
        self.writes, self.reads, self.others = [-1] * count, [-1] * count, [-1] * count
        self.scale = scale

    def of(self, scale: int) -> "Touched":
        """The same memory in elements of so many units."""
        other = Touched(0, scale)
        other.writes, other.reads, other.others = self.writes, self.reads, self.others
        return other

    def read(self, start: int, stop: int) -> None:
        """The current thread reads these elements."""
        me = greenlet.getcurrent()
        now, since, reads = me.block.time * THREADS + me.index, me.block.since, self.reads
        for i in range(start * self.scale, stop * self.scale):
            before = self.writes[i]
            if before < 0:
                raise RuntimeError(f"element {i // self.scale} of shared memory is read, and "
                                   "nothing was written there")
            if before >= since:
                _ordered(me, before, i // self.scale)
            if reads[i] % THREADS != me.index:
                self.others[i] = reads[i]
            reads[i] = now

    def fly(self, start: int, stop: int) -> None:
        """A copy of the current thread's is on the way to these elements."""
        self.write(start, stop)
        self.writes[start * self.scale:stop * self.scale] = (
            [FLYING] * ((stop - start) * self.scale))

    def write(self, start: int, stop: int) -> None:
        """The current thread writes these elements."""
        me = greenlet.getcurrent()
        now, since = me.block.time * THREADS + me.index, me.block.since
        for i in range(start * self.scale, stop * self.scale):
            for before in (self.writes[i], self.reads[i], self.others[i]):
                if before >= since:
                    _ordered(me, before, i // self.scale)
            self.writes[i] = now

    def arrive(self, start: int, stop: int) -> None:
        """The current thread's copy to these elements is done."""
        me = greenlet.getcurrent()
        now, count = me.block.time * THREADS + me.index, (stop - start) * self.scale
        self.writes[start * self.scale:stop * self.scale] = [now] * count


class Written:
    """For elements of global memory, who wrote them, and when."""

    __slots__ = ("writes",)

    def __init__(self):
        self.writes: dict[int, int] = {}

    def read(self, start: int, stop: int) -> None:
        """The current thread reads these elements."""
        if self.writes:
            me = greenlet.getcurrent()
            for i in range(start, stop):
                self._check(me, i)

    def write(self, start: int, stop: int) -> None:
        """The current thread writes these elements."""
        me = greenlet.getcurrent()
        for i in range(start, stop):
            self._check(me, i)
            self.writes[i] = me.block.time * THREADS + me.index

    def _check(self, me, i):
        before = self.writes.get(i, -1)
        if before >= me.block.since:
            _ordered(me, before, i)
        elif 0 <= before < me.block.born:
            raise RuntimeError(f"a race: element {i} of global memory was written by another block")


def _ordered(me, before, i):
    """RuntimeError unless what was done since the last barrier of the block was before this."""
    if before == FLYING:
        raise RuntimeError(f"element {i} of shared memory is touched before the copy to it was "
                           "waited for")
    other = before % THREADS
    if other == me.index or other // 32 == me.index // 32 and before < me.synced:
        return
    raise RuntimeError(f"a race: threads {other} and {me.index} touch element {i}, one of them "
                       "writes, and no barrier is between")
