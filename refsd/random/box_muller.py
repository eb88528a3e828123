"""Box-Muller transforms with the very roundings of torch 2.13.0 on x86 processors with AVX2.

Which multiplications and additions are fused was read from the machine code of the published
wheel; docs/noise.md has the list. In the formulas below `fma` stands exactly where that code has
a fused instruction, and two plain operations where it has two.
"""

import math

import numpy as np

from refsd.random.fma import fma

# Coefficients of Cephes' logf and sinf/cosf (Moshier), highest power first.
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LN2 = (0.693359375, -2.12194440e-4)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_PI_4 = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)

_LANES = 8192  # pairs handled at a time, so that the temporaries stay in the cache


def box_muller_float32(blocks):
    """(r cos t, r sin t) of a block's halves (1 - u1, u2).   (B, 16) -> (B, 16) float32"""
    out = np.empty_like(blocks)
    step = _LANES // 8
    for start in range(0, len(blocks), step):
        u = blocks[start : start + step]
        radius = np.sqrt(-2 * log_float32(1 - u[:, :8]))
        sin, cos = sincos_float32(np.float32(2 * math.pi) * u[:, 8:])
        # torch's last step is n * std + mean: with mean 0 it turns -0 into +0.
        out[start : start + step, :8] = radius * cos + 0
        out[start : start + step, 8:] = radius * sin + 0
    return out


def box_muller_float64(blocks):
    """The same in float64, where torch calls the C library for log, sin and cos.

    Those three are not correctly rounded, and NumPy's own versions differ from them in the last
    bit, so they are called one by one through `math`, which calls the same C library.
    (B, 16) -> (B, 16) float64
    """
    log = _each(math.log, 1 - blocks[:, :8])
    radius = np.sqrt(-2 * log)
    theta = 2 * math.pi * blocks[:, 8:]
    cos, sin = _each(math.cos, theta), _each(math.sin, theta)
    return np.concatenate([radius * cos, radius * sin], axis=1) + 0.0


def normal_pairs(u1, u2):
    """r cos t, r sin t with r = sqrt(-2 log(1 - u2)), t = 2 pi u1.   (P,), (P,) -> (P, 2) float64

    This is the path of tensors of fewer than 16 elements. The angle comes from the first draw
    here, and from the second half of the block above.
    """
    radius = np.sqrt(-2 * _each(math.log1p, -u2))
    theta = 2 * math.pi * u1
    cos, sin = _each(math.cos, theta), _each(math.sin, theta)
    return np.stack([radius * cos, radius * sin], axis=1)


def log_float32(u):
    """Natural logarithm of u in [2^-24, 1], as `log256_ps` computes it.   (...) -> (...) float32"""
    x, exponent = np.frexp(u)  # u = x * 2^exponent with x in [1/2, 1)
    small = x < np.float32(math.sqrt(0.5))
    x = np.where(small, (x - 1) + x, x - 1)  # now 1 + x is in [sqrt(1/2), sqrt(2))
    e = (exponent - small).astype(np.float32)

    z = x * x
    y = _polynomial(_LOG, x) * x
    y = fma(y, z, e * _LN2[1])
    y = fma(z, -0.5, y)
    return fma(e, _LN2[0], x + y)


def sincos_float32(theta):
    """sin and cos of theta in [0, 2 pi), as `sincos256_ps` does.   (...) -> (...), (...) float32"""
    octant = (theta * np.float32(4 / math.pi)).astype(np.int32)
    octant = (octant + 1) & ~1  # to the nearest multiple of pi/2, counted in pi/4
    x, y = theta, octant.astype(np.float32)
    for part in _PI_4:
        x = fma(y, -part, x)

    z = x * x
    cos = fma(z, _polynomial(_COS, z) * z, -0.5 * z) + 1
    sin = fma(x, _polynomial(_SIN, z) * z, x)

    swapped = (octant & 2) != 0
    sin, cos = np.where(swapped, cos, sin), np.where(swapped, sin, cos)
    negative_sin = (octant & 4) != 0
    negative_cos = ((octant - 2) & 4) == 0
    return np.where(negative_sin, -sin, sin), np.where(negative_cos, -cos, cos)


def _polynomial(coefficients, x):
    y = coefficients[0]
    for coefficient in coefficients[1:]:
        y = fma(y, x, coefficient)
    return y


def _each(function, x):
    values = map(function, x.ravel().tolist())
    return np.fromiter(values, dtype=np.float64, count=x.size).reshape(x.shape)
