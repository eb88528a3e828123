"""Memory for large results, whose pages are touched once.

A fresh page costs more than writing it: the system clears it at its first touch, and a virtual
machine whose host has taken it back waits for the host as well. So the memory of results that are
gone serves the next ones, of whatever size: it is one arena, a range of addresses, in which free
neighbours become one block, and a result takes the beginning of the smallest that holds it.
"""

import ctypes
import logging
import mmap
import os
import threading
from bisect import bisect
from collections import deque
from contextlib import suppress
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)
LEAST = 2**20  # bytes; smaller pieces the C library keeps by itself
MOST_IDLE = 2**30  # bytes that may wait for results to come
LINE = 64  # bytes of a line of the cache: pieces begin at one


class Places:
    """Which bytes of a range of addresses are taken, and which have memory. It has none itself.

    free_list: (start, bytes), by their starts. used: what of them may have memory. touched: where
    the first byte is that never had any. resident: the most bytes that had memory at once.
    """

    def __init__(self, size: int):
        self.free_list = [(0, size)]
        self.used: list[tuple[int, int]] = []
        self.touched = self.taken = self.resident = 0

    def place(self, size: int) -> tuple[int, int] | None:
        """The beginning of the smallest free block that holds it, and its length in whole lines."""
        room = -(-size // LINE) * LINE
        fitting = [(n, start) for start, n in self.free_list if n >= room]
        if not fitting:
            return None
        n, start = min(fitting)
        at = self.free_list.index((start, n))
        self.free_list[at:at + 1] = [(start + room, n - room)] if n > room else []
        self.used = _without(self.used, start, start + room)
        self.touched, self.taken = max(self.touched, start + room), self.taken + room
        self.shrink_to(MOST_IDLE)
        self.resident = max(self.resident, self.taken + sum(n for _, n in self.used))
        return start, room

    def free(self, start: int, room: int) -> None:
        """Put a block on the free list, neighbours as one."""
        self.taken -= room
        _join(self.free_list, start, room)
        _join(self.used, start, room)

    def shrink_to(self, most: int) -> None:
        """Give up the memory of free blocks if more than `most` bytes have some."""
        if sum(n for _, n in self.used) <= most:
            return
        for start, n in self.free_list:
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = min(start + n, self.touched) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self.release(first, last - first)
        self.used = []

    def release(self, start: int, size: int) -> None:
        """What giving up whole pages takes: nothing, where there is no memory."""


class Arena(Places):
    """`size` bytes of address space; memory comes where it is written to."""

    def __init__(self, size: int):
        super().__init__(size)
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):  # a hint, which not every system takes
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.returned: deque[tuple[int, int]] = deque()  # blocks that no array is on any more
        self.lock = threading.Lock()

    def take(self, size: int) -> np.ndarray | None:
        """Uninitialised bytes, or None if no free block holds them."""
        with self.lock:
            self._collect()
            block = self.place(size)
        return None if block is None else np.asarray(_Allocation(self, *block, size))

    def idle(self) -> int:
        """Bytes in memory that nobody uses, but for parts of pages."""
        with self.lock:
            self._collect()
            return sum(n for _, n in self.used)

    def shrink(self, most: int) -> None:
        """Give the free blocks' memory back to the system if more than `most` bytes are idle."""
        with self.lock:
            self._collect()
            self.shrink_to(most)

    def release(self, start: int, size: int) -> None:
        """To the system."""
        self.memory.madvise(mmap.MADV_DONTNEED, start, size)

    def _collect(self) -> None:
        while self.returned:
            self.free(*self.returned.popleft())


def _join(spans, start, n):
    """Add a span to others (start, bytes) in their order, as one with its neighbours."""
    at = bisect(spans, (start, n))
    if at < len(spans) and spans[at][0] == start + n:
        n += spans.pop(at)[1]
    if at > 0 and sum(spans[at - 1]) == start:
        at -= 1
        start, n = start - spans[at][1], n + spans.pop(at)[1]
    spans.insert(at, (start, n))


def _without(spans, low, high):
    """What of spans (start, bytes) lies outside of low .. high - 1"""
    parts = [part for start, n in spans
             for part in ((start, min(start + n, low)), (max(start, high), start + n))]
    return [(first, last - first) for first, last in parts if first < last]


class _Allocation:
    """A block under NumPy's array interface: the last array that holds it frees it."""

    def __init__(self, arena: Arena, start: int, room: int, size: int):
        self.arena, self.block = arena, (start, room)
        self.__array_interface__ = {"data": (arena.address + start, False), "shape": (size,),
                                    "typestr": "|u1", "version": 3}

    def __del__(self):
        # Not under the lock: this may be called within `take`, by the thread that holds it.
        self.arena.returned.append(self.block)


def _reserve() -> Arena | None:
    """Address space for half of the memory; None where address space is counted as memory."""
    try:
        import resource

        limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
        memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        if not (limited or strict):
            return Arena(memory // 2)
        reason: object = "address space is limited" if limited else "memory is not overcommitted"
    except (ImportError, OSError) as problem:  # not Linux, or it has forbidden that
        reason = problem
    logger.info("results are not pooled: %s", reason)
    return None


def _after_fork() -> None:
    if _arena is not None:
        _arena.lock = threading.Lock()  # another thread may have held it


_arena = _reserve()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def take(size: int) -> np.ndarray:
    """`size` uninitialised bytes, of arrays that are gone or fresh."""
    block = None if size < LEAST or _arena is None else _arena.take(size)
    return np.empty(size, np.uint8) if block is None else block


def shrink(most: int) -> None:
    """Give idle memory back to the system if it is more than `most` bytes."""
    if _arena is not None:
        _arena.shrink(most)


def trim() -> None:
    """Have the C library give back what it keeps; idle memory here serves the next stage as well.

    After loading a model that is what its file was read into.
    """
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if found is not None:
        found(0)


def idle_bytes() -> int:
    """Memory that waits for the next result."""
    return 0 if _arena is None else _arena.idle()
