"""Arrays as kernels want them: flat, aligned, unit stride."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from refsd.dense import to_dense
from refsd.half import HALVES
from refsd.leaf import Weight
from refsd.numba_ops import pool
from refsd.numba_ops.simd import WIDTH, lanes
from refsd.numba_ops.tile import VECTORS

# Halves as Numba knows them: two bytes in a structure, whose field's name says which; "bits"
# are moved as they are.
STRUCTURES = {name: np.dtype([(name, np.uint16)], align=True) for name in (*HALVES, "bits")}
SMALL = 2**13  # elements of a result that may lie anywhere

_layout_copies = 0


class _Memory:
    """A piece of memory under NumPy's array interface, always writable as kernels type it.

    Numba compiles a kernel anew for read-only arrays; kernels never write to their inputs.
    """

    def __init__(self, owner, shape, strides):
        self.owner = owner
        self.__array_interface__ = {
            "data": (owner.__array_interface__["data"][0], False), "shape": shape,
            "strides": strides, "typestr": owner.dtype.str, "version": 3}


def computed_dtype(dtype: np.dtype) -> np.dtype:
    """What kernels compute in: float32 for halves, else the dtype itself."""
    return np.dtype(np.float32) if np.dtype(dtype).itemsize == 2 else np.dtype(dtype)


def flat(array: np.ndarray) -> np.ndarray:
    """The memory from the first element to the last of an array with positive strides, as 1-D.

    Of halves, the STRUCTURES that kernels take them as.
    """
    if array.itemsize == 2:
        array = array.view(STRUCTURES[array.dtype.name])
    flags = array.flags
    if flags.c_contiguous and flags.writeable and flags.aligned:
        return array.reshape(-1)
    if array.size == 0:
        return np.empty(0, array.dtype)
    extent = 1 + sum((n - 1) * (s // array.itemsize) for n, s in zip(array.shape, array.strides))
    memory = np.asarray(_Memory(array, (extent,), (array.itemsize,)))
    return memory.view(array.dtype)  # the interface calls structures bytes


def as_bits(memory: np.ndarray) -> np.ndarray:
    """Flat memory for kernels that only move it: of halves their bits, neither widened nor rounded.
    """
    return memory.view(STRUCTURES["bits"]) if memory.itemsize == 2 else memory


def layout_copies() -> int:
    """How many arrays have been copied so far for no other reason than how they lay in memory.

    Activations, and weights that were not packed (weights.py). The copy with zeros around it that
    a convolution computes on is not one.
    """
    return _layout_copies


def count_copy() -> None:
    """To be called where such a copy is made."""
    global _layout_copies
    _layout_copies += 1


def dense(x: np.ndarray) -> np.ndarray:
    """x if its elements are aligned and adjacent in C order, else a copy, which is counted."""
    if x.flags.c_contiguous and x.flags.aligned:
        return x
    count_copy()
    return np.require(x, None, "CA")


def as_rows(x: np.ndarray) -> tuple[np.ndarray, int, int]:
    """x (..., K) as rows of adjacent elements: flat memory, their number, the step between them.

    A view where the strides allow it, else a copy, which is counted.
    """
    rows = x.reshape(-1, x.shape[-1])
    if not np.may_share_memory(rows, x):
        count_copy()
    good = (rows.flags.aligned and rows.strides[1] == x.itemsize
            and rows.strides[0] % x.itemsize == 0 and rows.strides[0] > 0)
    if not good:
        rows = dense(rows)
    return flat(rows), rows.shape[0], rows.strides[0] // x.itemsize


def allocate_from_pool(size: int) -> np.ndarray:
    """Memory of arrays that are gone, or fresh."""
    raw = pool.take(size + WIDTH)
    start = -raw.__array_interface__["data"][0] % WIDTH
    return raw[start:start + size]


def empty_from_pool(shape: tuple[int, ...] | int, dtype: np.dtype) -> np.ndarray:
    """An array of it, whatever places results just now (`allocating_with`)."""
    dtype = np.dtype(dtype)
    return allocate_from_pool(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


_allocator: ContextVar[Callable[[int], np.ndarray]] = ContextVar(
    "refsd_allocator", default=allocate_from_pool)


@contextmanager
def allocating_with(allocate: Callable[[int], np.ndarray]) -> Iterator[None]:
    """Within the block results and workspaces lie in what allocate(bytes) gives.

    That is 1-D uint8, writable, from a multiple of WIDTH on. What compiled code allocates, and what
    is kept of a weight (weights.py), lies elsewhere.
    """
    token = _allocator.set(allocate)
    try:
        yield
    finally:
        _allocator.reset(token)


def allocate(size: int) -> np.ndarray:
    """`size` uninitialised bytes from a multiple of the vector width on."""
    return _allocator.get()(size)


def aligned_empty(size: int, dtype: np.dtype) -> np.ndarray:
    """The same as `size` elements."""
    dtype = np.dtype(dtype)
    return allocate(size * dtype.itemsize).view(dtype)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory for a result. NumPy's own begins 16 bytes into a line of the cache.

    Small ones may do so: finding the line would take longer than what it saves.
    """
    size = math.prod(shape)
    if size < SMALL and _allocator.get() is allocate_from_pool:
        return np.empty(shape, dtype)
    return aligned_empty(size, dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The same, filled with zeros; NumPy's own, whose fresh pages are zero, unless replaced."""
    if _allocator.get() is allocate_from_pool:
        return np.zeros(shape, dtype)
    y = empty(shape, dtype)
    y[...] = 0
    return y


def empty_like(x: np.ndarray) -> np.ndarray:
    """The same, with the axes in the same order in memory as those of x, and no gaps."""
    if x.flags.c_contiguous:
        return empty(x.shape, x.dtype)
    order = sorted(range(x.ndim), key=lambda i: -abs(x.strides[i]))
    y = empty(tuple(x.shape[i] for i in order), x.dtype)
    return y.transpose(sorted(range(x.ndim), key=order.__getitem__))


def panel_width(dtype: np.dtype) -> int:
    """Columns that a tile computes at once."""
    return VECTORS * lanes(np.dtype(dtype))


def fill_up(vector: np.ndarray | Weight | None, size: int, dtype: np.dtype) -> np.ndarray:
    """A bias as long as a panel that begins at any of its columns: zeros behind it.

    In what kernels compute in: a bias is added before a result is rounded to dtype.
    """
    full = zeros((size + panel_width(dtype),), computed_dtype(dtype))
    if vector is not None:
        full[:size] = to_dense(vector)
    return full


def address_range(array: np.ndarray) -> tuple[int, int]:
    """The addresses where the memory begins and ends that an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes
