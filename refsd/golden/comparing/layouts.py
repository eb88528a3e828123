"""How other engines lay a tensor out in memory, each with its inverse.

The logical layout is the checkpoint's: images (N, C, H, W), tokens (N, L, C), weights
(O, I, kH, kW) and (out, in). A layout is a pair of functions: to what lies in memory, as an array
whose C order is the order of the bytes, and back, given the logical shape.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refsd.errors import UsageError

TILE = 32  # TTNN computes on tiles of 32 x 32, padded with zeros
FACE = 16  # and keeps each tile as four faces of 16 x 16
PACK = 4  # channels that MNN and WebGPU shaders read at once


class Layout(NamedTuple):
    """to(x) -> data and back(data, shape) -> x; `physical(shape)` is the shape of the data."""

    summary: str
    physical: Callable[[tuple[int, ...]], tuple[int, ...]]
    to: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def to_layout(x: np.ndarray, name: str) -> np.ndarray:
    """The tensor as it lies in memory under the layout, C-contiguous; padding is 0.

    Raises UsageError for an unknown layout.
    """
    return np.ascontiguousarray(layout(name).to(x))


def from_layout(data: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The logical tensor of `shape` out of data in a layout; padding is cut off.   A view or copy.

    data may have any shape with the right number of elements, such as (n,) for a raw file. Raises
    UsageError for an unknown layout, and when data has another number of elements.
    """
    found = layout(name)
    physical = found.physical(tuple(shape))
    if data.size != math.prod(physical):
        raise UsageError(f"layout {name}: {data.size:,} elements, but {tuple(shape)} takes "
                         f"{' x '.join(map(str, physical))} = {math.prod(physical):,}; give that "
                         "many")
    return found.back(data.reshape(physical), tuple(shape))


def layout(name: str) -> Layout:
    """The layout of a name (in any case); UsageError lists those there are."""
    try:
        return LAYOUTS[name.upper()]
    except KeyError:
        raise UsageError(f"layout {name[:40]!r} is not one of: {', '.join(LAYOUTS)}; give "
                         "one") from None


def ceiling(n: int, multiple: int) -> int:
    """The smallest multiple that is not below n."""
    return -(-n // multiple) * multiple


def pad_to(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros after each axis' end, up to `shape`."""
    return np.pad(x, [(0, wanted - n) for n, wanted in zip(x.shape, shape)])


def _permuted(summary: str, orders: dict[int, tuple[int, ...]]) -> Layout:
    """The axes in another order; a tensor whose number of axes is not listed stays as it is."""

    def order(axes: int) -> tuple[int, ...]:
        return orders.get(axes, tuple(range(axes)))

    def back(data, shape):
        return data.transpose(np.argsort(order(len(shape))))

    return Layout(summary, lambda shape: tuple(shape[a] for a in order(len(shape))),
                  lambda x: x.transpose(order(x.ndim)), back)


def _packed_shape(shape):
    if len(shape) != 4:
        return shape
    N, C, H, W = shape
    return N, ceiling(C, PACK) // PACK, H, W, PACK


def _pack(x):
    """(N, C, H, W) -> (N, C / 4, H, W, 4)"""
    if x.ndim != 4:
        return x
    N, blocks, H, W, _ = _packed_shape(x.shape)
    padded = pad_to(x, (N, blocks * PACK, H, W))
    return padded.reshape(N, blocks, PACK, H, W).transpose(0, 1, 3, 4, 2)


def _unpack(data, shape):
    if len(shape) != 4:
        return data
    N, C, H, W = shape
    return data.transpose(0, 1, 4, 2, 3).reshape(N, -1, H, W)[:, :C]


def _rows_shape(shape):
    """An image is one matrix [1, 1, N H W, C]; everything else keeps its last two axes."""
    if len(shape) == 4:
        N, C, H, W = shape
        return 1, 1, N * H * W, C
    return (1,) * (4 - len(shape)) + tuple(shape)


def _rows(x):
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
        return x.reshape(1, 1, -1, x.shape[-1])
    return x.reshape(_rows_shape(x.shape))


def _from_rows(data, shape):
    if len(shape) == 4:
        N, C, H, W = shape
        return data.reshape(N, H, W, C).transpose(0, 3, 1, 2)
    return data.reshape(shape)


def _padded(size: int) -> Layout:
    """Zeros after the end of the last two axes, up to multiples of `size`."""

    def physical(shape):
        return *shape[:-2], *(ceiling(n, size) for n in shape[-2:])

    return Layout("", physical, lambda x: pad_to(x, physical(x.shape)),
                  lambda data, shape: data[..., :shape[-2], :shape[-1]])


def _blocks(size: int) -> Layout:
    """[..., R, C] -> [..., R / size, C / size, size, size]"""

    def physical(shape):
        return *shape[:-2], shape[-2] // size, shape[-1] // size, size, size

    def to(x):
        *outer, down, across, _, _ = physical(x.shape)
        return x.reshape(*outer, down, size, across, size).swapaxes(-2, -3)

    return Layout("", physical, to, lambda data, shape: data.swapaxes(-2, -3).reshape(shape))


def _then(summary: str, first: Layout, second: Layout) -> Layout:
    """The second layout of what the first makes."""
    return Layout(summary, lambda shape: second.physical(first.physical(shape)),
                  lambda x: second.to(first.to(x)), lambda data, shape: first.back(
                      second.back(data, first.physical(shape)), shape))


ROWS = Layout("a matrix of pixels: (1, 1, N H W, C)", _rows_shape, _rows, _from_rows)
ROWS32 = _then("ROWS, both axes padded with zeros to multiples of 32", ROWS, _padded(TILE))
TILE32 = _then("ROWS32 tile after tile of 32 x 32", ROWS32, _blocks(TILE))
LAYOUTS = {
    "NCHW": _permuted("as the checkpoint: the axes stay", {}),
    "NHWC": _permuted("channels last: (N, H, W, C), weights (O, kH, kW, I)", {4: (0, 2, 3, 1)}),
    "HWIO": _permuted("weights as JAX and TensorFlow keep them: (kH, kW, I, O) and (in, out)",
                      {4: (2, 3, 1, 0), 2: (1, 0)}),
    "TRANSPOSED": _permuted("the last two axes swapped: linear weights as (in, out)",
                            {n: (*range(n - 2), n - 1, n - 2) for n in range(2, 7)}),
    "NC4HW4": Layout("channels in packs of four: (N, C / 4, H, W, 4)",
                     _packed_shape, _pack, _unpack),
    "ROWS": ROWS, "ROWS32": ROWS32, "TILE32": TILE32,
    "FACE16": _then("TILE32, each tile as four faces of 16 x 16: TTNN's bytes", TILE32,
                    _blocks(FACE)),
}  # fmt: skip
