"""A GPU in Python: the threads of a block as greenlets, that run from barrier to barrier.

What front.py has for the compiler stands here by its meaning, under the same names. Threads run one
after the other, forwards or backwards (`order`), and one warp runs ahead as far as barriers allow,
so that a missing barrier shows. Memory of a block and of a thread begins as NaN.
"""

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import greenlet
import numpy as np
from numpy import float16, float32, float64, int8, int32, int64, uint8, uint16, uint32  # noqa: F401

from refsd.numba_ops.cuda.meaning import *  # noqa: F403  the intrinsics
from refsd.numba_ops.cuda.meaning import current

WARP = 32
order = 1  # -1: the last thread of a block runs first
_ELEMENTS = {"bfloat16": np.dtype(np.uint16)}


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
        self.block, self.index, self.waits, self.place, self.answer = block, index, None, None, None
        self.threadIdx, self.blockIdx = (np.int32(index), np.int32(0), np.int32(0)), block.point
        self.blockDim, self.gridDim = block.size, block.grid
        self.value, self.copies, self.groups = None, [], []

    def wait(self, group: str, value: Any = None) -> list:
        """Until all threads of the group are here; the values of all, by thread."""
        frame = sys._getframe(1)
        while frame.f_code.co_filename.endswith(("lockstep.py", "meaning.py")):
            frame = frame.f_back
        self.waits, self.place, self.value = group, frame.f_lineno, value
        return self.parent.switch()


class Block:
    """The threads of one block, and the memory that they share."""

    def __init__(self, kernel, point, grid, threads, shared, arguments):
        self.point = tuple(map(np.int32, point))
        self.grid, self.size = tuple(map(np.int32, grid)), (np.int32(threads), np.int32(1),
                                                            np.int32(1))
        self.dynamic = np.full(shared, 0xFF, np.uint8)
        self.allocations: dict[Any, np.ndarray] = {}
        self.products: Any = None
        self.threads = [Thread(kernel, self, i) for i in range(threads)]
        self.arguments = arguments

    def run(self) -> None:
        """Until all threads have ended."""
        for thread in self.threads[::order]:
            thread.switch(*self.arguments)
        while group := self._released():
            for thread in group[::order]:
                thread.waits = None
                thread.switch(thread.answer)

    def _released(self) -> list[Thread]:
        """The next to run: a warp that need not wait for others, else all, from their barrier."""
        live = [thread for thread in self.threads if not thread.dead]
        if not live:
            return []
        ready = [*self._together(live, "warp", WARP), *self._together(live, "warpgroup", 4 * WARP)]
        group = ready[0 if order > 0 else -1] if ready else live
        if not ready and any(thread.waits != "block" for thread in live):
            raise RuntimeError("threads of a warp diverge: " + ", ".join(sorted(
                {f"line {t.place} waits for the {t.waits}" for t in live})))
        if not ready and len(live) < len(self.threads):
            raise RuntimeError(f"threads have ended, others wait in line {live[0].place}")
        if len({thread.place for thread in group}) > 1:
            raise RuntimeError("one barrier is waited for in lines " + ", ".join(
                sorted({str(t.place) for t in group})))
        values = [thread.value for thread in group]
        for thread in group:
            thread.answer = values
        return group

    @staticmethod
    def _together(live: list[Thread], kind: str, count: int) -> list[list[Thread]]:
        groups: dict[int, list[Thread]] = {}
        for thread in live:
            groups.setdefault(thread.index // count, []).append(thread)
        return [group for group in groups.values() if all(t.waits == kind for t in group)]


def run(plan: Any, grid: tuple[int, ...], arguments: list) -> None:
    """Every block of a grid, one after the other. Arrays are one-dimensional NumPy arrays."""
    grid = (*grid, 1, 1)[:3]
    checked = [_argument(kind, value) for kind, value in zip(plan.signature, arguments,
                                                             strict=True)]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # unsigned numbers wrap around
        for z in range(grid[2]):
            for y in range(grid[1]):
                for x in range(grid[0]):
                    Block(plan.kernel, (x, y, z), grid, plan.threads, plan.shared, checked).run()


def _argument(kind: Any, value: Any) -> Any:
    """What a kernel is given, which is what its signature says."""
    if isinstance(kind, np.dtype):
        if value.dtype != kind or value.ndim != 1 or not value.flags.c_contiguous:
            raise TypeError(f"an argument is {value.dtype} {value.shape}, the kernel's signature "
                            f"says a one-dimensional array of {kind}")
        return value.view(Guarded)
    return kind(value)


class Guarded(np.ndarray):
    """Memory that knows its end: a negative index is an error and not the last element."""

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)) and index < 0:
            raise IndexError(f"index {index} is below 0")
        return super().__getitem__(index)

    def __setitem__(self, index, value):
        if isinstance(index, (int, np.integer)) and index < 0:
            raise IndexError(f"index {index} is below 0")
        super().__setitem__(index, value)


def _born(shape: Any, dtype: Any) -> np.ndarray:
    """Nothing is zero by itself: all bits are set, which is NaN."""
    memory = np.empty(shape, dtype)
    memory.view(np.uint8).fill(0xFF)
    return memory.view(Guarded)


def _shared(shape: Any, dtype: Any, alignment: int | None = None) -> np.ndarray:
    """One array for each line of a kernel that asks for it; of shape 0: the dynamic memory."""
    block, frame = current().block, sys._getframe(1)
    if shape == 0:
        return block.dynamic.view(dtype).view(Guarded)
    key = frame.f_code, frame.f_lineno
    if key not in block.allocations:
        block.allocations[key] = _born(shape, dtype)
    return block.allocations[key]


def _shuffle(pick):
    def shuffle(mask, value, lane):
        me = current()
        values = me.wait("warp", value)
        source = pick(me.index % WARP, int(lane))
        return values[source] if 0 <= source < len(values) else value
    return shuffle


cuda = SimpleNamespace(
    threadIdx=_Indices("threadIdx"), blockIdx=_Indices("blockIdx"),
    blockDim=_Indices("blockDim"), gridDim=_Indices("gridDim"),
    syncthreads=lambda: current().wait("block") and None,
    syncwarp=lambda mask=-1: current().wait("warp") and None,
    shfl_sync=_shuffle(lambda me, lane: lane % WARP),
    shfl_xor_sync=_shuffle(lambda me, lane: me ^ lane),
    shfl_down_sync=_shuffle(lambda me, lane: me + lane),
    shfl_up_sync=_shuffle(lambda me, lane: me - lane),
    shared=SimpleNamespace(array=_shared),
    local=SimpleNamespace(array=lambda shape, dtype, alignment=None: _born(shape, dtype)),
)
