"""Weights of a Winograd convolution: G g G^T of every kernel, in float64, rounded once, packed.

Those of halves are made in float32, of which their rounding leaves no trace.

    F(2, 3): G  1    0    0          F(4, 3): G  1/p2q2    0      0       s = 2 p2 (p2 - q2)
                1/2  1/2  1/2                     1/s     p/s   p2/s      t = 2 q2 (q2 - p2)
                1/2 -1/2  1/2                     1/s    -p/s   p2/s
                0    0    1                       1/t     q/t   q2/t
                                                  1/t    -q/t   q2/t
                                                   0       0      1
They take 16/9 (F(2x2)) or 4 times (F(4x4)) the memory of the weights, so every convolution makes
them again: all before it multiplies, or, if there are few tiles, KC block by KC block of a panel as
it goes. docs/memory.md says why. S, T, P, Q are s, t, p, q; PP is p2, QQ is q2.
"""

import numpy as np
from numba import prange

from refsd.numba_ops.cpu.winograd_transforms import PP, QQ, P, Q
from refsd.numba_ops.jit import jit
from refsd.numba_ops.panels import is_small, pack_panel, panel_of, room_of_thread
from refsd.numba_ops.simd import (
    lanes,
    load_pair,
    load_wide,
    pointer,
    prefetch,
    store_rounded,
)
from refsd.numba_ops.tile import VECTORS
from refsd.numba_ops.wide import wide_lanes, wide_scratch

S, T = 2 * PP * (PP - QQ), 2 * QQ * (QQ - PP)
# Input channels of one task, of a room, and those prefetched.
CHANNELS, FEW, AHEAD = 64, 16, 8


@jit
def kernel_4(g0, g1, g2):
    """G g of F(2, 3)"""
    outer = g0 + g2
    return g0, (outer + g1) * 0.5, (outer - g1) * 0.5, g2


@jit
def kernel_6(g0, g1, g2):
    """G g of F(4, 3)"""
    even_p, odd_p, even_q, odd_q = g0 + PP * g2, P * g1, g0 + QQ * g2, Q * g1
    return (g0 * (1 / (PP * QQ)), (even_p + odd_p) * (1 / S), (even_p - odd_p) * (1 / S),
            (even_q + odd_q) * (1 / T), (even_q - odd_q) * (1 / T), g2)


@jit(parallel=True)
def transform_weights(right, C, column, panels, size, rooms, out):
    """Panels of the outputs from `column` on, each (size^2, C + 1, NR).

    right: 3 x 3 x C rows (panels.py). The row too many keeps the size^2 positions that are written
    together in different sets of the cache.
    """
    width = VECTORS * lanes(out)
    parts = (C + CHANNELS - 1) // CHANNELS
    for task in prange(panels * parts):
        panel, first = np.int64(task) // parts, np.int64(task) % parts * CHANNELS
        transform_channels(right, C, column + panel * width, first, min(CHANNELS, C - first), size,
                           rooms, out, (panel * size * size * (C + 1) + first) * width,
                           (C + 1) * width)


@jit
def transform_channels(right, C, column, first, count, size, rooms, out, at, plane):
    """`count` input channels of a panel: position s of channel first + i at at + s plane + i NR"""
    width = VECTORS * lanes(out)
    wide = wide_lanes(rooms)
    half = wide_scratch(3 * size * wide, rooms)
    room = room_of_thread(rooms, 9 * FEW)
    for few in range(0, count, FEW):
        here = min(FEW, count - few)
        weight, step, tap = _taps(right, C, column, first + few, here, room)
        for i in range(here):
            for lane in range(0, width, wide):
                source = i * step + lane
                for t in range(9):  # rows lie too far apart for the hardware to follow
                    prefetch(weight, source + t * tap + AHEAD * step)
                _transform_kernels(pointer(weight, source), tap, size, pointer(half, 0), wide,
                                   pointer(out, at + (few + i) * width + lane), plane)


@jit
def _taps(right, C, column, first, count, room):
    """Where `count` channels of a panel begin, the step from one to the next, and between taps"""
    weight, step = panel_of(right, first, count, column, room)
    if not is_small(right):
        return weight, step, C * step
    tap = count * step
    for t in range(1, 9):
        pack_panel(right, t * C + first, count, column, pointer(room, t * tap))
    return weight, step, tap


@jit
def _transform_kernels(weight, tap, size, half, wide, out, plane):
    """G g G^T of as many kernels as a vector has lanes, their taps and results this far apart"""
    for v in range(3):
        _widen(load_wide(weight, v * tap), load_wide(weight, (3 + v) * tap),
               load_wide(weight, (6 + v) * tap), size, half, v * wide, 3 * wide)
    for u in range(size):
        at = 3 * u * wide
        _widen(load_pair(half, at), load_pair(half, at + wide), load_pair(half, at + 2 * wide),
               size, out, u * size * plane, plane)


@jit
def _widen(g0, g1, g2, size, out, at, step):
    """G g, stored `step` apart"""
    if size == 4:
        y0, y1, y2, y3 = kernel_4(g0, g1, g2)
    else:
        y0, y1, y2, y3, y4, y5 = kernel_6(g0, g1, g2)
        store_rounded(out, at + 4 * step, y4)
        store_rounded(out, at + 5 * step, y5)
    store_rounded(out, at, y0)
    store_rounded(out, at + step, y1)
    store_rounded(out, at + 2 * step, y2)
    store_rounded(out, at + 3 * step, y3)
