"""Bounds of ops that work number by number, or on a few neighbours: by their kind, or their own.

An op whose declared kind is enough (data that is moved, a map with a count of roundings) needs no
line here.
"""

import functools
import math

import numpy as np
from scipy.special import erf

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma
from refsd.kinds import EXP, OTHERS, Map, Movement
from refsd.registry import Op, ops


def of_kind(op: Op) -> ErrorModel | None:
    """The model that an op's kind makes; None where the kind is not enough."""
    if isinstance(op.kind, Movement):
        return ErrorModel(zero, functools.partial(moved, op))
    if isinstance(op.kind, Map) and op.kind.roundings:
        return ErrorModel(functools.partial(mapped, roundings=op.kind.roundings),
                          functools.partial(between_ends, op), composed=True)
    return None


def zero(args, options, y, p):
    """Data is moved: no rounding at all."""
    return 0.0


def moved(op, args, options, y, perturbations, factor):
    """Each error goes where its number goes; indices stay."""
    return op.definition(*(arg if tensor.kind == "int" else error for tensor, arg, error
                           in zip(op.contract.tensors, args, perturbations)), **options)


def mapped(args, options, y, p, roundings, stored=None):
    """x s(x), |s| at most 1: roundings relative to the result, of which s's may fall below the
    normal numbers, and the product.

    stored: the precision that an s of its own is rounded to, if it is.
    """
    return (gamma(roundings, p) * abs(y) + (2 * abs(args[0]) + 2) * p.tiny
            + factors_stored(1, abs(y), abs(args[0]), stored))


def factors_stored(roundings, y, x, stored):
    """What rounding factors of y = x s to a precision adds, s of at most 1 included."""
    return 0.0 if stored is None else gamma(roundings, stored) * y + x * stored.tiny


def between_ends(op, args, options, y, perturbations, factor):
    """The larger change of the two ends; a turning point between them adds |f''| error^2 / 2."""
    x, error = args[0], perturbations[0]
    ends = [abs(op.definition(np.clip(end, op.kind.low, op.kind.high), **options) - y)
            for end in (x + error, x - error)]
    return np.maximum(np.maximum(*ends), op.kind.curvature / 2 * error * error)


def add(args, options, y, p):
    """One rounding, and one for a Python number that the precision does not hold."""
    return gamma(1, p) * abs(y) + gamma(2, p) * _inexact(args[1], p)


def of_add(args, options, y, perturbations, factor):
    return perturbations[0] + perturbations[1] + np.zeros_like(y)


def mul(args, options, y, p):
    """As add; the number's rounding is relative to the result."""
    return gamma(2 if _inexact(args[1], p) else 1, p) * abs(y) + p.tiny


def of_mul(args, options, y, perturbations, factor):
    """(|a| + da) (|b| + db) - |a b|"""
    (a, b), (da, db) = args, perturbations
    return abs(a) * db + abs(b) * da + da * db


def of_div(args, options, y, perturbations, factor):
    """(da + |y| db) / (|b| - db)"""
    smallest = np.maximum(abs(args[1]) - perturbations[1], np.finfo("float64").tiny)
    return (perturbations[0] + abs(y) * perturbations[1]) / smallest


def _inexact(b, p):
    """|b| if b is a Python number that has to be rounded, else 0"""
    if isinstance(b, np.ndarray):
        return 0.0
    return 0.0 if (math.frexp(b)[0] / p.u).is_integer() else abs(b)


def exp(args, options, y, p):
    """The library's."""
    return gamma(EXP, p) * y + 2 * p.tiny


def of_exp(args, options, y, perturbations, factor):
    """y (e^dx - 1)"""
    return y * np.expm1(np.minimum(perturbations[0], 700))


def sqrt(args, options, y, p):
    """IEEE 754 rounds square roots correctly, and they are never below the normal numbers."""
    return gamma(1, p) * y


def sqrt_of_ports(args, options, y, p):
    """The next number instead of the nearest: not all libraries round their vectors' roots."""
    return gamma(2, p) * y


def clamp(args, options, y, p):
    """Limits that the precision does not hold are rounded."""
    return p.u * max(_inexact(options["low"], p), _inexact(options["high"], p))


def of_clamp(args, options, y, perturbations, factor):
    """Clipping brings nothing further apart."""
    return perturbations[0]


def quick_gelu(args, options, y, p, stored=None):
    """silu's, and the argument 1.702 x is rounded twice: d ln sigmoid(a) / da = 1 - sigmoid(a)

    stored: the precision that 1.702, argument and sigmoid are rounded to, if they are.
    """
    a = 1.702 * args[0]
    slope = abs(a) / (1 + np.exp(np.clip(a, -700, 700)))
    return (gamma(EXP + 5 + 2 * slope, p) * abs(y) + (2 * abs(args[0]) + 2) * p.tiny
            + factors_stored(1 + 2 * slope, abs(y), abs(args[0]), stored))


def gelu(args, options, y, p, polynomial=False):
    """0.5 x (1 + erf t): t is rounded twice, erf' = 2 / sqrt(pi) e^(-t^2).

    Left of 0 the sum cancels: there the error is relative to x, not to the result. Many libraries,
    torch among them, take float32's erf to be 1 - polynomial e^(-t^2): that is off by 1.5e-7 at
    most, absolutely (Abramowitz and Stegun 1964, 7.1.26), and by 8 roundings of terms up to 1.
    """
    x = args[0]
    t = np.abs(x) * math.sqrt(0.5)
    of_t = erf(t)
    of_erf = gamma(2, p) * t * 2 / math.sqrt(math.pi) * np.exp(-t * t) + gamma(OTHERS, p) * of_t
    if polynomial and p.u >= 2.0**-24:
        of_erf = of_erf + 1.5e-7 + gamma(8, p)
    return 0.5 * abs(x) * (of_erf + gamma(3, p) * (1 + np.sign(x) * of_t)) + p.tiny


def gelu_tanh(args, options, y, p):
    """as gelu: the argument takes 7 roundings, tanh' = 1 - tanh^2"""
    x, sign = np.abs(args[0]), np.sign(args[0])
    a = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    of_tanh = gamma(7, p) * a / np.cosh(np.minimum(a, 300)) ** 2 + gamma(OTHERS, p) * np.tanh(a)
    return 0.5 * x * (of_tanh + gamma(3, p) * (1 + sign * np.tanh(a))) + p.tiny


def geglu(args, options, y, p, polynomial=False, stored=None):
    """gelu's, and the product; stored: the precision that the gate is rounded to, if it is"""
    hidden, gate = np.split(args[0], 2, axis=-1)
    return (abs(hidden) * gelu([gate], {}, None, p, polynomial) + gamma(1, p) * abs(y) + p.tiny
            + factors_stored(1, abs(y), abs(hidden), stored))


def of_geglu(args, options, y, perturbations, factor):
    """As of the product of a and gelu(b)."""
    gelu = ops()["gelu"]
    (h, g), (dh, dg) = (np.split(t[0], 2, axis=-1) for t in (args, perturbations))
    gate = gelu.definition(g)
    of_gate = between_ends(gelu, [g], {}, gate, [dg], factor)
    return abs(h) * of_gate + (abs(gate) + of_gate) * dh


def timestep_embedding(args, options, y, p):
    """The float32 angle is part of the definition; only sin and cos round."""
    return gamma(OTHERS, p) * abs(y) + p.tiny


def timestep_embedding_of_ports(args, options, y, p):
    """Frequencies e^t with t rounded 3 times (t up to ln 10^4), the angle: 1, sin or cos."""
    half = options["dim"] // 2
    t = np.arange(half) * math.log(10000) / abs(half - options["freq_shift"])
    angles = abs(np.asarray(args[0], "float64"))[:, None] * np.exp(-t)
    error = np.concatenate([gamma(3 * t + EXP + 1, p) * angles] * 2, axis=1)
    error = np.pad(error, ((0, 0), (0, options["dim"] % 2)))
    return np.minimum(error, 2) + timestep_embedding(args, options, y, p)


def of_timestep_embedding(args, options, y, perturbations, factor):
    """Times are no activations: they stay float32 in every format."""
    return np.zeros_like(y)


def rope(args, options, y, p):
    """cos and sin are rounded to the precision, then two products and a sum"""
    return gamma(3, p) * _sums_of_pairs(abs(args[0]), options) + 2 * p.tiny


def of_rope(args, options, y, perturbations, factor):
    """cos and sin are 1 at most"""
    return _sums_of_pairs(perturbations[0], options)


def _sums_of_pairs(x, options):
    """a + b at both positions of a pair"""
    half = x.shape[-1] // 2
    if options["interleaved"]:
        return np.repeat(x[..., ::2] + x[..., 1::2], 2, axis=-1)
    return np.concatenate([x[..., :half] + x[..., half:]] * 2, axis=-1)


def upsample_bilinear(args, options, y, p):
    """Per axis the two weights are off by u, then two products and a sum: 8 u of the largest

    A product below the normal numbers is off by tiny / 2, two of them an axis.
    """
    largest = abs(args[0]).max(axis=(2, 3), keepdims=True)
    return gamma(8, p) * largest + 2 * p.tiny + np.zeros_like(y)


def bilinear_of_ports(args, options, y, p):
    """Positions in the source are rounded 3 times: i is off by 3 u (i + 1), as its weights are.

    What they mix is no further apart than the largest difference of two neighbours.
    """
    x = args[0]
    extra = np.zeros_like(y)
    for axis, size in ((2, options["height"]), (3, options["width"])):
        apart = abs(np.diff(x, axis=axis)).max(axis=(2, 3), keepdims=True, initial=0)
        positions = (np.arange(size) + 1) * (x.shape[axis] / size) + 1
        extra = extra + gamma(3, p) * apart * positions.reshape((-1, 1) if axis == 2 else (1, -1))
    return upsample_bilinear(args, options, y, p) + extra


def of_bilinear(args, options, y, perturbations, factor):
    """weights are positive"""
    return ops()["upsample_bilinear"].definition(perturbations[0], **options)


MODELS = {
    "add": ErrorModel(add, of_add), "sub": ErrorModel(add, of_add),
    "mul": ErrorModel(mul, of_mul), "div": ErrorModel(mul, of_div),
    "exp": ErrorModel(exp, of_exp), "sqrt": ErrorModel(sqrt, ports=sqrt_of_ports),
    "clamp": ErrorModel(clamp, of_clamp), "quick_gelu": ErrorModel(quick_gelu, composed=True),
    "gelu": ErrorModel(gelu, ports=functools.partial(gelu, polynomial=True)),
    "gelu_tanh": ErrorModel(gelu_tanh),
    "geglu": ErrorModel(geglu, of_geglu, ports=functools.partial(geglu, polynomial=True),
                        composed=True),
    "timestep_embedding": ErrorModel(timestep_embedding, of_timestep_embedding,
                                     ports=timestep_embedding_of_ports),
    "rope": ErrorModel(rope, of_rope),
    "upsample_bilinear": ErrorModel(upsample_bilinear, of_bilinear, ports=bilinear_of_ports),
}  # fmt: skip
