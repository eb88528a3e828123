"""The loops around every element-wise formula: over one array, or over two that broadcast.

A formula is a small function of SIMD vectors; the same text runs on whole vectors and on the last,
shorter one. Tasks are blocks of a fixed size, so that any number of threads can share them.
"""

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from numba import prange

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import count_copy, dense, empty, empty_like, flat
from refsd.numba_ops.simd import lanes, load, masked_load, masked_store, store

# Elements of one task, and of one row where an array has no rows of its own.
BLOCK, ROW = 2**14, 2**12
# Elements that NumPy copies sooner than threads are told to.
ALONE = 2**16


def each(formula):
    """A function of an array of any layout, and of numbers: y = formula(x, *numbers).

    The formula must be `register_jitable` and known to its module by its name: the compiled loop is
    found in the cache by what it was made of.
    """

    @jit(parallel=True)
    def loop(x, y, numbers):
        size = lanes(x)
        for task in prange((x.size + BLOCK - 1) // BLOCK):
            start = np.int64(task) * BLOCK
            stop = min(start + BLOCK, x.size)
            for i in range(start, stop - size + 1, size):
                store(y, i, formula(load(x, i), *numbers))
            rest = (stop - start) % size
            if rest > 0:
                last = formula(masked_load(x, stop - rest, rest), *numbers)
                masked_store(y, stop - rest, last, rest)

    def apply(x, *numbers):
        y = empty_like(x)
        if y.size:
            loop(flat(broadcast_like(y, x)), flat(y), numbers)
        return y

    return apply


def pairwise(formula):
    """A function of an array, and an array or a number, with broadcasting: y = formula(a, b)."""
    with_number = each(formula)

    @jit(parallel=True)
    def loop(a, b, row, period, y):
        # Row r of a meets row r // period of b. The last row may be shorter.
        size = lanes(a)
        rows = (a.size + row - 1) // row
        tall = max(1, BLOCK // row)
        for task in prange((rows + tall - 1) // tall):
            first = np.int64(task) * tall
            for r in range(first, min(first + tall, rows)):
                at, other, count = r * row, r // period * row, min(row, a.size - r * row)
                for i in range(0, count - size + 1, size):
                    store(y, at + i, formula(load(a, at + i), load(b, other + i)))
                rest = count % size
                if rest > 0:
                    i = count - rest
                    last = formula(masked_load(a, at + i, rest), masked_load(b, other + i, rest))
                    masked_store(y, at + i, last, rest)

    def apply(a, b):
        if not isinstance(b, np.ndarray):
            return with_number(a, float(b))
        shape = np.broadcast_shapes(a.shape, b.shape)
        if b.size == 1 and a.shape == shape:
            return with_number(a, float(b.reshape(())))

        whole = [x for x in (a, b) if x.shape == shape]
        y = empty_like(whole[0]) if whole else empty(shape, a.dtype)
        if y.size:
            loop(flat(broadcast_like(y, a)), *_rows_of(b, y), flat(y))
        return y

    return apply


def broadcast_like(y, x):
    """x broadcast to y's shape, with y's strides: a view where it lies so already, else a copy."""
    if x.shape == y.shape and x.flags.aligned and (x.strides == y.strides or all(
            n == 1 or s == t for n, s, t in zip(x.shape, x.strides, y.strides))):
        return x
    count_copy()
    copy = empty_like(y)
    copy[...] = x
    return copy


def _rows_of(b, y):
    """b's memory, the length of a row, and how many of y's rows in memory meet one of b's.

    b may have a value for each position along y's innermost axes in memory (a bias a channel, a
    vector a position), or one row along the innermost for each position along the outermost (an
    image's biases). Any other b is broadcast first.
    """
    if b.shape != y.shape:
        order = sorted((i for i in range(y.ndim) if y.shape[i] > 1), key=lambda i: -y.strides[i])
        shape = (1,) * (y.ndim - b.ndim) + b.shape
        broadcast_axes = [i for i in order if shape[i] > 1]
        inner = broadcast_axes == order[len(order) - len(broadcast_axes):]
        if broadcast_axes and (inner or broadcast_axes == [order[0], order[-1]]):
            rows = b.reshape(shape).transpose(sorted(range(y.ndim), key=lambda i: -y.strides[i]))
            row = b.size if inner else y.shape[order[-1]]
            return flat(dense(rows)), row, y.size // b.size
    return flat(broadcast_like(y, b)), ROW, 1
