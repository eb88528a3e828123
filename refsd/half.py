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


def is_half(dtype: Any) -> bool:
    """Whether a dtype, or its name, is bfloat16 or float16."""
    return str(dtype) in HALVES


def to_float32(value: Any) -> Any:
    """An array of halves as float32, which holds each of them; in lists too. All else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(to_float32, value))
    if is_half(getattr(value, "dtype", "")):
        return value.astype(np.float32)
    return value


def to_half(x: np.ndarray, dtype: Any) -> np.ndarray:
    """x rounded to bfloat16 or float16: to nearest, ties to even; beyond the largest, infinite.

    A float64 is rounded to float32 first, as torch does it.
    """
    if is_on_device(x):
        return x.astype(HALVES[str(dtype)])
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(np.float32, copy=False).astype(HALVES[str(dtype)])


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
