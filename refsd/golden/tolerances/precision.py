"""Rounding errors one by one and in sums: the bricks of all bounds (docs/tolerances.md)."""

import math
from typing import NamedTuple

import numpy as np

from refsd.errors import UsageError
from refsd.golden.tolerances.formats import FORMATS, Format, format_named


class Precision(NamedTuple):
    """Half the distance from 1 to the next number, and the smallest number above 0."""

    u: float
    tiny: float


PRECISIONS = {name: Precision(f.unit, f.tiny) for name, f in FORMATS.items() if not f.block}


class Arithmetic(NamedTuple):
    """How a port computes: its tensors' format, its matrices' and its sums'."""

    tensors: Format
    matrices: Format
    sums: Precision
    own_rounding: bool  # whether results are rounded from the sums' format to the tensors'


def arithmetic_of(format: str, accumulate: str = "float32") -> Arithmetic:
    """The Arithmetic of a port in a format. int8 is the format of its matrices alone.

    Sums are at least as fine as what goes in, unless they are made in the format itself.
    Raises UsageError for an unknown format, and for sums in blocks with a shared scale.
    """
    tensors = matrices = format_named(format)
    sums = format_named(accumulate)
    if sums.block:
        raise UsageError(f"accumulate is {accumulate!r}; give a format without shared scales: "
                         f"{', '.join(PRECISIONS)}")
    if tensors.name == "int8":
        tensors = FORMATS["float32"]
    if tensors.name == "float64":
        sums = tensors
    return Arithmetic(tensors, matrices, PRECISIONS[sums.name], sums.name != tensors.name)


def gamma(n, precision):
    """How far n roundings in a row can be from none: (1 - u)^-n - 1 = n u + ...

    Higham 2002, lemma 3.1, has n u / (1 - n u), which is no smaller and ends at n u = 1.
    """
    return np.expm1(np.minimum(-n * math.log1p(-precision.u), 700))


# Where two terms dominate, an outlier and what cancels it, the sums between them are as large all
# along: their squares add up to three times the mean over orders. One that comes first: to twice.
OUTLIERS = 3


def running_sum(n, squares, y, precision, orders=OUTLIERS):
    """The variance of a running sum of n products, an element of y each.

    squares is the sum of the products' squares. After j of n terms the sum has, over all orders,
    the mean square j^2 m^2 + j (n - j) / (n - 1) s^2, where m and s^2 are mean and variance of the
    terms; each addition adds a rounding of variance u^2 / 3 of that, `orders` times; so do the
    products, once. Sums in pieces or in a tree have less.
    """
    y2 = y * y
    spread = np.maximum(squares - y2 / n, 0) * (n + 1) / 6
    drift = y2 * (n + 1) * (2 * n + 1) / (6 * n)
    return precision.u**2 / 3 * (orders * (spread + drift) + squares)


def quantile(count, confidence):
    """lambda: no one of `count` errors exceeds lambda standard deviations, at this confidence.

    Hoeffding: P(|e| > lambda s) <= 2 exp(-lambda^2 / 2) for each, and there are `count`.
    """
    return math.sqrt(2 * math.log(2 * max(1, count) / (1 - confidence)))
