"""Bounds of activations: roundings of the formula, relative to the result unless a sum cancels."""

import functools
import math

import numpy as np
from scipy.special import erf

from refsd.golden.tolerances.bounds.kinds import between_ends, factors_stored
from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import EXP, OTHERS, gamma
from refsd.registry import ops


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


def softmax(args, options, y, p):
    """x - max is rounded, which e^ turns into a relative error; then K - 1 additions, a quotient"""
    x, axis = args[0], options["axis"]
    depth = softmax_depth(x, axis)
    average = (y * depth).sum(axis=axis, keepdims=True)
    roundings = depth + average + 2 * EXP + x.shape[axis]
    return gamma(roundings, p) * y + 4 * p.tiny


def softmax_depth(x, axis):
    """how far below the largest, 0 where nothing is left of it"""
    largest = x.max(axis=axis, keepdims=True)
    return np.where(np.isneginf(x), 0, np.where(np.isneginf(largest), 0, largest) - x)


def softmax_variance(args, options, y, p, factor):
    """the shift by the largest, e^ and the quotient; the sum's partial sums grow to 1 evenly"""
    x, axis = args[0], options["axis"]
    depth = softmax_depth(x, axis)
    r = p.u**2 / 3 * (depth * depth + (2 * EXP)**2 + 2)
    common = (y * y * r).sum(axis=axis, keepdims=True) + p.u**2 / 9 * x.shape[axis]
    return y * y * (grown(r + common, factor) / factor)**2


def of_softmax(args, options, y, perturbations, factor):
    """ln y_i moves by the error of x_i and the average of all"""
    dx, axis = perturbations[0], options["axis"]
    together = np.minimum(dx + dx.max(axis=axis, keepdims=True), 300)
    r = dx * dx / 3 + (y * y * dx * dx).sum(axis=axis, keepdims=True) / 3
    return y * np.expm1(together), (y * grown(r, factor) / factor)**2


def grown(r, factor):
    """By how much of itself a number grows whose logarithm, of variance r, is that far up."""
    return np.expm1(np.minimum(factor * np.sqrt(r), 300))


MODELS = {
    "quick_gelu": ErrorModel(quick_gelu, composed=True),
    "gelu": ErrorModel(gelu, ports=functools.partial(gelu, polynomial=True)),
    "gelu_tanh": ErrorModel(gelu_tanh),
    "geglu": ErrorModel(geglu, of_geglu, ports=functools.partial(geglu, polynomial=True),
                        composed=True),
    "softmax": ErrorModel(softmax, of_softmax, softmax_variance,
                          lambda args, options: (args[0].shape[options["axis"]],), convex=True),
}  # fmt: skip
