"""Moving data without changing it.

Some results may be views: whether they are depends on how x lies in memory and on the backend. So
nobody writes to what these ops give, nor to x while it is in use. All other ops give fresh memory.
"""

import math

import numpy as np

from refsd.contracts import Spec, dims, floats, is_int, need, output, positive
from refsd.registry import op


def to_tokens_contract(x):
    dtype = floats("to_tokens", x=x)
    N, C, H, W = dims("to_tokens", "x", x, "N C H W")
    return output((N, H * W, C), dtype, flops=0, reads=(x,))


@op(to_tokens_contract)
def to_tokens(x):
    """One token a pixel, row by row.   (N, C, H, W) -> (N, H W, C)

    The result may be a view of x.
    """
    N, C, H, W = x.shape
    return x.reshape(N, C, H * W).swapaxes(1, 2)


def to_image_contract(x, *, height, width):
    dtype = floats("to_image", x=x)
    positive("to_image", height=height, width=width)
    need(len(x.shape) in (2, 3), "to_image",
         f"x has shape {tuple(x.shape)}, wanted (N, L, C), or (N, C) for one pixel")
    tokens = x.shape[1] if len(x.shape) == 3 else 1
    need(tokens == height * width, "to_image",
         f"{tokens} tokens do not fill {height} x {width} pixels")
    return output((x.shape[0], x.shape[-1], height, width), dtype, flops=0, reads=(x,))


@op(to_image_contract)
def to_image(x, *, height, width):
    """The inverse of to_tokens.   (N, H W, C) -> (N, C, H, W); (N, C) is one pixel an image

    The result may be a view of x.
    """
    N, C = x.shape[0], x.shape[-1]
    return x.reshape(N, height * width, C).swapaxes(1, 2).reshape(N, C, height, width)


def concat_contract(arrays, *, axis):
    need(isinstance(arrays, (list, tuple)) and len(arrays) > 0, "concat",
         "wants a list of one array or more")
    dtype = floats("concat", **{f"arrays[{i}]": a for i, a in enumerate(arrays)})
    first = tuple(arrays[0].shape)
    _need_axis("concat", axis, first)
    axis %= len(first)
    for i, array in enumerate(arrays):
        other = tuple(array.shape)
        need(other[:axis] + other[axis + 1:] == first[:axis] + first[axis + 1:]
             and len(other) == len(first), "concat",
             f"arrays[{i}] {other} differs from arrays[0] {first} outside axis {axis}")
    shape = (*first[:axis], sum(a.shape[axis] for a in arrays), *first[axis + 1:])
    return output(shape, dtype, flops=0, reads=tuple(arrays))


@op(concat_contract)
def concat(arrays, *, axis):
    """Arrays one after the other.   [(..., A, ...), (..., B, ...)] -> (..., A + B, ...)"""
    return np.concatenate(arrays, axis=axis)


def slice_contract(x, *, axis, start, stop):
    dtype = floats("slice", x=x)
    _need_axis("slice", axis, x.shape)
    size = x.shape[axis]
    need(is_int(start) and is_int(stop) and 0 <= start <= stop <= size, "slice",
         f"start {start!r} and stop {stop!r} must satisfy 0 <= start <= stop <= {size}")
    axis %= len(x.shape)
    shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1:])
    return output(shape, dtype, flops=0, reads=(Spec(shape, dtype),))


@op(slice_contract)
def slice(x, *, axis, start, stop):
    """x[..., start:stop, ...] along an axis.   (..., A, ...) -> (..., stop - start, ...)

    The result may be a view of x.
    """
    return x[(np.s_[:],) * (axis % x.ndim) + (np.s_[start:stop],)]


def pad_contract(x, *, widths):
    dtype = floats("pad", x=x)
    good = isinstance(widths, (list, tuple)) and 0 < len(widths) == len(x.shape) and all(
        isinstance(w, (list, tuple)) and len(w) == 2 and all(is_int(n) and n >= 0 for n in w)
        for w in widths)
    need(good, "pad", f"widths is {widths!r}, wanted a pair (before, after) of integers >= 0 for "
         f"each axis of x {tuple(x.shape)}")
    shape = tuple(before + n + after for n, (before, after) in zip(x.shape, widths))
    return output(shape, dtype, flops=0, reads=(x,))


@op(pad_contract)
def pad(x, *, widths):
    """Zeros around x: widths[a] = (before, after) for axis a.   (A, ...) -> (b + A + a, ...)"""
    return np.pad(x, widths)


def transpose_contract(x, *, axes):
    dtype = floats("transpose", x=x)
    need(isinstance(axes, (list, tuple)) and all(is_int(a) for a in axes)
         and sorted(axes) == list(range(len(x.shape))), "transpose",
         f"axes is {axes!r}, wanted an order of 0 to {len(x.shape) - 1}")
    return output(tuple(x.shape[a] for a in axes), dtype, flops=0, reads=(x,))


@op(transpose_contract)
def transpose(x, *, axes):
    """y's axis i is x's axis axes[i].   (A, B, ...) -> the same sizes in that order

    The result may be a view of x.
    """
    return np.transpose(x, axes)


def _need_axis(name, axis, shape):
    need(is_int(axis) and -len(shape) <= axis < len(shape), name,
         f"axis is {axis!r}, the array has {len(shape)} dimensions ({math.prod(shape)} elements)")
