"""exp, sigmoid, tanh and erf of SIMD vectors: a polynomial each, at most 2 ulp (exp) or 4 ulp.

exp2_below (for attention) and phi (for GELU) are quicker, and promise what their op needs.

For float32 lanes. float64 lanes go through the C library one after the other, which is right but
slow: float64 is the oracle, not the workhorse. The coefficients are those that
tools/fit_polynomials.py prints; tests/test_simd.py holds the errors.
"""

import math

import refsd.numba_ops.settings  # noqa: F401  before Numba

from numba import types
from numba.extending import overload

from refsd.numba_ops.jit import jit
from refsd.numba_ops.simd import (
    Vector,
    absolute,
    bitcast,
    copysign,
    fma,
    libm_erf,
    libm_exp,
    libm_exp2,
    libm_tanh,
    minimum,
    select,
    splat_like,
)

LOG2_E = 1 / math.log(2)
# ln 2 in two parts; the first has 12 trailing zero bits, so that n times it is exact.
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.4286068203094172e-06
# 1.5 * 2^23: a small number added to it leaves its nearest integer in the low bits of the sum.
SHIFT, SHIFT_BITS = 12582912.0, 0x4B400000


def _exp32(x):
    """e^x = 2^n e^r, n = round(x / ln 2): e^r by a polynomial, 2^n by its exponent bits."""
    # Outside these bounds the result is 0 or infinity, and the steps below give just that.
    x = select(x < -104.0, splat_like(x, -104.0), select(x > 89.0, splat_like(x, 89.0), x))
    shifted = fma(x, splat_like(x, LOG2_E), splat_like(x, SHIFT))
    n = shifted - SHIFT
    p = _exp_of_rest(x, n)

    # 2^n in two factors, since n runs from -150 (below the normal numbers) to 128 (above them).
    whole = bitcast(shifted) - SHIFT_BITS
    half = whole >> 1
    return p * bitcast((half + 127) << 23) * bitcast((whole - half + 127) << 23)


def _exp_below32(x):
    """As _exp32 for x <= 0, which needs one factor less."""
    x = select(x < -104.0, splat_like(x, -104.0), x)
    # The sum's low bits are n + 151, the exponent bits of 2^(n + 24): a normal number.
    shifted = fma(x, splat_like(x, LOG2_E), splat_like(x, SHIFT + 151))
    p = _exp_of_rest(x, shifted - (SHIFT + 151))
    return p * bitcast(bitcast(shifted) << 23) * 2.0**-24


@jit
def _exp_of_rest(x, n):
    """e^(x - n ln 2), |x - n ln 2| <= ln 2 / 2"""
    r = fma(n, splat_like(x, -LN2_HIGH), x)
    r = fma(n, splat_like(x, -LN2_LOW), r)

    p = splat_like(x, 0.0013821023749187589)
    p = fma(p, r, splat_like(x, 0.00836866907775402))
    p = fma(p, r, splat_like(x, 0.04166826233267784))
    p = fma(p, r, splat_like(x, 0.1666652113199234))
    p = fma(p, r, splat_like(x, 0.4999999403953552))
    return fma(p * r, r, r) + 1.0


def _exp2_below32(x):
    """2^x for x <= 0, but 0 below 2^-126: the exponent bits of 2^n are then those of a sum."""
    shifted = x + (SHIFT + 127)
    r = x - (shifted - (SHIFT + 127))

    p = splat_like(x, 0.0013271061470732093)
    p = fma(p, r, splat_like(x, 0.009671361185610294))
    p = fma(p, r, splat_like(x, 0.055507075041532516))
    p = fma(p, r, splat_like(x, 0.24022245407104492))
    p = fma(p, r, splat_like(x, 0.6931470036506653))
    p = fma(p, r, splat_like(x, 1.0))
    return select(x < -126.0, splat_like(x, 0.0), p * bitcast(bitcast(shifted) << 23))


def _erf32(x):
    """x + x p(x^2) near 0, otherwise 1 - e^-q(|x|)."""
    t = x * x
    p = splat_like(x, 5.742596840718761e-06)
    p = fma(p, t, splat_like(x, 6.48015266051516e-05))
    p = fma(p, t, splat_like(x, -0.0007898978656157851))
    p = fma(p, t, splat_like(x, 0.0051854634657502174))
    p = fma(p, t, splat_like(x, -0.026854287832975388))
    p = fma(p, t, splat_like(x, 0.11283615231513977))
    p = fma(p, t, splat_like(x, -0.3761262893676758))
    p = fma(p, t, splat_like(x, 0.12837916612625122))
    near = fma(x, p, x)

    a = minimum(absolute(x), splat_like(x, 4.0))
    q = splat_like(x, 2.84931189753479e-07)
    q = fma(q, a, splat_like(x, 1.7625390682951547e-05))
    q = fma(q, a, splat_like(x, -0.0004165437421761453))
    q = fma(q, a, splat_like(x, 0.00411988515406847))
    q = fma(q, a, splat_like(x, -0.025031214579939842))
    q = fma(q, a, splat_like(x, 0.10818643867969513))
    q = fma(q, a, splat_like(x, 0.633406400680542))
    q = fma(q, a, splat_like(x, 1.1294944286346436))
    q = fma(q, a, splat_like(x, -0.0001717951672617346))
    far = copysign(1.0 - exp(-q), x)
    return select(absolute(x) < 0.9375, near, far)


def _phi32(x):
    """1 / 2 + x p(x^2) / q(x^2), and 0 or 1 where that lies closer than half an ulp of 1"""
    t = x * x
    p = splat_like(x, 2.035225676877417e-08)
    p = fma(p, t, splat_like(x, 6.325647973426385e-06))
    p = fma(p, t, splat_like(x, 0.0001869358675321564))
    p = fma(p, t, splat_like(x, 0.004787700716406107))
    p = fma(p, t, splat_like(x, 0.03579031303524971))
    p = fma(p, t, splat_like(x, 0.3989422619342804))
    q = splat_like(x, 1.1250134548390633e-06)
    q = fma(q, t, splat_like(x, 7.861539052100852e-05))
    q = fma(q, t, splat_like(x, 0.001988996984437108))
    q = fma(q, t, splat_like(x, 0.02973257005214691))
    q = fma(q, t, splat_like(x, 0.25637897849082947))
    q = fma(q, t, splat_like(x, 1.0))
    half = splat_like(x, 0.5)
    return half + select(absolute(x) > 5.6, copysign(half, x), x * p / q)


def _phi64(x):
    return 0.5 + 0.5 * libm_erf(math.sqrt(0.5) * x)


def _tanh32(x):
    """x + x^3 p(x^2) near 0, otherwise 1 - 2 / (e^2|x| + 1)."""
    t = x * x
    p = splat_like(x, -0.005699374713003635)
    p = fma(p, t, splat_like(x, 0.020633498206734657))
    p = fma(p, t, splat_like(x, -0.05373776704072952))
    p = fma(p, t, splat_like(x, 0.13331414759159088))
    p = fma(p, t, splat_like(x, -0.3333328068256378))
    near = fma(x * t, p, x)
    far = copysign(1.0 - 2.0 / (exp(2.0 * absolute(x)) + 1.0), x)
    return select(absolute(x) < 0.625, near, far)


def _by_dtype(name, single, double):
    """A function that Numba code can call on vectors of either dtype."""

    def function(x):
        raise NotImplementedError(f"{name} of SIMD vectors exists in compiled code only")

    function.__name__ = name

    @overload(function)
    def choose(x):
        if isinstance(x, Vector):
            if x.dtype == types.float32:
                return lambda x: single(x)
            return lambda x: double(x)

    return function


exp = _by_dtype("exp", jit(_exp32), libm_exp)
tanh = _by_dtype("tanh", jit(_tanh32), libm_tanh)
erf = _by_dtype("erf", jit(_erf32), libm_erf)
exp2_below = _by_dtype("exp2_below", jit(_exp2_below32), libm_exp2)
exp_below = _by_dtype("exp_below", jit(_exp_below32), libm_exp)
# The normal distribution, (1 + erf(x / sqrt 2)) / 2: phi(x) - 1/2 has a relative error below 6 u.
phi = _by_dtype("phi", jit(_phi32), jit(_phi64))


@jit
def sigmoid(x):
    """1 / (1 + e^-x), at most 4 ulp; written with e^-|x|, so that the far left stays exact"""
    z = exp_below(-absolute(x))
    return select(x >= 0.0, splat_like(x, 1.0), z) / (1.0 + z)
