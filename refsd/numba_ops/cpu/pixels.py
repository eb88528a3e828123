"""Images as convolutions read them: pixels of adjacent channels in flat memory."""

import numpy as np

from refsd.numba_ops.cpu.endings import no_addend
from refsd.numba_ops.memory import dense, flat
from refsd.ops.resize import source_pixels

ONE_SEGMENT = np.zeros(1, np.int64)
NO_ROWS = np.zeros(0, np.int64)
# A longer sum over channels is made in KC blocks of at most so many: its error grows with kc.
MOST_KC = 128


def as_pixels(x: np.ndarray) -> tuple[np.ndarray, int, int, int]:
    """x (N, C, H, W) as flat memory, and the steps to the next image, row and pixel.

    A view where the channels of a pixel lie side by side (channels-last memory), else a copy,
    which is counted.
    """
    pixels = x.transpose(0, 2, 3, 1)
    good = pixels.flags.aligned and (x.shape[1] == 1 or pixels.strides[3] == x.itemsize) and all(
        s >= 0 and s % x.itemsize == 0 for s in pixels.strides)
    if not good:
        pixels = dense(pixels)
    return flat(pixels), *(s // x.itemsize for s in pixels.strides[:3])


def as_addend(addend: np.ndarray | None, dtype: np.dtype) -> tuple[np.ndarray, int, int, int]:
    """The same of what is added to results (N, O, H', W'), which it has been broadcast to."""
    return (no_addend(np.dtype(dtype)), 0, 0, 0) if addend is None else as_pixels(addend)


def sources(x: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of x that an image enlarged to `size` (nearest) has; empty: x's own."""
    if size == x.shape[2:]:
        return NO_ROWS, NO_ROWS
    return tuple(source_pixels(before, after) for before, after in zip(x.shape[2:], size))


def even_kc(channels: int) -> int:
    """kc, the length of the blocks of a sum: as even as whole numbers allow, at most MOST_KC."""
    return -(-channels // -(-channels // MOST_KC))


def whole_kc(channels: int, vector: int) -> int:
    """The same, rounded up to whole vectors."""
    return -(-even_kc(channels) // vector) * vector
