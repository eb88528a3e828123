"""|error| over a tensor's two largest axes, small enough for a report."""

from typing import NamedTuple

import numpy as np

SIDE = 64  # pixels a side at most


class ErrorMap(NamedTuple):
    """The largest |error| in each of at most 64 x 64 boxes; NaN where something is not finite.

    axes: the tensor's axes that run down and across; the others were looked through.
    """

    values: np.ndarray
    axes: tuple[int, int]


def error_map(golden: np.ndarray, got: np.ndarray) -> ErrorMap | None:
    """The error map of two tensors of one shape; None for those of fewer than two numbers."""
    if golden.size < 2:
        return None
    shape = (1,) * (2 - golden.ndim) + golden.shape
    first, second = sorted(np.argsort(shape, kind="stable")[-2:].tolist())
    with np.errstate(all="ignore"):
        error = np.abs(got.astype("float64") - golden.astype("float64")).reshape(shape)
        error[(got == golden).reshape(shape)] = 0  # infinities that agree
    others = tuple(axis for axis in range(len(shape)) if axis not in (first, second))
    flat = error.max(axis=others)
    for axis in (0, 1):
        n = flat.shape[axis]
        starts = np.unique(np.arange(min(n, SIDE)) * n // min(n, SIDE))
        flat = np.maximum.reduceat(flat, starts, axis=axis)
    flat[np.isinf(flat)] = np.nan
    offset = len(shape) - golden.ndim
    return ErrorMap(flat, (first - offset, second - offset))
