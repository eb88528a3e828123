"""Weights that are held otherwise than the arrays that they stand for: smaller, or as read."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refsd.half import HALVES, as_dtype, is_half, to_half
from refsd.leaf import Weight, seal

MOST = 127  # of int8, symmetric: -128 is not used
PIECE = 2**16  # numbers that are rounded at once: they stay in the caches
LEAST_SCALE = 2.0**-100  # far from float32's denormals


class ReadsAs(Weight):
    """A weight held as `values`, which reads as an array of another `dtype`."""

    __slots__ = ("_dtype",)

    def __init__(self, values: Any, dtype: Any, name: str | None):
        super().__init__(values, name)
        self._dtype = np.dtype(HALVES.get(str(dtype), dtype))

    @property
    def dtype(self) -> np.dtype:
        """What it reads as."""
        return self._dtype

    @property
    def values(self) -> np.ndarray:
        """As they are held, read-only."""
        return self._array.view()


class Quantized(ReadsAs):
    """A weight held as values of a smaller type.

    With a scale for each output channel (its first axis) it stands for values * scale, rounded
    once; without, for the values themselves. No wider array that is made of them is kept.
    """

    __slots__ = ("_scale",)

    def __init__(self, values: Any, scale: Any = None, dtype: Any = "float32",
                 name: str | None = None):
        super().__init__(values, dtype, name)
        self._scale = None if scale is None else Weight(scale)
        if scale is not None and self._scale.shape != self.shape[:1]:
            raise ValueError(f"weight {name}: scale has shape {self._scale.shape}, expected one "
                             f"number for each of the outputs of {self.shape}")

    @property
    def scale(self) -> np.ndarray | None:
        """One for each output channel, float32."""
        return None if self._scale is None else self._scale.dense()

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._scale is None else self._scale.nbytes)

    def dense(self) -> np.ndarray:
        """values * scale, read-only; a new array every time."""
        return self.rows(slice(None))

    def rows(self, which: Any) -> np.ndarray:
        """dense()[which], of which no more than these rows is made."""
        wide = self._array[which].astype("float64" if self._dtype == np.float64 else "float32")
        if self._scale is not None:
            scale = self._scale[which]
            wide *= scale.reshape(scale.shape + (1,) * (wide.ndim - scale.ndim))
        if is_half(self._dtype):
            wide = to_half(wide, self._dtype)
        wide.flags.writeable = False
        return wide

    def __reduce__(self) -> tuple:
        return type(self), (self.values, self.scale, self._dtype, self.name)

    def __repr__(self) -> str:
        return f"<weight {self.name} {self._array.dtype} as {self.dtype} {self.shape}>"


class W8A8(Quantized):
    """An int8 weight whose op takes int8 activations: the op on `meet(x)` and on `dense()`."""

    __slots__ = ()

    def meet(self, x: np.ndarray) -> np.ndarray:
        """x as the op takes it: each token, or pixel, is rounded like a channel of a weight."""
        return round_tokens(x, -1 if len(self.shape) == 2 else 1)


class AsRead(ReadsAs):
    """A weight with the numbers of its file, which is still to be made what `made()` says.

    Who lays it out for kernels does both at once, and reads each number once.
    """

    __slots__ = ("kind",)

    def __init__(self, values: Any, dtype: Any, name: str | None = None,
                 kind: type[Quantized] | None = None):
        super().__init__(values, dtype, name)
        self.kind = kind

    def made(self, empty: Callable = np.empty) -> Weight:
        """The numbers rounded to dtype; then, of a kind, to int8, if that can stand for them.

        They lie in what empty(shape, dtype) gives.
        """
        array = as_dtype(self._array, self._dtype, empty)
        if self.kind is None or not can_quantize(array):
            return Weight(seal(array), self.name)
        values, scale = quantize(array, empty)
        return self.kind(seal(values), scale, self._dtype, self.name)

    def dense(self) -> np.ndarray:
        """That of what it is made, read-only; a new array every time."""
        return self.made().dense()

    def __reduce__(self) -> tuple:
        return type(self), (self.values, self._dtype, self.name, self.kind)


def can_quantize(array: np.ndarray) -> bool:
    """Whether int8 can stand for an array: nothing is infinite, NaN, or beyond 2^127."""
    return array.ndim >= 2 and array.size > 0 and in_range(_largest(array))


def in_range(largest: np.ndarray) -> bool:
    """The same of the largest magnitudes of its output channels, float32."""
    return bool(largest.max() < 2.0**127)


def quantize(array: np.ndarray, empty: Callable | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(values int8, scale float32) with |array - values * scale| <= scale / 2, a scale an output.

    The scale is the channel's largest magnitude over 127, rounded up to 16 significant bits: then
    the product with an integer of 7 bits is a float32, and nothing rounds but the values. These lie
    as those of array, or in what empty(shape, dtype) gives.
    """
    scale = scale_of(_largest(array))
    values = np.empty_like(array, np.int8) if empty is None else empty(array.shape, np.int8)
    divisor = scale.reshape(-1, *[1] * (array.ndim - 1))
    step = max(1, PIECE * len(array) // max(1, array.size))
    for i in range(0, len(array), step):
        piece = np.divide(array[i:i + step], divisor[i:i + step], dtype=np.float32)
        values[i:i + step] = np.rint(piece, out=piece)
    return values, scale


def round_tokens(x: np.ndarray, axis: int) -> np.ndarray:
    """x with the numbers along an axis as 127 steps to each side of 0, by the rule of `quantize`.

    Where they hold NaN, an infinity or 2^127 they are NaN.
    """
    largest = np.abs(x).max(axis=axis, keepdims=True, initial=0).astype(np.float32)
    scale = np.where(largest < 2.0**127, scale_of(largest), np.float32(np.nan))
    with np.errstate(invalid="ignore"):
        return np.rint(np.divide(x, scale, dtype=np.float32)).astype(x.dtype) * scale


def scale_of(largest: np.ndarray) -> np.ndarray:
    """largest / 127, not too small, rounded up to 16 significant bits.   float32"""
    bits = np.maximum(largest / np.float32(MOST), np.float32(LEAST_SCALE)).view(np.uint32)
    return ((bits + np.uint32(0xFF)) & ~np.uint32(0xFF)).view(np.float32)


def _largest(array):
    """The largest magnitude of each output channel, float32; NaN if there is one"""
    rows = array.reshape(len(array), -1)
    return np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float32)
