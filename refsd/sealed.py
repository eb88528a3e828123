"""Arrays that nobody can write to, so that what is made of them can be kept.

NumPy's own flag is no promise: whoever holds the array, or what it is a view of, sets it again,
writes, and takes it back, and nothing tells. A sealed array's memory belongs to an object that
gives no writable buffer. NumPy then refuses `flags.writeable = True`, for it and for all its views.
"""

from typing import Any

import numpy as np


class _Seal:
    """Memory under NumPy's array interface, for reading only."""

    def __init__(self, array: np.ndarray):
        self._array = array
        self.__array_interface__ = {
            "data": (array.__array_interface__["data"][0], True), "shape": array.shape,
            "strides": array.strides, "typestr": array.dtype.str, "version": 3}


def seal(array: np.ndarray) -> np.ndarray:
    """The same memory, read-only for good. For who holds the only reference to it."""
    return np.asarray(_Seal(array))


def is_sealed(array: Any) -> bool:
    """Whether nobody can write to an array any more: sealed, or a view of bytes.

    A read-only map of a file is not: who writes to the file writes to the array.
    """
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return isinstance(array, (_Seal, bytes))
