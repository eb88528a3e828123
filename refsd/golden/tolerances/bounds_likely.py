"""What random roundings make: the variance of each element's error, for ops with long sums.

`VARIANCE[op](args, options, truth, precision, factor)`: the formula's own roundings, each of
variance u^2 / 3 of what it rounds, independent of each other. Ops that are not here round a few
times only; chance then takes nothing off the worst case. `factor` is lambda, for what is not
linear: an error of lambda standard deviations counts with what it does, divided by lambda.
"""

import math

import numpy as np

from refsd.golden.tolerances import bounds_conv
from refsd.golden.tolerances.bounds_attention import attention_variance, softmax_depth
from refsd.golden.tolerances.precision import EXP, running_sum


def matmul(args, options, y, p, factor):
    a, b = args
    return running_sum(max(1, a.shape[-1]), (a * a) @ (b * b), y, p)


def linear(args, options, y, p, factor):
    """the bias is one more term"""
    x, weight, bias = (*args, None)[:3]
    squares = (x * x) @ (weight * weight).T + (0 if bias is None else bias * bias)
    return running_sum(weight.shape[1] + (bias is not None), squares, y, p)


def conv2d(args, options, y, p, factor):
    x, weight, bias = (*args, None)[:3]
    name = bounds_conv.algorithm(weight, options)
    column = None if bias is None else bias[:, None, None]
    if name == "im2col":
        squares = bounds_conv.direct(x * x, weight * weight, options)
        squares = squares if bias is None else squares + column * column
        return running_sum(weight[0].size + (bias is not None), squares, y, p)
    plain = y if bias is None else y - column
    last = 0 if bias is None else p.u**2 / 3 * y * y
    if name == "fft":
        return bounds_conv.fft_variance(x, weight, options, plain, p) + last
    return last + bounds_conv.winograd_variance(x, weight, options, plain, p,
                                                bounds_conv.WINOGRAD[name])


def attention(args, options, y, p, factor, stored=None):
    return attention_variance(args, options, y, p, factor, stored)


def softmax(args, options, y, p, factor):
    """the shift by the largest, e^ and the quotient; the sum's partial sums grow to 1 evenly"""
    x, axis = args[0], options["axis"]
    depth = softmax_depth(x, axis)
    r = p.u**2 / 3 * (depth * depth + (2 * EXP)**2 + 2)
    common = (y * y * r).sum(axis=axis, keepdims=True) + p.u**2 / 9 * x.shape[axis]
    return y * y * ((np.expm1(np.minimum(factor * np.sqrt(r + common), 300)) / factor)**2)


def layer_norm(args, options, y, p, factor):
    x, weight, bias = args
    return _normalized(x, weight, bias, options["eps"], y, p, factor)


def group_norm(args, options, y, p, factor):
    x, weight, bias, y = in_rows(*args, options["groups"], y)
    return _normalized(x, weight, bias, options["eps"], y, p, factor).reshape(args[0].shape)


def in_rows(x, weight, bias, groups, y=None):
    """What group_norm normalises, as rows that layer_norm would."""
    rows = (len(x), groups, math.prod(x.shape[1:]) // groups)
    full = [np.broadcast_to(t.reshape(-1, *[1] * (x.ndim - 2)), x.shape).reshape(rows)
            for t in (weight, bias)]
    return x.reshape(rows), *full, None if y is None else y.reshape(rows)


def _normalized(x, weight, bias, eps, y, p, factor):
    """weight d / s + bias: the mean moves all d, each d is rounded, s errs like its sum of squares.

    Both means are running sums. Neighbours in a picture are alike, so the order is no random one:
    all that is above the mean may come first, then partial sums rise to K / 2 mean |d| above
    j mean. That of squares grows evenly (K / 3 of its square); half of its relative error is s's.
    """
    K, one = x.shape[-1], p.u**2 / 3
    mean = x.mean(axis=-1, keepdims=True)
    d = x - mean
    aside = np.mean(abs(d), axis=-1, keepdims=True)
    of_mean = one * (K / 12 * aside**2 + (K / 3 + 1) * mean**2)
    variance = (d * d).mean(axis=-1, keepdims=True)
    s2 = variance + eps
    # An error of the mean also enters the variance, squared.
    of_s = one * ((variance / s2)**2 * (K / 3 + 3) / 4 + 2) + (factor * of_mean / s2)**2 / 4
    of_s = of_s / np.maximum(1 - factor * np.sqrt(of_s), 1e-3)**2
    normal = d * d / s2
    # x times a scale plus a shift is as good as (x - mean) times a scale: both parts round.
    of_d = of_mean + one * (d * d + x * x + mean * mean)
    return weight**2 * (of_d / s2 + normal * (of_s + 3 * one)) + one * (y * y + bias * bias)


def rms_norm(args, options, y, p, factor):
    """half of the relative error of the sum of squares; the root, the quotient, the weight, eps"""
    return p.u**2 / 3 * (args[0].shape[-1] / 12 + 5) * y * y


VARIANCE = {
    "matmul": matmul, "linear": linear, "conv2d": conv2d, "attention": attention,
    "softmax": softmax, "layer_norm": layer_norm, "group_norm": group_norm, "rms_norm": rms_norm,
}  # fmt: skip
