"""Normalisations: subtract the mean, divide by the standard deviation, scale and shift.

`eps` decides the picture as much as a weight does (1e-5 in the UNet's residual blocks, 1e-6 in its
transformers and in the VAE), so it never has a default. The variance is the mean of the squared
deviations, computed in a second pass: the one-pass E[x^2] - E[x]^2 cancels when the mean is large.
"""

import math

import numpy as np

from refsd.contracts import dims, floats, need, output, positive, positive_eps, vector
from refsd.registry import op


def group_norm_contract(x, weight, bias, *, groups, eps):
    dtype = floats("group_norm", x=x, weight=weight, bias=bias)
    need(len(x.shape) >= 3, "group_norm",
         f"x has shape {tuple(x.shape)}, wanted (N, C, ...) with at least one axis of positions")
    positive("group_norm", groups=groups)
    channels = x.shape[1]
    need(channels % groups == 0, "group_norm", f"{channels} channels do not split into {groups} "
         "groups")
    vector("group_norm", "weight", weight, channels, "channel")
    vector("group_norm", "bias", bias, channels, "channel")
    positive_eps("group_norm", eps)
    need(math.prod(x.shape[1:]) > 0, "group_norm", f"x {tuple(x.shape)} has empty groups")
    return output(x.shape, dtype, flops=8 * math.prod(x.shape), reads=(x, weight, bias))


@op(group_norm_contract)
def group_norm(x, weight, bias, *, groups, eps):
    """weight (x - mean) / sqrt(var + eps) + bias over each image's groups of C / groups channels.

    x (N, C, ...), weight and bias (C,) -> (N, C, ...).   Wu and He 2018.
    """
    grouped = x.reshape(len(x), groups, math.prod(x.shape[1:]) // groups)
    normal = _standardize(grouped, eps).reshape(x.shape)
    column = (-1,) + (1,) * (x.ndim - 2)
    return normal * weight.reshape(column) + bias.reshape(column)


def layer_norm_contract(x, weight, bias, *, eps):
    dtype = floats("layer_norm", x=x, weight=weight, bias=bias)
    need(len(x.shape) >= 1 and x.shape[-1] > 0, "layer_norm",
         f"x has shape {tuple(x.shape)}, wanted (..., K) with K >= 1")
    vector("layer_norm", "weight", weight, x.shape[-1], "feature")
    vector("layer_norm", "bias", bias, x.shape[-1], "feature")
    positive_eps("layer_norm", eps)
    return output(x.shape, dtype, flops=8 * math.prod(x.shape), reads=(x, weight, bias))


@op(layer_norm_contract)
def layer_norm(x, weight, bias, *, eps):
    """weight (x - mean) / sqrt(var + eps) + bias over the last axis.   (..., K) -> (..., K)

    weight and bias are (K,).   Ba, Kiros and Hinton 2016.
    """
    return _standardize(x, eps) * weight + bias


def _standardize(x, eps):
    """(x - mean) / sqrt(var + eps) over the last axis, in two passes.   (..., K) -> (..., K)"""
    centred = x - x.mean(axis=-1, keepdims=True)
    # The mean was rounded, which a small eps magnifies: what is left of it goes too. Without this
    # a constant row of 3333.3 (float32, K = 320) gives 0.07 in place of 0.
    centred -= centred.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps)


def rms_norm_contract(x, weight, *, eps):
    dtype = floats("rms_norm", x=x, weight=weight)
    dims("rms_norm", "weight", weight, "K")
    need(len(x.shape) >= 1 and x.shape[-1] > 0, "rms_norm",
         f"x has shape {tuple(x.shape)}, wanted (..., K) with K >= 1")
    vector("rms_norm", "weight", weight, x.shape[-1], "feature")
    positive_eps("rms_norm", eps)
    return output(x.shape, dtype, flops=5 * math.prod(x.shape), reads=(x, weight))


@op(rms_norm_contract)
def rms_norm(x, weight, *, eps):
    """weight x / sqrt(mean(x^2) + eps) over the last axis.   (..., K) -> (..., K)

    weight is (K,).   Zhang and Sennrich 2019.
    """
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
