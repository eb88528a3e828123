"""Moving data without changing it: views where memory allows, else copies in parallel."""

import math

import numpy as np
from numba import prange

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_bits, count_copy, dense, empty, flat
from refsd.numba_ops.pointwise import ALONE, BLOCK
from refsd.numba_ops.simd import lanes, load, masked_load, masked_store, pointer, store
from refsd.registry import kernel


@kernel("numba", reads_halves=True)
def to_tokens(x):
    return as_tokens(x)


@kernel("numba", reads_halves=True)
def to_image(x, *, height, width):
    return as_image(x, (x.shape[0], x.shape[-1], height, width))


@kernel("numba", reads_halves=True)
def concat(arrays, *, axis):
    first = arrays[0]
    axis %= first.ndim
    size = sum(a.shape[axis] for a in arrays)
    y = _empty((*first.shape[:axis], size, *first.shape[axis + 1:]), first)
    start = 0
    for a in arrays:
        copy_into(a, _along(y, axis, start, start + a.shape[axis]))
        start += a.shape[axis]
    return y


@kernel("numba", reads_halves=True)
def slice(x, *, axis, start, stop):
    return _along(x, axis % x.ndim, start, stop)


@kernel("numba", reads_halves=True)
def pad(x, *, widths):
    y = _empty([before + n + after for n, (before, after) in zip(x.shape, widths)], x)
    y[...] = 0
    copy_into(x, y[tuple(np.s_[before:before + n] for n, (before, _) in zip(x.shape, widths))])
    return y


@kernel("numba", reads_halves=True)
def transpose(x, *, axes):
    return np.transpose(x, axes)


@kernel("numba", reads_halves=True)
def reshape(x, *, shape):
    y = x.reshape(shape)
    if not np.may_share_memory(y, x):
        count_copy()
    return y


def _along(x, axis, start, stop):
    """x[..., start:stop, ...], a view"""
    return x[(np.s_[:],) * axis + (np.s_[start:stop],)]


def as_tokens(x):
    """(N, C, ...) -> (N, P, C) of adjacent elements: a view of a channels-last image."""
    N, C, *positions = x.shape
    return dense(_channels_last(x)).reshape(N, math.prod(positions), C)


def as_image(tokens, shape):
    """The inverse: (N, P, C) seen as (N, C, ...), channels last in memory."""
    N, C, *positions = shape
    return _channels_second(dense(tokens).reshape(N, *positions, C))


def _channels_last(x):
    """(N, C, ...) -> (N, ..., C)   np.moveaxis does the same in ten times the time"""
    return x.transpose(0, *range(2, x.ndim), 1)


def _channels_second(x):
    """(N, ..., C) -> (N, C, ...)"""
    return x.transpose(0, -1, *range(1, x.ndim - 1))


def _empty(shape, like):
    """Memory for a result, with its channels last where those of `like` are."""
    if like.ndim == 4 and _channels_last(like).flags.c_contiguous:
        N, C, *positions = shape
        return _channels_second(empty((N, *positions, C), like.dtype))
    return empty(tuple(shape), like.dtype)


def copy_into(x, window):
    """window[...] = x, in parallel where both are large and made of runs of adjacent elements."""
    if x.size < ALONE:
        window[...] = x
        return
    axes = []  # [size, step in x, step in window] from the outermost, neighbours merged into one
    for i in sorted(range(x.ndim), key=lambda i: -window.strides[i]):
        n, s, t = x.shape[i], x.strides[i], window.strides[i]
        if axes and axes[-1][1:] == [n * s, n * t]:
            axes[-1] = [axes[-1][0] * n, s, t]
        elif n != 1:
            axes.append([n, s, t])
    in_runs = axes and axes[-1][1:] == [x.itemsize, x.itemsize] and x.flags.aligned and all(
        step >= 0 and step % x.itemsize == 0 for _, *steps in axes for step in steps)
    if not in_runs:
        window[...] = x
        return
    counts, from_steps, to_steps = np.array(axes[:-1], np.int64).reshape(-1, 3).T.copy()
    _copy(as_bits(flat(x)), from_steps // x.itemsize, counts, axes[-1][0],
          as_bits(flat(window)), to_steps // x.itemsize)


@jit(parallel=True)
def _copy(x, from_steps, counts, length, y, to_steps):
    """Copy runs of `length` elements, one for each index into a box of `counts` positions."""
    runs = counts.prod()
    tall = max(1, BLOCK // length)
    for task in prange((runs + tall - 1) // tall):
        first = np.int64(task) * tall
        for run in range(first, min(first + tall, runs)):
            rest, at, to = run, 0, 0
            for axis in range(counts.size - 1, -1, -1):
                i = rest % counts[axis]
                rest //= counts[axis]
                at += i * from_steps[axis]
                to += i * to_steps[axis]
            copy_run(pointer(x, at), length, pointer(y, to))


@jit
def copy_run(x, length, y):
    """y[:length] = x[:length]"""
    size = lanes(x)
    for i in range(0, length - size + 1, size):
        store(y, i, load(x, i))
    rest = length % size
    if rest > 0:
        masked_store(y, length - rest, masked_load(x, length - rest, rest), rest)
