"""Where a tensor is wrong, as small pictures: the largest error in each box of two axes."""

import io
import math
from typing import NamedTuple

import numpy as np

SIDE = 64  # pixels of a map of errors a side, at most
DECADES = 6  # powers of ten from the lightest shade to the darkest
DARK, MIDDLE, LIGHT = (13, 8, 60), (190, 55, 110), (252, 255, 164)
NOT_FINITE = (0, 255, 255)  # far from every shade


class ErrorMap(NamedTuple):
    """The largest |error| in each of at most 64 x 64 boxes; NaN where something is not finite.

    axes: the tensor's axes that run down and across (-1: there is none); the others were looked
    through. shape: the tensor's.
    """

    values: np.ndarray
    axes: tuple[int, int]
    shape: tuple[int, ...]

    @property
    def largest(self) -> float:
        """The largest finite error, NaN without any."""
        return float(np.nanmax(self.values)) if np.isfinite(self.values).any() else math.nan


def error_maps(golden: np.ndarray, got: np.ndarray) -> tuple[ErrorMap, ...]:
    """Maps of the error of two tensors of one shape; none for those of fewer than two numbers.

    Over the two longest axes, and of images (N, C, H, W) over H and W besides: an error at a border
    or in one tile is a line or a patch there, and is looked through where C is one of the longest.
    """
    if golden.size < 2:
        return ()
    shape = (1,) * (2 - golden.ndim) + golden.shape
    first, second = sorted(np.argsort(shape, kind="stable")[-2:].tolist())
    pairs = [(first, second)]
    if golden.ndim == 4 and (first, second) != (2, 3) and min(golden.shape[2:]) > 1:
        pairs.append((2, 3))
    with np.errstate(all="ignore"):
        error = np.abs(got.astype("float64") - golden.astype("float64")).reshape(shape)
        error[(got == golden).reshape(shape)] = 0  # infinities that agree
    offset = len(shape) - golden.ndim
    return tuple(ErrorMap(_boxes(error, pair), (pair[0] - offset, pair[1] - offset), golden.shape)
                 for pair in pairs)


def _boxes(error: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    """The largest element in each box of two axes, NaN for one that is not finite."""
    flat = error.max(axis=tuple(axis for axis in range(error.ndim) if axis not in axes))
    for axis in (0, 1):
        n = flat.shape[axis]
        starts = np.unique(np.arange(min(n, SIDE)) * n // min(n, SIDE))
        flat = np.maximum.reduceat(flat, starts, axis=axis)
    flat[np.isinf(flat)] = np.nan
    return flat


def colours(values: np.ndarray) -> np.ndarray:
    """Errors as colours, dark for six powers of ten below the largest.   (H, W) -> (H, W, 3)"""
    finite = np.isfinite(values)
    largest = values[finite].max(initial=0)
    share = np.zeros(values.shape)
    inside = finite & (values > 0)
    if largest > 0:
        share[inside] = np.clip(1 + np.log10(values[inside] / largest) / DECADES, 0.02, 1)
    dark, middle, light = map(np.array, (DARK, MIDDLE, LIGHT))
    low, high = np.clip(2 * share, 0, 1)[..., None], np.clip(2 * share - 1, 0, 1)[..., None]
    pixels = dark + low * (middle - dark) + high * (light - middle)
    return np.where(finite[..., None], pixels, NOT_FINITE).astype("uint8")


def png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG.   (H, W, 3) uint8"""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
