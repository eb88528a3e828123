"""The fused multiply-add of float32, which NumPy does not have."""

import numpy as np


def fma(a, b, c):
    """float32(a * b + c), rounded once; a, b, c broadcast and are taken as float32.

    The product of two float32 is exact in float64. The sum is not, and rounding it a second time
    to float32 goes wrong when the first rounding lands half-way between two float32. So the first
    rounding is made to odd: where the sum was inexact, its last bit is set, and an odd float64 is
    never half-way. 53 bits are more than 24 + 2, so the second rounding is then the right one, also
    for subnormal results (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    a, b, c = (np.asarray(operand, dtype=np.float32) for operand in (a, b, c))
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        addend = c.astype(np.float64)
        total = np.asarray(product + addend)

        # Knuth's two-sum: total + error is product + addend exactly.
        rest = total - product
        error = (product - (total - rest)) + (addend - rest)

        bits = total.view(np.int64)
        towards_zero = bits - ((error < 0) != (total < 0))
        inexact = np.abs(error) > 0  # false for the NaN error of an infinite sum
        rounded = np.where(inexact, towards_zero | 1, bits).view(np.float64)
        return rounded.astype(np.float32)
