"""What the kernels give of a picture that comes in bands of rows: the very bits of the whole.

Each result of a convolution is one fixed chain of operations, whichever rows are there, if the
algorithm and Winograd's tiles are the whole picture's. A group norm's sums are made block by block
of pixels, and merged when all are there (norm_groups.py).
"""

import numpy as np

from refsd.half import to_float32
from refsd.numba_ops.cpu.layout import as_image, as_tokens
from refsd.numba_ops.cpu.norm_groups import (
    add_moments,
    block_pixels,
    channel_lines,
    normalise,
)
from refsd.numba_ops.memory import empty, flat

READS_HALVES = True
TILES = {"im2col": 1, "winograd2": 2, "winograd4": 4}  # rows of results that belong together


def conv2d_rows(channels, kernel, result, algorithm, itemsize, most):
    """The rows of a band of a convolution's result (N, H', W', O), about `most`; 0: there are none.
    """
    tile = TILES.get(algorithm, 0)
    return tile and max(tile, most // tile * tile)


def group_norm(shape, weight, bias, *, groups, eps, bands):
    """The function of a band that normalises it by statistics of all of x (N, C, H, W).

    bands() begins to give x from above; it is called once.
    """
    N, C, H, W = shape
    tall = block_pixels(C)
    moments = np.empty((N, groups, -(-H * W // tall), 3))
    rest, have, done = None, 0, 0  # the pixels of a block that has not come whole, their number
    for band in bands():
        pixels = as_tokens(band)
        rest = empty((N, tall, C), pixels.dtype) if rest is None else rest
        start, count = 0, pixels.shape[1]
        if have:
            start = min(tall - have, count)
            rest[:, have:have + start] = pixels[:, :start]
            have += start
            if have == tall:
                add_moments(flat(rest), N, tall, C, done, moments)
                have, done = 0, done + 1
        blocks = (count - start) // tall
        for n in range(N if blocks else 0):
            part = pixels[n, start:start + blocks * tall]
            add_moments(flat(part), 1, blocks * tall, C, done, moments[n:n + 1])
        done, start = done + blocks, start + blocks * tall
        if start < count:
            have = count - start
            rest[:, :have] = pixels[:, start:]
    if have:
        add_moments(flat(np.ascontiguousarray(rest[:, :have])), N, have, C, done, moments)
    weight, bias = (np.ascontiguousarray(to_float32(line)) for line in (weight, bias))
    lines = channel_lines(moments, H * W, C, flat(weight), flat(bias), float(eps), flat(rest))

    def normalised(band):
        pixels = as_tokens(band)
        y = empty(pixels.shape, pixels.dtype)
        normalise(flat(pixels), N, pixels.shape[1], C, lines, False, flat(y))
        return as_image(y, band.shape)

    return normalised
