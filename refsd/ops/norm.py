"""Normalisations: subtract the mean, divide by the standard deviation, scale and shift.

`eps` decides the picture as much as a weight does (1e-5 in the UNet's residual blocks, 1e-6 in its
transformers and in the VAE), so it never has a default. The variance is the mean of the squared
deviations, computed in a second pass: the one-pass E[x^2] - E[x]^2 cancels when the mean is large.
"""

import math

import numpy as np

from refsd.contracts import need
from refsd.kinds import call
from refsd.options import Integer, Number
from refsd.registry import op

EPS = Number(above=0)  # without it a constant row divides by zero
NOT_EMPTY = {"K >= 1": "x {x} has no features"}
IN_GROUPS = {"len(x) >= 3": "x {x} has no axis of positions, wanted (N, C, ...)",
             "C % groups == 0": "{C} channels do not split into {groups} groups",
             "prod(x[1:]) > 0": "x {x} has empty groups"}


@op("x (N C ...), weight (C), bias (C) -> (N C ...)", flops="8 * size", groups=Integer(1), eps=EPS,
    rules=IN_GROUPS,
    examples=[call((2, 6, 4, 3), (6,), (6,), groups=3, eps=1e-5),
              call((1, 4, 5), (4,), (4,), groups=1, eps=1e-6)])
def group_norm(x, weight, bias, *, groups, eps):
    """weight (x - mean) / sqrt(var + eps) + bias over each image's groups of C / groups channels.

    x (N, C, ...), weight and bias (C,) -> (N, C, ...).   Wu and He 2018.

    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])  # two channels
    >>> group_norm(x, np.ones(2), np.zeros(2), groups=2, eps=1e-9).round(4)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    grouped = x.reshape(len(x), groups, math.prod(x.shape[1:]) // groups)
    normal = _standardize(grouped, eps).reshape(x.shape)
    column = (-1,) + (1,) * (x.ndim - 2)
    return normal * weight.reshape(column) + bias.reshape(column)


def _bias_after_weight(x, weight, bias, eps):
    need(weight is not None or bias is None, "layer_norm",
         "bias is given without a weight: give both, the weight alone, or neither")
    return {}


@op("x (... K), weight (K), bias (K) -> (... K)", flops="8 * size", eps=EPS, rules=NOT_EMPTY,
    infer=_bias_after_weight,
    examples=[call((2, 3, 8), (8,), (8,), eps=1e-5), call((2, 6), eps=1e-6)])
def layer_norm(x, weight=None, bias=None, *, eps):
    """weight (x - mean) / sqrt(var + eps) + bias over the last axis.   (..., K) -> (..., K)

    weight and bias are (K,), or 1 and 0 where there are none.   Ba, Kiros and Hinton 2016.

    >>> layer_norm(np.array([1.0, 3.0]), np.ones(2), np.zeros(2), eps=1e-9).round(4)
    array([-1.,  1.])
    >>> layer_norm(np.array([1.0, 3.0]), np.ones(2), np.zeros(2), eps=3).round(4)  # sqrt(1 + 3)
    array([-0.5,  0.5])
    """
    y = _standardize(x, eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _standardize(x, eps):
    """(x - mean) / sqrt(var + eps) over the last axis, in two passes.   (..., K) -> (..., K)"""
    centred = x - x.mean(axis=-1, keepdims=True)
    # The mean was rounded, which a small eps magnifies: what is left of it goes too. Without this
    # a constant row of 3333.3 (float32, K = 320) gives 0.07 in place of 0.
    centred -= centred.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps)


@op("x (... K), weight (K) -> (... K)", flops="5 * size", eps=EPS, rules=NOT_EMPTY,
    examples=[call((2, 3, 8), (8,), eps=1e-6)])
def rms_norm(x, weight, *, eps):
    """weight x / sqrt(mean(x^2) + eps) over the last axis.   (..., K) -> (..., K)

    weight is (K,).   Zhang and Sennrich 2019.

    >>> rms_norm(np.array([1.0, 7.0]), np.ones(2), eps=1e-9).round(4)  # sqrt(50 / 2) = 5
    array([0.2, 1.4])
    """
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
