"""The simple kinds of ops, as data: whatever lists ops by name asks for the kind instead.

    @op("x (...) -> (...)", Map(roundings=EXP + 5, curvature=1, scale=4), flops="4 * size")

From the kind come sample calls, hard inputs, cases of golden packs and bounds. An op of no such
kind (products, norms, attention) states examples, and golden/tolerances derives its bounds.
"""

import math
from dataclasses import dataclass
from typing import Any

# Library functions are not correctly rounded. What bounds allow them, in units of u (an ulp is up
# to 2 u): 2 ulp for exp, 4 ulp for erf, tanh, sin and cos.
EXP, OTHERS = 4, 8


@dataclass(frozen=True)
class Map:
    """y[i] = f(x[i]).

    roundings: how many roundings f = x s(x), |s| at most 1, takes, each relative to the result;
    None where a step cancels or f is another one, and golden/tolerances derives a bound. curvature:
    the largest |f''| where f may turn (0: f is monotonic). low, high: the domain. scale: of x where
    f is not trivial.
    """

    roundings: float | None = None
    curvature: float = 0
    low: float = -math.inf
    high: float = math.inf
    scale: float = 1


@dataclass(frozen=True)
class Pair:
    """y[i] = f(a[i], b[i]), broadcast, b an array or a number. divides: b is kept away from 0."""

    divides: bool = False


@dataclass(frozen=True)
class Movement:
    """Elements of the inputs in other positions, unchanged; integer inputs say which."""


Kind = Map | Pair | Movement


def call(*arguments: Any, **options: Any) -> tuple[tuple, dict[str, Any]]:
    """An example of a call, for a declaration: shapes stand for arrays, lists of them for lists."""
    return arguments, options
