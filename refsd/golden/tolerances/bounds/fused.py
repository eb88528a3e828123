"""Bounds of fused ops: what the last of their ops makes of the errors of those before it."""

import functools

from refsd.golden.tolerances.bounds import elementwise, norm
from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.registry import ops

SLOPE = 1.1  # of silu at most: 1.0998 at x = 2.3994


def group_norm_silu(args, options, y, p, stored=None, recentred=True):
    """What group_norm is off by, times silu's slope, and silu's own roundings of the largest

    stored: the precision that group_norm's result is rounded to, if it is.
    """
    h = ops()["group_norm"].definition(*args, **options)
    of_h = norm.group_norm(args, options, h, p, recentred) + _stored(h, stored)
    largest = abs(h) + of_h
    return SLOPE * of_h + _silu(largest, p, stored)


def group_norm_silu_variance(args, options, y, p, factor, stored=None):
    """As group_norm's; silu's few roundings at their worst."""
    h = ops()["group_norm"].definition(*args, **options)
    of_h = norm.group_norm_variance(args, options, h, p, factor) + _stored(h, stored)**2 / 3
    own = _silu(abs(h) + factor * of_h**0.5, p, stored)
    return SLOPE**2 * of_h + own * own / 3


def of_group_norm_silu(args, options, y, perturbations, factor):
    """As of group_norm, times silu's slope."""
    worst, variance = norm.of_group_norm(args, options, y, perturbations, factor)
    return SLOPE * worst, SLOPE**2 * variance


def _silu(x, p, stored=None):
    """silu's own roundings on numbers up to x; |silu(x)| is at most silu(|x|)"""
    silu = ops()["silu"]
    return elementwise.mapped([x], {}, silu.definition(x), p, silu.kind.roundings, stored)


def _stored(x, precision):
    """What rounding x to a precision adds, if it is."""
    return 0.0 if precision is None else precision.u * abs(x) + precision.tiny


MODELS = {
    "group_norm_silu": ErrorModel(
        group_norm_silu, of_group_norm_silu, group_norm_silu_variance,
        norm.MODELS["group_norm"].terms, functools.partial(group_norm_silu, recentred=False),
        composed=True),
}  # fmt: skip
