"""Bounds of linear layers fused with what follows: its errors, and those of the product in it."""

import functools

import numpy as np

from refsd.golden.tolerances.bounds import elementwise, linear
from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma
from refsd.registry import ops


def linear_add(args, options, y, p, stored=None):
    """the addend is one term more

    stored: the precision that the product is rounded to, if it is.
    """
    x, weight, added = args[0], args[1], abs(_addend(args)) + abs(_bias(args))
    K = weight.shape[1]
    worst = linear.product_worst(_linear, x, weight, added, K, K + 2, p)
    return worst + _stored(abs(x) @ abs(weight).T + abs(_bias(args)), stored)


def linear_add_variance(args, options, y, p, factor, stored=None):
    """As linear's, of one term more."""
    addend, bias, K = _addend(args), _bias(args), args[1].shape[1]
    outside = np.sqrt(addend * addend + bias * bias)
    own = linear.product_variance(_linear, *args[:2], outside, K + 2, y, p)
    return own + _stored(abs(y - addend), stored)**2 / 3


def of_linear_add(args, options, y, perturbations, factor):
    worst, variance = linear.of_linear(args, options, y, [*perturbations[:2], *perturbations[3:]],
                                       factor)
    of_addend = perturbations[2]
    return worst + of_addend, variance + of_addend * of_addend / 3


def linear_geglu(args, options, y, p, polynomial=False, stored=None):
    """what geglu makes of the product's errors, and its own of the largest that goes in

    stored: the precision that the product and the gate are rounded to, if they are.
    """
    z = _product(args)
    of_z = linear.linear(args, options, z, p)
    of_z = of_z + _stored(abs(z) + of_z, stored)
    of_inputs = elementwise.of_geglu([z], {}, y, [of_z], 1.0)
    return of_inputs + _geglu(z, of_z, abs(y) + of_inputs, p, polynomial, stored)


def linear_geglu_variance(args, options, y, p, factor, stored=None):
    """What geglu makes of the product's; its own few roundings at their worst."""
    z = _product(args)
    of_z = factor * np.sqrt(linear.linear_variance(args, options, z, p, factor)
                            + _stored(abs(z), stored)**2 / 3)
    of_inputs = elementwise.of_geglu([z], {}, y, [of_z], factor)
    own = _geglu(z, of_z, abs(y) + of_inputs, p, True, stored)
    return (of_inputs / factor)**2 + own * own / 3


def of_linear_geglu(args, options, y, perturbations, factor):
    """What geglu makes of the product's."""
    z = _product(args)
    worst, variance = linear.of_linear(args, options, z, perturbations, factor)
    worst, likely = (elementwise.of_geglu([z], {}, y, [of_z], factor)
                     for of_z in (worst, factor * np.sqrt(variance)))
    return worst, (likely / factor)**2


def _geglu(z, of_z, largest, p, polynomial, stored):
    """geglu's own errors on [h | g] off by of_z; gelu's are largest at the largest |g|"""
    return elementwise.geglu([abs(z) + of_z], {}, largest, p, polynomial, stored)


def _product(args):
    return ops()["linear"].definition(*args)


def _linear(x, weight):
    return x @ weight.T


def _addend(args):
    return np.asarray(args[2])


def _bias(args):
    """The fourth argument, or 0"""
    return np.float64(0) if len(args) < 4 or args[3] is None else args[3]


def _stored(x, precision):
    """What rounding numbers up to x to a precision adds, if it is."""
    return 0.0 if precision is None else gamma(1, precision) * x + precision.tiny


MODELS = {
    "linear_add": ErrorModel(linear_add, of_linear_add, linear_add_variance,
                             linear.MODELS["linear"].terms, composed=True),
    "linear_geglu": ErrorModel(
        linear_geglu, of_linear_geglu, linear_geglu_variance, linear.MODELS["linear"].terms,
        functools.partial(linear_geglu, polynomial=True), composed=True),
}  # fmt: skip
