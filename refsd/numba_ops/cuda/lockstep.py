"""A GPU in Python: the threads of a block as greenlets, that run from barrier to barrier.

What front.py has for the compiler stands here by its meaning, under the same names. Threads run one
after the other, forwards or backwards (`order`), and one warp runs ahead as far as barriers allow,
so that a missing barrier shows. Memory of a block and of a thread begins as NaN; guarded.py says
what else is looked after.
"""

import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import greenlet
import numpy as np
from numpy import float16, float32, float64  # noqa: F401

from refsd.numba_ops.cuda import guarded, meaning, meaning_hopper
from refsd.numba_ops.cuda.guarded import THREADS, Guarded, Touched, Written
from refsd.numba_ops.cuda.meaning import *  # noqa: F403  the intrinsics
from refsd.numba_ops.cuda.meaning import current
from refsd.numba_ops.cuda.meaning_hopper import *  # noqa: F403

WARP = 32
order = 1  # -1: the last block runs first, and of each the last thread
_ELEMENTS = {"bfloat16": np.dtype(np.uint16)}
_OURS = frozenset((__file__, meaning.__file__, meaning_hopper.__file__, guarded.__file__))


def _integer(name):
    """The type of that name: so many bits when asked for, but 64 in a sum or product of two.

    That is what Numba does: (x << 16) >> 16 does not clear the upper half of a uint32 there.
    """
    narrow = getattr(np, name)
    wide, bits = (np.uint64 if name[0] == "u" else np.int64), 8 * narrow().itemsize
    low = 0 if name[0] == "u" else 1 << bits - 1

    def make(cls, value):
        return wide((int(value) + low & (1 << bits) - 1) - low)

    return type(name, (), {"__new__": make, "dtype": np.dtype(narrow)})


uint8, uint16, uint32, int8, int32, int64 = map(_integer, (
    "uint8", "uint16", "uint32", "int8", "int32", "int64"))


def array(dtype: str) -> np.dtype:
    """The type of a kernel's argument: a one-dimensional array. bfloat16 is its bits, uint16."""
    return _ELEMENTS.get(dtype) or np.dtype(dtype)


def device(function: Any) -> Any:
    """A function that kernels call."""
    return function


class _Indices:
    """cuda.threadIdx and its like: the current thread's."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, axis):
        return getattr(current(), self._name)["xyz".index(axis)]


class Thread(greenlet.greenlet):
    """One thread of a block: where it is, and what it waits for."""

    def __init__(self, kernel, block, index):
        super().__init__(kernel)
        self.block, self.index, self.waits, self.place = block, index, None, None
        self.threadIdx, self.blockIdx = (np.int32(index), np.int32(0), np.int32(0)), block.point
        self.blockDim, self.gridDim = block.size, block.grid
        self.value, self.copies, self.groups, self.synced = None, [], [], 0
        # Products of a warpgroup: asked for, begun, their sums; a fence that they want was there
        self.asked, self.begun, self.flying, self.fenced, self.unseen = [], [], None, False, False

    def wait(self, group: str, value: Any = None) -> list:
        """Until all threads of the group are here; the values of all, by thread."""
        frame, place = sys._getframe(1), []
        while frame is not None:  # a device function may be called from many lines
            code = frame.f_code
            if code.co_filename not in _OURS:
                place += code, frame.f_lasti
            frame = frame.f_back
        self.waits, self.place, self.value = group, place, value
        return self.parent.switch()


class Block:
    """The threads of one block, and the memory that they share."""

    def __init__(self, kernel, point, grid, threads, shared, arguments, time):
        self.point = tuple(map(np.int32, point))
        self.grid, self.size = tuple(map(np.int32, grid)), (np.int32(threads), np.int32(1),
                                                            np.int32(1))
        # Barriers are counted; `since` is the last one of all threads.
        self.time, self.born, self.since = time, time * THREADS, time * THREADS
        self.dynamic = memory(shared, np.uint8, 1024), Touched(shared)
        self.allocations: dict[Any, Guarded] = {}
        self.products: Any = None
        self.threads = [Thread(kernel, self, i) for i in range(threads)]
        self.groups = {kind: [self.threads[i:i + size] for i in range(0, threads, size)]
                       for kind, size in (("warp", WARP), ("warpgroup", 4 * WARP),
                                          ("block", threads))}
        self.arguments = arguments

    def run(self) -> None:
        """Until all threads have ended: each warp as far as it can go without the others."""
        for warp in self.groups["warp"][::order]:
            for thread in warp[::order]:
                thread.switch(*self.arguments)
            self._go_on(warp, "warp")
        while any(not thread.dead for thread in self.threads):
            met = [group for group in self.groups["warpgroup"] if _all_wait(group, "warpgroup")]
            group, kind = (met[::order][0], "warpgroup") if met else (self.threads, "block")
            self._release(group, kind)
            for warp in self.groups["warp"][::order]:
                self._go_on(warp, "warp")

    def _go_on(self, group: list[Thread], kind: str) -> None:
        while any(thread.waits == kind and not thread.dead for thread in group):
            self._release(group, kind)

    def _release(self, group: list[Thread], kind: str) -> None:
        """All threads of a group stand at one barrier of this kind, or RuntimeError: go on."""
        place = group[0].place
        if any(t.waits != kind or t.dead or t.place != place for t in group):
            raise RuntimeError(_diverged(group, kind))
        if kind == "warp" and len(group) < WARP:
            raise RuntimeError(f"a warp of {len(group)} threads, wanted {WARP}")
        values = [thread.value for thread in group]
        self.time += 1
        if kind == "block":
            self.since = self.time * THREADS
        for thread in group:
            thread.waits = None
        for thread in group[::order]:
            thread.switch(values)


def _diverged(group, kind):
    ended = [t for t in group if t.dead]
    places = sorted({f"{t.waits} in line {' from '.join(map(str, _lines(t.place)))}"
                     for t in group if not t.dead})
    return f"threads diverge at a barrier of the {kind}: " + ", ".join(
        [f"some wait for the {place}" for place in places] + ["some have ended"] * bool(ended))


def _lines(place):
    """The line of each call, the innermost first."""
    for code, at in zip(place[::2], place[1::2]):
        yield next(line for start, stop, line in code.co_lines() if start <= at < stop)


def _all_wait(group, kind):
    return all(thread.waits == kind and not thread.dead for thread in group)


def run(plan: Any, grid: tuple[int, ...], arguments: list) -> None:
    """Every block of a grid, one after the other. Arrays are one-dimensional NumPy arrays."""
    grid, time = (*grid, 1, 1)[:3], 1
    checked = [_argument(kind, value) for kind, value in zip(plan.signature, arguments,
                                                             strict=True)]
    points = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numbers overflow, and wrap around
        for point in points[::order]:
            block = Block(plan.kernel, point, grid, plan.threads, plan.shared, checked, time)
            block.run()
            time = block.time + 1


def _argument(kind: Any, value: Any) -> Any:
    """What a kernel is given, which is what its signature says."""
    if not isinstance(kind, np.dtype):
        number = kind(value)
        if isinstance(number, np.integer) and number != value:
            raise OverflowError(f"an argument is {value}, the kernel's signature says "
                                f"{kind.__name__}")
        return number
    if value.dtype != kind or value.ndim != 1 or not value.flags.c_contiguous:
        raise TypeError(f"an argument is {value.dtype} {value.shape}, the kernel's signature "
                        f"says a one-dimensional array of {kind}")
    return Guarded(value, touched=Written())


def memory(count: int, dtype: Any, alignment: int) -> np.ndarray:
    """Nothing is zero by itself: all bits are set, which is NaN."""
    nbytes = count * np.dtype(dtype).itemsize
    data = np.full(nbytes + alignment, 0xFF, np.uint8)
    first = -data.ctypes.data % alignment
    return data[first:first + nbytes].view(dtype)


def _dtype(kind):
    ours = getattr(kind, "dtype", None)
    return ours if isinstance(ours, np.dtype) else np.dtype(kind)


def _born(shape, kind, alignment):
    shape, dtype = shape if isinstance(shape, tuple) else (shape,), _dtype(kind)
    alignment = alignment or dtype.itemsize  # all that the compiler promises
    return Guarded(memory(math.prod(shape), dtype, alignment), shape, alignment)


def _shared(shape: Any, dtype: Any, alignment: int | None = None) -> Guarded:
    """One array for each call in the source; of shape 0: the dynamic memory."""
    block, frame = current().block, sys._getframe(1)
    key = frame.f_code, frame.f_lasti
    if key not in block.allocations:
        if shape == 0:
            data, touched = block.dynamic
            raw = data.view(_dtype(dtype))
            block.allocations[key] = Guarded(raw, None, 1024, touched.of(raw.itemsize))
        else:
            array = block.allocations[key] = _born(shape, dtype, alignment)
            array.touched = Touched(array.size)
    return block.allocations[key]


def _local(shape: Any, dtype: Any, alignment: int | None = None) -> Guarded:
    """Each thread's own."""
    return _born(shape, dtype, alignment)


def _shuffle(pick):
    def shuffle(mask, value, lane):
        me = current()
        if mask & 0xFFFFFFFF != 0xFFFFFFFF:
            raise ValueError(f"a shuffle of some lanes, mask {mask:#x}: wanted all, 0xFFFFFFFF")
        if not isinstance(value, np.generic):
            raise TypeError(f"a shuffle of a {type(value).__name__}, wanted a number of the GPU's")
        values = me.wait("warp", value)
        source = pick(me.index % WARP, int(lane))
        return values[source] if 0 <= source < WARP else value
    return shuffle


def _syncwarp(mask=0xFFFFFFFF):
    me = current()
    me.wait("warp")
    me.synced = me.block.time * THREADS


cuda = SimpleNamespace(
    threadIdx=_Indices("threadIdx"), blockIdx=_Indices("blockIdx"),
    blockDim=_Indices("blockDim"), gridDim=_Indices("gridDim"),
    syncthreads=lambda: current().wait("block") and None,
    syncwarp=_syncwarp,
    shfl_sync=_shuffle(lambda me, lane: lane % WARP),
    shfl_xor_sync=_shuffle(lambda me, lane: me ^ lane),
    shfl_down_sync=_shuffle(lambda me, lane: me + lane),
    shfl_up_sync=_shuffle(lambda me, lane: me - lane),
    shared=SimpleNamespace(array=_shared),
    local=SimpleNamespace(array=_local),
)
