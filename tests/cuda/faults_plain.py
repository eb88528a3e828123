"""Faults in kernels of a thread an element, and in how numbers are read and written."""

import itertools

import numpy as np
from cuda_agreement import agree
from faults import Fault
from op_table import normal
from test_between import deviate
from test_layout import numbers

from refsd.numba_ops.cuda import cast, fill, layout
from refsd.numba_ops.cuda.array import to_device


def silu(dtype="float32"):
    """A last block that is not full."""
    agree("silu", [normal((257,), 1, 3.0)], {}, dtype)


def silu_of_halves():
    silu("bfloat16")


def bias():
    """A number for each channel of images, in sixteen bytes and one by one, of two dtypes."""
    for channels, dtype in itertools.product((8, 5), ("float32", "bfloat16")):
        agree("add", [normal((2, channels, 3, 5), 1), normal((2, channels, 1, 1), 2)], {}, dtype)


def misaligned():
    """A view that begins in the middle of sixteen bytes."""
    x = to_device(normal((3, 12), 1)).part(1, 2, 10)
    np.testing.assert_array_equal((x + x).numpy(), x.numpy() * 2)


def clamp_of_nan():
    agree("clamp", [np.float32([np.nan, 2, -2, 0])], {"low": -1.0, "high": 1.0})


def copy():
    """A transposition, by units of four bytes."""
    x = numbers((3, 5, 2, 4), "float32")
    y = layout.ordered(to_device(x).transpose((3, 1, 0, 2)))
    np.testing.assert_array_equal(y.numpy(), x.transpose(3, 1, 0, 2))


def filled():
    """A number of a step, in a block that is not full."""
    place = to_device(np.zeros(33, "float32"))
    fill.fill(place, np.full(33, 7.0))
    np.testing.assert_array_equal(place.numpy(), np.full(33, 7, "float32"))


def narrowed():
    x = normal((257,), 1)
    y = cast.cast(to_device(x), np.dtype("float16"))
    np.testing.assert_array_equal(y.numpy(), x.astype("float16"))


def spread():
    """Two images, of numbers that do not fill the last turn of a block's threads."""
    deviate((2, 3, 5, 10), "float32")


FAULTS = [
    Fault("a bound too late", "pointwise", "if i < count:", "if i <= count:", silu),
    Fault("the last block left out", "pointwise", "(-(-count // THREADS),)", "(count // THREADS,)",
          silu),
    Fault("the sign of the exponent", "formulas", "exp(-abs(x))", "exp(abs(x))", silu),
    Fault("blocks overlap", "pointwise", "* uint32(THREADS)", "* uint32(THREADS - 1)", silu),
    Fault("NaN is clamped", "formulas", "p if a < p else q if a > q else a",
          "a if p < a < q else p if a < p else q", clamp_of_nan),
    Fault("elements swapped", "pointwise", "one(a[0], b[0], p, q), one(a[1], b[1], p, q)",
          "one(a[1], b[1], p, q), one(a[0], b[0], p, q)", bias),
    Fault("a pair read from another place", "pointwise", "i2 * b2 + i3 * b3", "i3 * b2 + i2 * b3",
          bias),
    Fault("sixteen bytes that are not aligned", "pointwise", "== at_once)\n", ">= 1)\n",
          misaligned),
    Fault("a long axis broadcast as it lies", "pointwise", "0 if m == 1 != n else s", "s", bias),
    Fault("bits in the wrong half", "numbers", "uint32(element) << uint32(16)",
          "uint32(element) << uint32(15)", silu_of_halves),
    Fault("rounded towards zero", "numbers", "+ uint32(0x7FFF) + ", "+ ", silu_of_halves),
    Fault("a bound too late", "layout", "if i < count:\n            i0", "if True:\n            i0",
          copy),
    Fault("steps of two axes swapped", "layout", "i1 * x1 + i2 * x2", "i1 * x2 + i2 * x1", copy),
    Fault("steps of the result for x's", "layout", "merged(y.shape, y.strides, x.strides)",
          "merged(y.shape, x.strides, y.strides)", copy),
    Fault("an axis not taken off", "strides", "uint32(above2 - above1 * n1)", "above2", copy),
    Fault("a bound too late", "fill", "if i < count:", "if i <= count:", filled),
    Fault("a bound too late", "cast", "if i < count:", "if i <= count:", narrowed),
    Fault("a number too many", "deviation", "        while i < count:\n            part",
          "        while i <= count:\n            part", spread),
    Fault("the squares of one warp", "deviation", "squares = total(part, t)", "squares = part",
          spread),
    Fault("the first image only", "deviation", "uint32(uint32(cuda.blockIdx.x) * count)",
          "uint32(0)", spread),
    Fault("another divisor", "deviation", "count, count - ddof)", "count, count)", spread),
]
