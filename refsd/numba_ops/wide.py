"""Vectors of more exact numbers than those that products are made of: of weights, transformed once.

float64 of float32; float32 of halves, of whose own rounding a product of float32 leaves no trace.
"""

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from numba import types
from numba.extending import overload

from refsd.numba_ops.vector import Vector, half


def wide_vector(a):
    """A pair of vectors of such numbers, for elements of a."""
    dtype = types.float32 if half(a.dtype) else types.float64
    return Vector(dtype, 2 * Vector(dtype).count)


def wide_lanes(a):
    """Elements of such a pair, in compiled code."""
    raise NotImplementedError


def wide_scratch(size, like):
    """As scratch, of what such a pair has."""
    raise NotImplementedError


@overload(wide_lanes)
def _wide_lanes(a):
    count = wide_vector(a).count
    return lambda a: count


@overload(wide_scratch)
def _wide_scratch(size, like):
    dtype = wide_vector(like).dtype
    return lambda size, like: np.empty(size, dtype)
