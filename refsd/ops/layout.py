"""Moving data without changing it.

Some results may be views: whether they are depends on how x lies in memory and on the backend. So
nobody writes to what these ops give, nor to x while it is in use. All other ops give fresh memory.
"""

import numpy as np

from refsd.contracts import need
from refsd.kinds import Movement, call
from refsd.options import Axes, Axis, Integer, Sizes, Widths
from refsd.registry import op


@op("x (N C H W) -> (N H*W C)", Movement(), examples=[call((2, 3, 4, 5))])
def to_tokens(x):
    """One token a pixel, row by row.   (N, C, H, W) -> (N, H W, C)

    The result may be a view of x.

    >>> to_tokens(np.array([[[[1.0, 2.0]], [[10.0, 20.0]]]]))  # two channels, two pixels
    array([[[ 1., 10.],
            [ 2., 20.]]])
    """
    N, C, H, W = x.shape
    return x.reshape(N, C, H * W).swapaxes(1, 2)


@op("x (N L? C) -> (N C height width)", Movement(), height=Integer(1), width=Integer(1),
    rules={"L == height * width": "{L} tokens do not fill {height} x {width} pixels"},
    examples=[call((2, 20, 3), height=4, width=5), call((2, 3), height=1, width=1)])
def to_image(x, *, height, width):
    """The inverse of to_tokens.   (N, H W, C) -> (N, C, H, W); (N, C) is one pixel an image

    The result may be a view of x.

    >>> to_image(np.array([[[1.0, 10.0], [2.0, 20.0]]]), height=1, width=2)
    array([[[[ 1.,  2.]],
    <BLANKLINE>
            [[10., 20.]]]])
    """
    N, C = x.shape[0], x.shape[-1]
    return x.reshape(N, height * width, C).swapaxes(1, 2).reshape(N, C, height, width)


def _joined(arrays, axis):
    first = tuple(arrays[0].shape)
    axis %= len(first)
    for i, array in enumerate(arrays):
        other = tuple(array.shape)
        need(other[:axis] + other[axis + 1:] == first[:axis] + first[axis + 1:]
             and len(other) == len(first), "concat",
             f"arrays[{i}] {other} differs from arrays[0] {first} outside axis {axis}",
             check="alike")
    return {"y...": (*first[:axis], sum(a.shape[axis] for a in arrays), *first[axis + 1:])}


@op("arrays[] (... A ...) -> (y...)", Movement(), axis=Axis("arrays"), infer=_joined,
    examples=[call([(2, 3, 4), (2, 2, 4)], axis=1)])
def concat(arrays, *, axis):
    """Arrays one after the other.   [(..., A, ...), (..., B, ...)] -> (..., A + B, ...)

    >>> concat([np.array([1.0]), np.array([2.0, 3.0])], axis=0)
    array([1., 2., 3.])
    """
    return np.concatenate(arrays, axis=axis)


def _cut(x, axis, start, stop):
    axis %= len(x.shape)
    return {"y...": (*x.shape[:axis], stop - start, *x.shape[axis + 1:])}


@op("x (...) -> (y...)", Movement(), axis=Axis("x"), start=Integer(0), stop=Integer(0),
    reads="result", infer=_cut, rules={"start <= stop <= x[axis]":
                       "{start} to {stop} is no part of axis {axis} of x {x}"},
    examples=[call((2, 6, 3), axis=1, start=2, stop=5)])
def slice(x, *, axis, start, stop):
    """x[..., start:stop, ...] along an axis.   (..., A, ...) -> (..., stop - start, ...)

    The result may be a view of x.

    >>> slice(np.array([10.0, 11.0, 12.0, 13.0]), axis=0, start=1, stop=3)
    array([11., 12.])
    """
    return x[(np.s_[:],) * (axis % x.ndim) + (np.s_[start:stop],)]


def _padded(x, widths):
    return {"y...": tuple(before + n + after for n, (before, after) in zip(x.shape, widths))}


@op("x (...) -> (y...)", Movement(), widths=Widths("x"), infer=_padded,
    examples=[call((1, 2, 3, 3), widths=((0, 0), (0, 0), (0, 1), (0, 1)))])
def pad(x, *, widths):
    """Zeros around x: widths[a] = (before, after) for axis a.   (A, ...) -> (b + A + a, ...)

    >>> pad(np.array([1.0, 2.0]), widths=[(1, 2)])
    array([0., 1., 2., 0., 0.])
    """
    return np.pad(x, widths)


def _permuted(x, axes):
    return {"y...": tuple(x.shape[axis] for axis in axes)}


@op("x (...) -> (y...)", Movement(), axes=Axes("x"), infer=_permuted,
    examples=[call((2, 3, 4), axes=(2, 0, 1))])
def transpose(x, *, axes):
    """y's axis i is x's axis axes[i].   (A, B, ...) -> the same sizes in that order

    The result may be a view of x.

    >>> transpose(np.array([[1.0, 2.0], [3.0, 4.0]]), axes=(1, 0))
    array([[1., 3.],
           [2., 4.]])
    """
    return np.transpose(x, axes)


def _regrouped(x, shape):
    return {"y...": tuple(shape)}


@op("x (...) -> (y...)", Movement(), shape=Sizes(), infer=_regrouped,
    rules={"prod(x) == prod(shape)": "x {x} has not as many elements as {shape}"},
    examples=[call((2, 3, 8), shape=(2, 3, 4, 2)), call((2, 3, 4), shape=(6, 4))])
def reshape(x, *, shape):
    """The same elements row by row, axes split or merged.   (A, B C) -> (A, B, C) and back

    The result may be a view of x.

    >>> reshape(np.array([[1.0, 2.0, 3.0, 4.0]]), shape=(1, 2, 2))
    array([[[1., 2.],
            [3., 4.]]])
    """
    return x.reshape(shape)
