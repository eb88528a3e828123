"""The port's fused kernels: channels last, sums in float32, results stored in a short format.

Images are (N, H, W, C), tokens (N, L, C). Weights are laid out once: (kH, kW, in, out), (in, out).
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf

TILE = 16  # keys of one step of flash attention


def to_bfloat16(x):
    """The nearest bfloat16, ties to even, as float32; NaN stays NaN."""
    bits = np.ascontiguousarray(x, "f4").view("u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded &= np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view("f4"))


def to_float16(x):
    with np.errstate(over="ignore"):
        return np.asarray(x, "f4").astype("f2").astype("f4")


STORE = {"float32": lambda x: np.asarray(x, "f4"), "float16": to_float16, "bfloat16": to_bfloat16}


def silu(x):
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def quick_gelu(x):
    return x / (1 + np.exp(np.float32(-1.702) * x))


def gelu(x):
    return x * (1 + erf(x * np.float32(math.sqrt(0.5)))) / 2


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x**3)))


def gated(y):
    """The second half through GELU, times the first."""
    left, gate = np.split(y, 2, axis=-1)
    return left * gelu(gate)


def normalised(x, axes, eps, ddof=0):
    mean = x.mean(axis=axes, keepdims=True, dtype="f4")
    count = math.prod(x.shape[axis] for axis in axes)
    centred = x - mean
    variance = (centred * centred).sum(axis=axes, keepdims=True, dtype="f4") / np.float32(
        count - ddof)
    return centred / np.sqrt(variance + np.float32(eps))


def group_norm(x, weight, bias, *, groups, eps, ddof=0, interleaved=False, then=None):
    """(N, H, W, C); then: the activation in the same kernel"""
    N, H, W, C = x.shape
    if interleaved:
        y = normalised(x.reshape(N, H * W, C // groups, groups), (1, 2), eps, ddof)
    else:
        y = normalised(x.reshape(N, H * W, groups, C // groups), (1, 3), eps, ddof)
    y = y.reshape(x.shape) * weight + bias
    return y if then is None else then(y)


def layer_norm(x, weight, bias, *, eps):
    return normalised(x, (x.ndim - 1,), eps) * weight + bias


def gemm(x, weight, bias, *, order, then=None, skip=None):
    """x W + b; then: an activation; skip: a residual. order: in which products are added up"""
    y = np.ascontiguousarray(x[..., order]) @ weight[order]
    y = y if bias is None else y + bias
    y = y if then is None else then(y)
    return y if skip is None else y + skip


def conv(x, weight, bias, *, order, stride=1, pads=((1, 1), (1, 1)), time=None, skip=None):
    """3 x 3 as one product; time (N, C) is added to each pixel, skip to each element."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = sliding_window_view(x, weight.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(*windows.shape[:3], -1)
    y = gemm(rows, weight.reshape(-1, weight.shape[-1]), bias, order=order)
    y = y if time is None else y + time[:, None, None]
    return y if skip is None else y + skip


def attention(q, k, v, *, heads, store, eager, causal=False, scale=None, mixed=False):
    """(N, L, C), (N, S, C) -> (N, L, C): in one pass over tiles of keys, or with stored weights"""
    def split(x):
        N, L, C = x.shape
        if mixed:
            return x.reshape(N, L, C // heads, heads).transpose(0, 3, 1, 2)
        return x.reshape(N, L, heads, C // heads).transpose(0, 2, 1, 3)

    q, k, v = split(q), split(k), split(v)
    scale = np.float32(q.shape[-1] ** -0.5 if scale is None else scale)
    y = (_eager if eager else _flash)(q, k, v, scale, causal, store)
    N, _, L, _ = y.shape
    return (y.transpose(0, 2, 3, 1) if mixed else y.transpose(0, 2, 1, 3)).reshape(N, L, -1)


def _masked(scores, first, causal):
    if not causal:
        return scores
    L, S = scores.shape[-2:]
    later = np.arange(first, first + S) > np.arange(L)[:, None]
    return np.where(later, np.float32(-np.inf), scores)


def _eager(q, k, v, scale, causal, store):
    scores = _masked(q @ k.swapaxes(-1, -2) * scale, 0, causal)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return store(weights / weights.sum(axis=-1, keepdims=True, dtype="f4")) @ v


def _flash(q, k, v, scale, causal, store):
    most = np.full((*q.shape[:-1], 1), -np.inf, "f4")
    total, y = np.zeros_like(most), np.zeros((*q.shape[:-1], v.shape[-1]), "f4")
    for first in range(0, k.shape[-2], TILE):
        part = slice(first, first + TILE)
        scores = _masked(q @ k[..., part, :].swapaxes(-1, -2) * scale, first, causal)
        larger = np.maximum(most, scores.max(axis=-1, keepdims=True))
        weights, kept = np.exp(scores - larger), np.exp(most - larger)
        total = total * kept + weights.sum(axis=-1, keepdims=True, dtype="f4")
        y, most = y * kept + store(weights) @ v[..., part, :], larger
    return y / total
