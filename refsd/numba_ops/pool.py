"""Memory for large results, whose pages are touched once.

A fresh page costs more than writing it: the system clears it at its first touch, and a virtual
machine whose host has taken it back waits for the host as well. So the memory of results that are
gone serves the next ones, of whatever size: it is one stretch of address space, in which
neighbouring holes become one, and a result takes the beginning of the smallest hole that holds it.
"""

import ctypes
import mmap
import os
import threading
from bisect import bisect
from collections import deque
from pathlib import Path

import numpy as np

LEAST = 2**20  # bytes; smaller pieces the C library keeps by itself
MOST_IDLE = 2**30  # bytes that may wait for results to come
LINE = 64  # bytes of a line of the cache: pieces begin at one


class Stretch:
    """`size` bytes of address space; memory comes where it is written to."""

    def __init__(self, size: int):
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.holes = [(0, size)]  # (start, bytes), by their starts
        self.lent = self.touched = 0  # bytes of pieces in use; where the first untouched byte is
        self.returned: deque[tuple[int, int]] = deque()  # pieces that no array is on any more
        self.lock = threading.Lock()

    def take(self, size: int) -> np.ndarray | None:
        """Uninitialised bytes, or None if no hole holds them."""
        room = -(-size // LINE) * LINE
        with self.lock:
            self._collect()
            fitting = [(n, start) for start, n in self.holes if n >= room]
            if not fitting:
                return None
            n, start = min(fitting)
            at = self.holes.index((start, n))
            self.holes[at:at + 1] = [(start + room, n - room)] if n > room else []
            self.lent, self.touched = self.lent + room, max(self.touched, start + room)
            self._shrink(MOST_IDLE)
        return np.asarray(_Loan(self, start, size, room))

    def idle(self) -> int:
        """Bytes that were touched and that nobody uses."""
        with self.lock:
            self._collect()
            return self.touched - self.lent

    def shrink(self, most: int) -> None:
        """Give the memory of all holes back to the system if more than `most` bytes are idle."""
        with self.lock:
            self._collect()
            self._shrink(most)

    def _collect(self) -> None:
        """Make holes of the pieces that came back, and one hole of neighbours."""
        while self.returned:
            start, n = self.returned.popleft()
            self.lent -= n
            at = bisect(self.holes, (start, n))
            if at < len(self.holes) and self.holes[at][0] == start + n:
                n += self.holes.pop(at)[1]
            if at > 0 and sum(self.holes[at - 1]) == start:
                at -= 1
                start, n = start - self.holes[at][1], n + self.holes.pop(at)[1]
            self.holes.insert(at, (start, n))

    def _shrink(self, most: int) -> None:
        if self.touched - self.lent <= most:
            return
        for start, n in self.holes:
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = min(start + n, self.touched) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self.memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        start, n = self.holes[-1]
        if start + n >= self.touched:
            self.touched = start


class _Loan:
    """A piece under NumPy's array interface: arrays hold the loan, and the last one ends it."""

    def __init__(self, stretch: Stretch, start: int, size: int, room: int):
        self.stretch, self.piece = stretch, (start, room)
        self.__array_interface__ = {"data": (stretch.address + start, False), "shape": (size,),
                                    "typestr": "|u1", "version": 3}

    def __del__(self):
        # Not under the lock: this may be called within `take`, by the thread that holds it.
        self.stretch.returned.append(self.piece)


def _reserve() -> Stretch | None:
    """Address space for half of the memory; None where address space is counted as memory."""
    try:
        import resource

        limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
        memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        return None if limited or strict else Stretch(memory // 2)
    except (ImportError, OSError):  # not Linux, or it has forbidden that
        return None


def _after_fork() -> None:
    if _stretch is not None:
        _stretch.lock = threading.Lock()  # another thread may have held it


_stretch = _reserve()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def take(size: int) -> np.ndarray:
    """`size` uninitialised bytes, of arrays that are gone or fresh."""
    found = None if size < LEAST or _stretch is None else _stretch.take(size)
    return np.empty(size, np.uint8) if found is None else found


def shrink(most: int) -> None:
    """Give idle memory back to the system if it is more than `most` bytes."""
    if _stretch is not None:
        _stretch.shrink(most)


def trim() -> None:
    """Have the C library give back what it keeps; idle memory here serves the next stage as well.

    After loading a model that is what its file was read into.
    """
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if found is not None:
        found(0)


def idle_bytes() -> int:
    """Memory that waits for the next result."""
    return 0 if _stretch is None else _stretch.idle()
