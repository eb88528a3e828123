"""Weights of a Winograd convolution: G g G^T of every kernel, in float64, rounded once, packed.

    F(2, 3): G  1    0    0          F(4, 3): G  1/p2q2    0      0       s = 2 p2 (p2 - q2)
                1/2  1/2  1/2                     1/s     p/s   p2/s      t = 2 q2 (q2 - p2)
                1/2 -1/2  1/2                     1/s    -p/s   p2/s
                0    0    1                       1/t     q/t   q2/t
                                                  1/t    -q/t   q2/t
                                                   0       0      1
The memory is 16/9 (F(2x2)) or 4 times (F(4x4)) that of the weights.
"""

import numpy as np
from numba import prange

from refsd.numba_ops.cpu.winograd_transforms import PP, QQ, P, Q
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import aligned_empty, flat, panel_width

S, T = 2 * PP * (PP - QQ), 2 * QQ * (QQ - PP)


def pack_transformed(weight, size):
    """weight (O, C, 3, 3) -> flat panels of NR outputs, each (size^2, C, NR), the rest zeros"""
    O, C = weight.shape[:2]
    panels = -(-O // panel_width(weight.dtype))
    out = aligned_empty(panels * size * size * C * panel_width(weight.dtype), weight.dtype)
    _transform_weights(flat(np.require(weight, requirements="CA")), O, C, size, out, panels)
    return out


@jit
def kernel_4(g0, g1, g2):
    """G g of F(2, 3)"""
    return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2


@jit
def kernel_6(g0, g1, g2):
    """G g of F(4, 3)"""
    even_p, odd_p, even_q, odd_q = g0 + PP * g2, P * g1, g0 + QQ * g2, Q * g1
    return (g0 / (PP * QQ), (even_p + odd_p) / S, (even_p - odd_p) / S,
            (even_q + odd_q) / T, (even_q - odd_q) / T, g2)


@jit(parallel=True)
def _transform_weights(weight, O, C, size, out, panels):
    squares = size * size
    width = out.size // (panels * squares * C)
    for p in prange(panels):
        first = np.int64(p) * width
        half = np.empty((6, 3))
        # One channel of all outputs at a time: (squares, width), then each row to its own place.
        here = np.zeros((squares, width), out.dtype)
        for c in range(C):
            for o in range(first, min(first + width, O)):
                _transform_kernel(weight, (o * C + c) * 9, size, half, here, o - first)
            for s in range(squares):
                at = ((first // width * squares + s) * C + c) * width
                for k in range(width):
                    out[at + k] = here[s, k]


@jit
def _transform_kernel(weight, at, size, half, out, column):
    """G g G^T of the nine numbers at `at`, into a column"""
    for v in range(3):
        g0, g1, g2 = (np.float64(weight[at + v]), np.float64(weight[at + 3 + v]),
                      np.float64(weight[at + 6 + v]))
        if size == 4:
            half[0, v], half[1, v], half[2, v], half[3, v] = kernel_4(g0, g1, g2)
        else:
            (half[0, v], half[1, v], half[2, v], half[3, v], half[4, v],
             half[5, v]) = kernel_6(g0, g1, g2)
    for u in range(size):
        s = u * size
        if size == 4:
            out[s, column], out[s + 1, column], out[s + 2, column], out[s + 3, column] = kernel_4(
                half[u, 0], half[u, 1], half[u, 2])
        else:
            (out[s, column], out[s + 1, column], out[s + 2, column], out[s + 3, column],
             out[s + 4, column], out[s + 5, column]) = kernel_6(half[u, 0], half[u, 1], half[u, 2])
