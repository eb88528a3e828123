"""bfloat16 and float16: two bytes in memory, float32 while they are computed with.

A bfloat16 is the upper half of a float32. NumPy has float16; ml_dtypes brings bfloat16. This is the
one place that widens and rounds arrays of either.
"""

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from refsd.places import is_on_device

HALVES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
PART = 2**15  # numbers of float16 that are widened at once


def is_half(dtype: Any) -> bool:
    """Whether a dtype, or its name, is bfloat16 or float16."""
    return str(dtype) in HALVES


def to_float32(value: Any) -> Any:
    """An array of halves as float32, which holds each of them; in lists too. All else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(to_float32, value))
    if not is_half(getattr(value, "dtype", "")):
        return value
    if value.dtype == np.float16 and value.size >= PART and value.flags.c_contiguous:
        return _widened(value)
    return value.astype(np.float32)


def _widened(x: np.ndarray) -> np.ndarray:
    """float16 as float32: its bits where float32 has them, times what the exponents differ by.

    A quarter of the time of NumPy's own, which takes one number after the other.
    """
    wide = np.empty(x.shape, np.float32)
    for start in range(0, x.size, PART):  # what the second cache holds
        few, part = (array.reshape(-1)[start:start + PART] for array in (x, wide))
        bits = part.view(np.int32)
        np.left_shift(few.view(np.int16), 13, out=bits, dtype=np.int32)
        bits &= ~0x70000000  # to which the sign went too
        part *= np.float32(2.0**112)
        if part.max() >= 65536 or part.min() <= -65536:  # infinite or NaN
            part[...] = few
    return wide


def to_half(x: np.ndarray, dtype: Any) -> np.ndarray:
    """x rounded to bfloat16 or float16: to nearest, ties to even; beyond the largest, infinite.

    A float64 is rounded to float32 first, as torch does it.
    """
    if is_on_device(x):
        return x.astype(HALVES[str(dtype)])
    x, wanted = np.asarray(x), HALVES[str(dtype)]
    with np.errstate(all="ignore"):
        wide = x if x.dtype == wanted else to_float32(x).astype(np.float32, copy=False)
        return wide.astype(wanted)


def as_dtype(array: np.ndarray, dtype: Any, empty: Callable = np.empty) -> np.ndarray:
    """The array in a floating-point dtype, or itself where it is of that type.

    In what empty(shape, dtype) gives, and in pieces: what lies between is no large array.
    """
    wanted = np.dtype(HALVES.get(str(dtype), dtype))
    if array.dtype == wanted:
        return array
    made = empty(array.shape, wanted)
    source, target = np.ascontiguousarray(array).reshape(-1), made.reshape(-1)
    for i in range(0, array.size, PART):
        piece = source[i:i + PART]
        target[i:i + PART] = to_half(piece, wanted) if is_half(wanted) else to_float32(piece)
    return made


def through_float32(function: Callable, dtype: Any) -> Callable:
    """What an op of halves is: function of float32, rounded once to dtype.

    An option `dtype` says what the result is, so the function's own is float32.
    """

    def rounded(*arrays, **options):
        if "dtype" in options:
            options["dtype"] = "float32"
        options = {name: to_float32(value) for name, value in options.items()}
        return to_half(function(*map(to_float32, arrays), **options), dtype)

    return rounded


def in_float32(function: Callable) -> Callable:
    """function(array, ...) of arithmetic, which of a half is that of float32, rounded once."""

    @functools.wraps(function)
    def rounded(first, *others):
        if not is_half(getattr(first, "dtype", "")):
            return function(first, *others)
        return through_float32(function, first.dtype)(first, *others)

    return rounded
