"""Images as convolutions read them: pixels of adjacent channels in flat memory."""

import numpy as np

from refsd.numba_ops.memory import dense, flat

ONE_SEGMENT = np.zeros(1, np.int64)
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


def even_kc(channels: int) -> int:
    """kc, the length of the blocks of a sum: as even as whole numbers allow, at most MOST_KC."""
    return -(-channels // -(-channels // MOST_KC))


def whole_kc(channels: int, vector: int) -> int:
    """The same, rounded up to whole vectors."""
    return -(-even_kc(channels) // vector) * vector
