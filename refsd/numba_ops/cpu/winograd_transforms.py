"""The transforms of F(2x2, 3x3) and F(4x4, 3x3) on vectors: one channel a lane.

In one dimension y = A^T [(G g) * (B^T d)] with

    F(2, 3): points 0, 1, -1               F(4, 3): points 0, p, -p, q, -q with p = 5/8, q = 3/2
    B^T  1  0 -1  0                        B^T  p2q2   0  -p2-q2    0    1   0
         0  1  1  0                              0  -p q2   -q2     p    1   0
         0 -1  1  0                              0   p q2   -q2    -p    1   0
         0  1  0 -1                              0  -p2 q   -p2     q    1   0
    A^T  1  1  1  0                              0   p2 q   -p2    -q    1   0
         0  1 -1 -1                              0   p2q2    0  -p2-q2   0   1
                                           A^T  1   1   1   1   1   0
                                                0   p  -p   q  -q   0
                                                0  p2  p2  q2  q2   0
                                                0  p3 -p3  q3 -q3   1
and G in winograd_weights.py; p2q2 is p^2 q^2. In two dimensions that happens along columns, then
along rows. Most use p = 1, q = 2. With 5/8 and 3/2 the error is half as large, and all coefficients
here are still exact in float32.
"""

from refsd.numba_ops.jit import jit
from refsd.numba_ops.simd import lanes, load, prefetch, splat_like, store

P, Q = 5 / 8, 3 / 2
PP, QQ = P * P, Q * Q


@jit
def into_4(d0, d1, d2, d3):
    """B^T d of F(2, 3)"""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


@jit
def into_6(d0, d1, d2, d3, d4, d5):
    """B^T d of F(4, 3)"""
    even_p, odd_p = d4 - QQ * d2, P * (d3 - QQ * d1)
    even_q, odd_q = d4 - PP * d2, Q * (d3 - PP * d1)
    first = PP * QQ * d0 - (PP + QQ) * d2 + d4
    last = PP * QQ * d1 - (PP + QQ) * d3 + d5
    return first, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, last


@jit
def out_of_4(m0, m1, m2, m3):
    """A^T m of F(2, 3)"""
    return m0 + m1 + m2, m1 - m2 - m3


@jit
def out_of_6(m0, m1, m2, m3, m4, m5):
    """A^T m of F(4, 3)"""
    sum_p, odd_p, sum_q, odd_q = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (m0 + sum_p + sum_q, P * odd_p + Q * odd_q, PP * sum_p + QQ * sum_q,
            P * PP * odd_p + Q * QQ * odd_q + m5)


@jit
def transform_pixels(x, at, row, pixel, channels, size, half, out, out_at, plane):
    """B^T d B, channel by channel: pixel (a, b) of d lies at at + a row + b pixel in x, position
    (a, b) of the result at out_at + (a size + b) plane in out; half (size, size, lanes) is B^T d.
    """
    n = lanes(x)
    for c in range(0, channels, n):
        for b in range(size):
            for a in range(size):  # the next of 36 streams: more than hardware follows
                prefetch(x, at + a * row + b * pixel + c + 4 * n)
            _into(x, at + b * pixel + c, row, size, half, b * n, size * n)
        for a in range(size):
            _into(half, a * size * n, n, size, out, out_at + a * size * plane + c, plane)


@jit
def transform_sums(m, at, plane, size, half, bias, out, out_at, row, pixel):
    """A^T m A + bias for one vector of channels; the addresses are as in transform_pixels"""
    n, nothing = lanes(m), splat_like(bias, 0.0)
    for b in range(size):
        _out_of(m, at + b * plane, size * plane, size, half, b * n, size * n, nothing)
    for a in range(size - 2):
        for b in range(size - 2, 2 * size - 4):  # the next tile's pixels
            prefetch(out, out_at + a * row + b * pixel)
        _out_of(half, a * size * n, n, size, out, out_at + a * row, pixel, bias)


@jit
def _into(x, at, step, size, out, out_at, out_step):
    """B^T of `size` vectors that lie `step` apart"""
    d0, d1, d2, d3 = _load_4(x, at, step)
    if size == 4:
        _store_4(out, out_at, out_step, into_4(d0, d1, d2, d3))
    else:
        d4, d5 = load(x, at + 4 * step), load(x, at + 5 * step)
        v0, v1, v2, v3, v4, v5 = into_6(d0, d1, d2, d3, d4, d5)
        _store_4(out, out_at, out_step, (v0, v1, v2, v3))
        store(out, out_at + 4 * out_step, v4)
        store(out, out_at + 5 * out_step, v5)


@jit
def _out_of(m, at, step, size, out, out_at, out_step, bias):
    """A^T of `size` vectors that lie `step` apart, plus bias"""
    m0, m1, m2, m3 = _load_4(m, at, step)
    if size == 4:
        y0, y1 = out_of_4(m0, m1, m2, m3)
        store(out, out_at, y0 + bias)
        store(out, out_at + out_step, y1 + bias)
    else:
        m4, m5 = load(m, at + 4 * step), load(m, at + 5 * step)
        y0, y1, y2, y3 = out_of_6(m0, m1, m2, m3, m4, m5)
        _store_4(out, out_at, out_step, (y0 + bias, y1 + bias, y2 + bias, y3 + bias))


@jit
def _load_4(x, at, step):
    return load(x, at), load(x, at + step), load(x, at + 2 * step), load(x, at + 3 * step)


@jit
def _store_4(out, at, step, values):
    a, b, c, d = values
    store(out, at, a)
    store(out, at + step, b)
    store(out, at + 2 * step, c)
    store(out, at + 3 * step, d)
