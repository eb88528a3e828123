"""Bounds of ops whose declared kind is enough: maps of one number, and movement of data."""

import functools

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma
from refsd.kinds import Map, Movement
from refsd.registry import Op


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
