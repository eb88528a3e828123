"""Bounds of fused ops: what the last of their ops makes of the errors of those before it."""

import functools
import math

import numpy as np

from refsd.golden.tolerances.bounds import conv, elementwise, norm
from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma
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


def conv2d_add(args, options, y, p, stored=None):
    """conv2d's, and the sum's rounding

    stored: the precision that conv2d's result is rounded to, if it is.
    """
    product, addend = _without_addend(args)
    of_product = conv.conv2d(product, options, y - addend, p) + _stored(y - addend, stored)
    return of_product + gamma(1, p) * (abs(y) + of_product)


def conv2d_add_variance(args, options, y, p, factor, stored=None):
    """As conv2d's, and the sum's rounding."""
    product, addend = _without_addend(args)
    of_product = conv.conv2d_variance(product, options, y - addend, p, factor)
    return of_product + _stored(y - addend, stored)**2 / 3 + p.u**2 / 3 * y * y


def of_conv2d_add(args, options, y, perturbations, factor):
    """As of conv2d, and the addend's."""
    (x, weight, added, *bias), (product, _) = perturbations, _without_addend(args)
    worst, variance = conv.of_conv2d(product, options, y, [x, weight, *bias], factor)
    return worst + added, variance + added * added / 3


def _without_addend(args):
    """conv2d's arguments, and the addend"""
    x, weight, addend, *bias = args
    return [x, weight, *bias], addend


def upsample_conv2d(args, options, y, p):
    """As of conv2d: nothing is rounded where pixels are repeated."""
    return conv.conv2d(*_enlarged(args, options), y, p)


def upsample_conv2d_variance(args, options, y, p, factor):
    return conv.conv2d_variance(*_enlarged(args, options), y, p, factor)


def of_upsample_conv2d(args, options, y, perturbations, factor):
    """As of conv2d, but that a pixel's error comes as often as a window sees the pixel, n times.

    By Cauchy's inequality the sum of the n weights it has, squared, is n sums of squares at most.
    """
    of_x = np.broadcast_to(perturbations[0], args[0].shape)
    errors = [*_enlarged([of_x], options)[0], *perturbations[1:]]
    args, alone = _enlarged(args, options)
    worst, variance = conv.of_conv2d(args, alone, y, errors, factor)
    often = math.prod(min(taps, -(-after // before)) for taps, after, before in zip(
        args[1].shape[2:], (options["height"], options["width"]), of_x.shape[2:]))
    return worst, often * variance


def _enlarged(args, options):
    """conv2d's arguments and options"""
    to = {name: options[name] for name in ("height", "width")}
    x = ops()["upsample_nearest"].definition(args[0], **to)
    return [x, *args[1:]], {name: options[name] for name in options if name not in to}


def _terms(args, options):
    return (args[1][0].size,)


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
    "conv2d_add": ErrorModel(conv2d_add, of_conv2d_add, conv2d_add_variance, _terms, product=True,
                             composed=True),
    "upsample_conv2d": ErrorModel(upsample_conv2d, of_upsample_conv2d, upsample_conv2d_variance,
                                  _terms, product=True),
}  # fmt: skip
