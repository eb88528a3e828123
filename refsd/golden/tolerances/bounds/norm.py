"""Bounds of norms: K numbers a row, d = x - mean, s = sqrt(mean d^2 + eps), y = w d / s + b."""

import functools
import math

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma


def layer_norm(args, options, y, p, recentred=True):
    """weight d / s + bias with d = x - mean twice, s = sqrt(mean d^2 + eps)

    Not recentred: d = x - mean once, or x times a scale plus a shift, which round x and mean.
    """
    (x, weight, bias), eps, K = _affine(args), options["eps"], args[0].shape[-1]
    d = x - x.mean(axis=-1, keepdims=True)
    off = gamma(K + 1, p) * abs(x).mean(axis=-1, keepdims=True)  # of the first mean
    d_max = abs(d) + off
    if recentred:
        of_d = gamma(3, p) * d_max + gamma(K + 2, p) * d_max.mean(axis=-1, keepdims=True)
    else:
        of_d = off + gamma(3, p) * (abs(x) + abs(x - d) + off)

    of_d = of_d + 2 * p.tiny  # of the means: below the normal numbers differences are exact

    variance = (d * d).mean(axis=-1, keepdims=True)
    squares = ((2 * abs(d) + of_d) * of_d).mean(axis=-1, keepdims=True)
    of_variance = squares + gamma(K + 1, p) * (variance + squares)
    of_sum = of_variance / (variance + eps) + gamma(2, p)  # relative; eps is rounded as well
    of_s = of_sum / (1 + np.sqrt(np.maximum(1 - of_sum, 0))) + gamma(1, p)

    s = np.sqrt(variance + eps)
    normal = (of_d + abs(d) * (of_s + gamma(3, p))) / (s * np.maximum(1 - of_s, 1e-3)) + p.tiny
    return abs(weight) * normal + gamma(1, p) * (abs(y) + abs(bias)) + 4 * p.tiny


def layer_norm_variance(args, options, y, p, factor):
    """The mean moves all d, each d is rounded, s errs like its sum of squares.

    Both means are running sums. Neighbours in a picture are alike, so the order is no random one:
    all that is above the mean may come first, then partial sums rise to K / 2 mean |d| above
    j mean. That of squares grows evenly (K / 3 of its square); half of its relative error is s's.
    """
    x, weight, bias = _affine(args)
    K, one = x.shape[-1], p.u**2 / 3
    mean = x.mean(axis=-1, keepdims=True)
    d = x - mean
    aside = np.mean(abs(d), axis=-1, keepdims=True)
    of_mean = one * (K / 12 * aside**2 + (K / 3 + 1) * mean**2)
    variance = (d * d).mean(axis=-1, keepdims=True)
    s2 = variance + options["eps"]
    # An error of the mean also enters the variance, squared.
    of_s = one * ((variance / s2)**2 * (K / 3 + 3) / 4 + 2) + (factor * of_mean / s2)**2 / 4
    of_s = of_s / np.maximum(1 - factor * np.sqrt(of_s), 1e-3)**2
    normal = d * d / s2
    # x times a scale plus a shift is as good as (x - mean) times a scale: both parts round.
    of_d = of_mean + one * (d * d + x * x + mean * mean)
    return weight**2 * (of_d / s2 + normal * (of_s + 3 * one)) + one * (y * y + bias * bias)


def of_layer_norm(args, options, y, perturbations, factor):
    """d / s: each x's own error, the mean's, and that of s, which is the mean of d dx / s"""
    x, weight, _ = _affine(args)
    dx, dw, db = (*_full(args, perturbations), 0.0, 0.0)[:3]
    K = x.shape[-1]
    d = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((d * d).mean(axis=-1, keepdims=True) + options["eps"])
    normal = abs(d) / s
    of_d = dx + np.mean(dx, axis=-1, keepdims=True)
    of_s = ((abs(d) + of_d) * of_d).mean(axis=-1, keepdims=True) / (s * s)
    worst = (of_d / s + normal * of_s) / np.maximum(1 - of_s, 1e-3)
    dx2 = dx * dx
    of_d = dx2 + dx2.mean(axis=-1, keepdims=True) / K
    of_s = (d * d * dx2).mean(axis=-1, keepdims=True) / (K * s**4)
    shrink = np.maximum(1 - factor * np.sqrt(of_s), 1e-3)**2
    variance = (of_d / (s * s) + normal**2 * of_s) / shrink
    # Numbers closer to each other than to their neighbours in the format round together.
    together = np.max(dx, axis=-1, keepdims=True, initial=0) > s
    variance = np.where(together, 3 * worst * worst, variance)
    return ((abs(weight) + dw) * worst + dw * normal + db,
            ((weight**2 + dw * dw) * variance + dw * dw * normal**2 + db * db) / 3)


def _affine(args):
    """x, weight and bias, 1 and 0 where the call has none"""
    args = [arg for arg in args if arg is not None]
    return (*args, *(1.0, 0.0)[len(args) - 1:])


def _full(args, perturbations):
    return [error + np.zeros_like(arg) for error, arg in zip(perturbations, args)]


def group_norm(args, options, y, p, recentred=True):
    """layer_norm of each group."""
    rows, y_rows = _in_rows(args, options), y.reshape(_rows(args[0], options))
    return layer_norm(rows, options, y_rows, p, recentred).reshape(y.shape)


def group_norm_variance(args, options, y, p, factor):
    rows, y_rows = _in_rows(args, options), y.reshape(_rows(args[0], options))
    return layer_norm_variance(rows, options, y_rows, p, factor).reshape(y.shape)


def of_group_norm(args, options, y, perturbations, factor):
    errors = _in_rows(_full(args, perturbations), options)
    found = of_layer_norm(_in_rows(args, options), options, None, errors, factor)
    return tuple(part.reshape(y.shape) for part in found)


def _in_rows(args, options):
    """What group_norm normalises, as rows that layer_norm would; weight and bias for each number"""
    x, *of_channels = args
    rows = _rows(x, options)
    return [x.reshape(rows), *(np.broadcast_to(t.reshape(-1, *[1] * (x.ndim - 2)),
                                               x.shape).reshape(rows) for t in of_channels)]


def _rows(x, options):
    return len(x), options["groups"], math.prod(x.shape[1:]) // options["groups"]


def rms_norm(args, options, y, p):
    """half of the K + 1 roundings under the root (and 2 for eps), the root, the quotient, w"""
    K = args[0].shape[-1]
    return gamma((K + 3) / 2 + 4, p) * abs(y) + 4 * p.tiny


def rms_norm_variance(args, options, y, p, factor):
    """half of the relative error of the sum of squares; the root, the quotient, the weight, eps"""
    return p.u**2 / 3 * (args[0].shape[-1] / 12 + 5) * y * y


def of_rms_norm(args, options, y, perturbations, factor):
    """As of layer_norm, without a mean."""
    (x, weight), (dx, dw) = args, perturbations
    s = np.sqrt((x * x).mean(axis=-1, keepdims=True) + options["eps"])
    of_s = ((abs(x) + dx) * dx).mean(axis=-1, keepdims=True) / (s * s)
    worst = (dx / s + abs(x) / s * of_s) / np.maximum(1 - of_s, 1e-3)
    dx2 = dx * dx
    of_s = (x * x * dx2).mean(axis=-1, keepdims=True) / (x.shape[-1] * s**4)
    variance = (dx2 / (s * s) + x * x / (s * s) * of_s) / np.maximum(
        1 - factor * np.sqrt(of_s / 3), 1e-3)**2
    return ((abs(weight) + dw) * worst + dw * abs(x) / s,
            ((weight**2 + dw * dw) * variance + dw * dw * x * x / (s * s)) / 3)


def _last_axis(args, options):
    return (args[0].shape[-1],)


MODELS = {
    "layer_norm": ErrorModel(layer_norm, of_layer_norm, layer_norm_variance, _last_axis,
                             functools.partial(layer_norm, recentred=False)),
    "group_norm": ErrorModel(group_norm, of_group_norm, group_norm_variance,
                             lambda args, options: _rows(args[0], options)[2:],
                             functools.partial(group_norm, recentred=False)),
    "rms_norm": ErrorModel(rms_norm, of_rms_norm, rms_norm_variance, _last_axis),
}  # fmt: skip
