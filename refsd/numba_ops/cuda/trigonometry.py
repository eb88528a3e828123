"""sin and cos of numbers up to 10^5: reduced by pi / 2 in three parts, then a series."""

import math
from typing import Any

from refsd.numba_ops.cuda.numbers import computed, number

# Three numbers of each type whose sum is pi / 2, and the terms after which a series at pi / 4 is
# off by less than half a unit in the last place: x^11 / 11! and x^19 / 19! of sin x, x^12 / 12! and
# x^18 / 18! of cos x.
PARTS = {"float32": (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
         "float64": (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)}
TERMS = {"float32": (4, 5), "float64": (8, 8)}


def sin_cos(gpu: Any, dtype: str) -> Any:
    """both(x) -> (sin x, cos x). Multiples of pi / 2 lose nothing: each step is one rounding."""
    kind, name = number(gpu, dtype), computed(dtype)
    high, middle, low = (kind(-part) for part in PARTS[name])
    per_turn, one, fma, int32 = kind(2 / math.pi), kind(1), gpu.fma, gpu.int32
    # Added and taken off again, it leaves whole numbers.
    whole = kind(1.5 * 2.0 ** {"float32": 23, "float64": 52}[name])
    of_sin = [kind(1 / (2 * i * (2 * i + 1))) for i in range(TERMS[name][0], 0, -1)]
    of_cos = [kind(1 / (2 * i * (2 * i - 1))) for i in range(TERMS[name][1], 0, -1)]
    sin_series, cos_series = _series(gpu, of_sin, one), _series(gpu, of_cos, one)

    def both(x):
        turns = (x * per_turn + whole) - whole
        r = fma(turns, low, fma(turns, middle, fma(turns, high, x)))
        square = r * r
        sine, cosine = r * sin_series(square), cos_series(square)
        quarter = int32(turns) & int32(3)
        if quarter == 1:
            return cosine, -sine
        if quarter == 2:
            return -sine, -cosine
        if quarter == 3:
            return -cosine, sine
        return sine, cosine

    return gpu.device(both)


def _series(gpu, factors, one):
    """1 - s f_1 (1 - s f_2 (...)), the innermost factor first: one call a term, all become one."""
    def last(s):
        return one

    inner = gpu.device(last)
    for factor in factors:
        inner = _term(gpu, factor, inner, one)
    return inner


def _term(gpu, factor, inner, one):
    def term(s):
        return one - s * factor * inner(s)

    return gpu.device(term)
