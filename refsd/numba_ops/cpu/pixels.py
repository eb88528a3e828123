"""Pictures as convolutions read them: pixels of adjacent channels in flat memory."""

import numpy as np

from refsd.numba_ops.memory import dense, flat

ONE_SEGMENT = np.zeros(1, np.int64)
# A sum over more channels than this is made in pieces: its rounding error grows with the longest.
PIECE = 128


def as_pixels(x: np.ndarray) -> tuple[np.ndarray, int, int, int]:
    """x (N, C, H, W) as flat memory, and the steps to the next picture, row and pixel.

    A view where the channels of a pixel lie side by side (channels-last memory), else a copy,
    which is counted.
    """
    pixels = x.transpose(0, 2, 3, 1)
    good = pixels.flags.aligned and (x.shape[1] == 1 or pixels.strides[3] == x.itemsize) and all(
        s >= 0 and s % x.itemsize == 0 for s in pixels.strides)
    if not good:
        pixels = dense(pixels)
    return flat(pixels), *(s // x.itemsize for s in pixels.strides[:3])


def even_pieces(channels: int) -> int:
    """The length of the pieces of a sum: as even as whole numbers allow, at most PIECE."""
    return -(-channels // -(-channels // PIECE))


def whole_pieces(channels: int, vector: int) -> int:
    """The same, rounded up to whole vectors."""
    return -(-even_pieces(channels) // vector) * vector
