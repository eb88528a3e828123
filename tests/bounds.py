"""How far a result may lie from the exact one: a derived bound for every op.

`BOUNDS[op](args, options, truth, precision)` is the largest error, element by element, that the
formula can have in arithmetic with relative rounding error u, whatever the order of its sums. args
are the float64 inputs (exact in the tested precision), truth the float64 result.
docs/tolerances.md derives each of them.
"""

import math
from typing import NamedTuple

import numpy as np

from refsd.ops import conv, conv_tiled


class Precision(NamedTuple):
    """Half the distance from 1 to the next number, and the smallest number above 0."""

    u: float
    tiny: float


PRECISIONS = {
    "float32": Precision(2.0**-24, 2.0**-149),
    "float64": Precision(2.0**-53, 2.0**-1074),
}

# Library functions are not correctly rounded. What we allow them, in units of u (an ulp is up to
# 2 u): 2 ulp for exp, 4 ulp for erf, tanh, sin and cos. test_ops_activation.py holds NumPy and
# SciPy to it.
EXP, OTHERS = 4, 8


def gamma(n, precision):
    """n roundings in a row: (1 + u)^n - 1 <= n u / (1 - n u).   Higham 2002, lemma 3.1"""
    return n * precision.u / (1 - n * precision.u)


def assert_within(got, truth, bound, what=""):
    """|got - truth| <= bound in every element; equal infinities and NaNs in the same places pass.

    Returns the largest share of the bound that was used.
    """
    got, truth = np.asarray(got), np.asarray(truth)
    assert got.shape == truth.shape, f"{what}: shape {got.shape}, wanted {truth.shape}"
    bound = np.broadcast_to(np.asarray(bound, "float64"), truth.shape)
    assert not np.isnan(bound).any(), f"{what}: the bound itself is NaN"

    same = (got == truth) | (np.isnan(got) & np.isnan(truth))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype("float64") - truth)
    error = np.where(same, 0, np.where(np.isnan(error), math.inf, error))
    if np.any(error > bound):
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(error > bound, error / bound, 0)
        i = np.unravel_index(np.argmax(share), truth.shape)
        raise AssertionError(
            f"{what}: at {tuple(int(n) for n in i)} got {got[i]!r}, truth {truth[i]!r}: error "
            f"{error[i]:.3g}, allowed {bound[i]:.3g}; {int((error > bound).sum())} of {error.size} "
            "elements are outside")
    used = error[bound > 0] / bound[bound > 0]
    return float(used.max()) if used.size else 0.0


def rms(error):
    """The root of the mean square."""
    return math.sqrt(float(np.mean(np.square(np.asarray(error, "float64")))))


def zero(args, options, y, p):
    """Data is moved: no rounding at all."""
    return 0.0


def add(args, options, y, p):
    """One rounding, and one for a Python number that the precision does not hold."""
    b = args[1]
    return gamma(1, p) * abs(y) + gamma(2, p) * _inexact(b, p)


def mul(args, options, y, p):
    return gamma(2 if _inexact(args[1], p) else 1, p) * abs(y) + p.tiny


div = mul


def _inexact(b, p):
    """|b| if b is a Python number that has to be rounded, else 0"""
    if isinstance(b, np.ndarray) or p.u == 2.0**-53:
        return 0.0
    return 0.0 if float(np.float32(b)) == b else abs(b)


def exp(args, options, y, p):
    return gamma(EXP, p) * y + 2 * p.tiny


def sqrt(args, options, y, p):
    """IEEE 754 rounds square roots correctly."""
    return gamma(1, p) * y


def clamp(args, options, y, p):
    return p.u * max(_inexact(options["low"], p), _inexact(options["high"], p))


def silu(args, options, y, p):
    """e^-|x|, 1 + z, the quotient, the product: 4 + (2 + 1) + 1 + 1 roundings"""
    return gamma(EXP + 5, p) * abs(y) + (2 * abs(args[0]) + 2) * p.tiny


def quick_gelu(args, options, y, p):
    """silu's, and the argument 1.702 x is rounded twice: d ln sigmoid(a) / da = 1 - sigmoid(a)"""
    a = 1.702 * args[0]
    slope = 1 / (1 + np.exp(np.clip(a, -700, 700)))
    return gamma(EXP + 5 + 2 * abs(a) * slope, p) * abs(y) + (2 * abs(args[0]) + 2) * p.tiny


def gelu(args, options, y, p):
    return _gelu(args[0], p)


def _gelu(x, p):
    """0.5 x (1 + erf t): t is rounded twice, erf' = 2 / sqrt(pi) e^(-t^2).

    Left of 0 the sum cancels: there the error is relative to x, not to the result.
    """
    t = np.abs(x) * math.sqrt(0.5)
    erf = np.vectorize(math.erf, otypes=["float64"])(t)
    of_erf = gamma(2, p) * t * 2 / math.sqrt(math.pi) * np.exp(-t * t) + gamma(OTHERS, p) * erf
    return 0.5 * abs(x) * (of_erf + gamma(3, p) * (1 + np.sign(x) * erf)) + p.tiny


def gelu_tanh(args, options, y, p):
    """as gelu: the argument takes 7 roundings, tanh' = 1 - tanh^2"""
    x, sign = np.abs(args[0]), np.sign(args[0])
    a = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    of_tanh = gamma(7, p) * a / np.cosh(np.minimum(a, 300)) ** 2 + gamma(OTHERS, p) * np.tanh(a)
    return 0.5 * x * (of_tanh + gamma(3, p) * (1 + sign * np.tanh(a))) + p.tiny


def geglu(args, options, y, p):
    hidden, gate = np.split(args[0], 2, axis=-1)
    return abs(hidden) * _gelu(gate, p) + gamma(1, p) * abs(y) + p.tiny


def softmax(args, options, y, p):
    """x - max is rounded, which e^ turns into a relative error; then K - 1 additions, a quotient"""
    x, axis = args[0], options["axis"]
    depth = _depth(x, axis)
    average = (y * depth).sum(axis=axis, keepdims=True)
    roundings = depth + average + 2 * EXP + x.shape[axis]
    return gamma(roundings, p) * y + 4 * p.tiny


def _depth(x, axis):
    """how far below the largest, 0 where nothing is left of it"""
    largest = x.max(axis=axis, keepdims=True)
    return np.where(np.isneginf(x), 0, np.where(np.isneginf(largest), 0, largest) - x)


def matmul(args, options, y, p):
    a, b = args
    return gamma(a.shape[-1], p) * (abs(a) @ abs(b)) + a.shape[-1] * p.tiny


def linear(args, options, y, p):
    x, weight, bias = (*args, None)[:3]
    size = abs(x) @ abs(weight).T + (0 if bias is None else abs(bias))
    return gamma(weight.shape[1] + 1, p) * size + weight.shape[1] * p.tiny


def conv2d(args, options, y, p):
    x, weight, bias = (*args, None)[:3]
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "algorithm": "auto"} | options
    chosen = conv.conv2d_algorithm(weight, stride=options["stride"], dilation=options["dilation"],
                                   algorithm=options["algorithm"]).algorithm
    of_bias = 0 if bias is None else abs(bias)[:, None, None]
    if chosen == "im2col":
        exact = options | {"algorithm": "im2col"}
        size = conv.conv2d(abs(x), abs(weight), **exact) + of_bias
        return gamma(math.prod(weight.shape[1:]) + 1, p) * size + weight[0].size * p.tiny
    x = np.pad(x, ((0, 0), (0, 0), *conv.sides(options["padding"])))
    if chosen == "fft":
        return _fft(x, weight, options["groups"], y, p) + gamma(1, p) * (abs(y) + of_bias)
    return _winograd(x, weight, options["groups"], chosen, p) + gamma(1, p) * (abs(y) + of_bias)


def _winograd(x, weight, groups, name, p):
    """The transforms on absolute values, times the roundings along one path through them."""
    B, G, A = (abs(np.asarray(m, "float64")) for m in
               {"winograd2": conv_tiled.F2, "winograd4": conv_tiled.F4}[name])
    size = conv_tiled._tiled(abs(x), G @ abs(weight) @ G.T, (3, 3), groups, B.shape,
                             lambda tiles: B @ tiles @ B.T, lambda sums: A @ sums @ A.T)
    n = len(B)
    roundings = 2 + 6 + 2 * n + weight.shape[1] + 2 * n
    return gamma(roundings, p) * size


def _fft(x, weight, groups, y, p):
    """A transform of P x Q has an error of at most 10 u log2(P Q) in the 2-norm (see the docs)."""
    N, (O, I) = len(x), weight.shape[:2]
    longest = 1.25 * max(64, 4 * max(x.shape[2:]))
    rho = gamma(10 * 2 * math.log2(longest), p)
    x, weight = x.reshape(N, groups, 1, I, -1), weight.reshape(1, groups, O // groups, I, -1)
    x1, x2 = (np.linalg.norm(x, ord=n, axis=-1) for n in (1, 2))
    w1, w2 = (np.linalg.norm(weight, ord=n, axis=-1) for n in (1, 2))
    size = ((2 * rho + gamma(3 * I + 3, p)) * w1 * x2 + rho * w2 * x1).sum(axis=-1)
    return size.reshape(N, O, 1, 1) + np.zeros_like(y)


def attention(args, options, y, p):
    """The errors of the scores move the softmax; its own and those of the second product follow."""
    q, k, v = args[:3]
    heads, mask, causal = options["heads"], options.get("mask"), options.get("causal", False)
    (N, L, C), S = q.shape, k.shape[1]
    d = C // heads
    q, k, v = (t.reshape(N, t.shape[1], heads, t.shape[2] // heads).swapaxes(1, 2)
               for t in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(d)
    error = gamma(d + 3, p) * (abs(q) @ abs(k).swapaxes(-1, -2) / math.sqrt(d))
    if mask is not None:
        scores = scores + mask
        error = error + gamma(1, p) * np.where(np.isinf(scores), 0, abs(scores))
    if causal:
        scores = np.where(np.arange(S) > np.arange(L)[:, None], -math.inf, scores)

    largest = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(np.isneginf(largest), 0, largest))
    weights = e / np.maximum(e.sum(axis=-1, keepdims=True), 1)
    shift = 2 * error.max(axis=-1, keepdims=True)
    own = softmax((scores,), {"axis": -1}, weights, p)
    moved = weights * np.expm1(shift) + own * (1 + shift)
    size = moved @ abs(v) + gamma(S + 1, p) * ((weights + moved) @ abs(v))
    return size.swapaxes(1, 2).reshape(y.shape) + S * p.tiny


def layer_norm(args, options, y, p):
    x, weight, bias = args
    return _normalized(x, weight, bias, options["eps"], y, p)


def group_norm(args, options, y, p):
    x, weight, bias = args
    groups = options["groups"]
    N, C = x.shape[:2]
    rows = (N, groups, math.prod(x.shape[1:]) // groups)
    full = [np.broadcast_to(t.reshape(-1, *[1] * (x.ndim - 2)), x.shape).reshape(rows)
            for t in (weight, bias)]
    return _normalized(x.reshape(rows), *full, options["eps"], y.reshape(rows), p).reshape(x.shape)


def _normalized(x, weight, bias, eps, y, p):
    """weight d / s + bias with d = x - mean twice, s = sqrt(mean d^2 + eps)"""
    K = x.shape[-1]
    d = x - x.mean(axis=-1, keepdims=True)
    off = gamma(K + 1, p) * abs(x).mean(axis=-1, keepdims=True)  # of the first mean
    d_max = abs(d) + off
    of_d = gamma(3, p) * d_max + gamma(K + 2, p) * d_max.mean(axis=-1, keepdims=True)

    variance = (d * d).mean(axis=-1, keepdims=True)
    squares = ((2 * abs(d) + of_d) * of_d).mean(axis=-1, keepdims=True)
    of_variance = squares + gamma(K + 1, p) * (variance + squares)
    of_sum = of_variance / (variance + eps) + gamma(2, p)  # relative; eps is rounded as well
    of_s = of_sum / (1 + np.sqrt(np.maximum(1 - of_sum, 0))) + gamma(1, p)

    s = np.sqrt(variance + eps)
    normal = (of_d + abs(d) * (of_s + gamma(3, p))) / (s * np.maximum(1 - of_s, 1e-3))
    return abs(weight) * normal + gamma(1, p) * (abs(y) + abs(bias)) + 4 * p.tiny


def rms_norm(args, options, y, p):
    """half of the K + 1 roundings under the root (and 2 for eps), the root, the quotient, w"""
    K = args[0].shape[-1]
    return gamma((K + 3) / 2 + 4, p) * abs(y) + 4 * p.tiny


def timestep_embedding(args, options, y, p):
    """The float32 angle is part of the definition; only sin and cos round."""
    return gamma(OTHERS, p) * abs(y) + p.tiny


def rope(args, options, y, p):
    """cos and sin are rounded to the precision, then two products and a sum"""
    x = abs(args[0])
    half = x.shape[-1] // 2
    if options["interleaved"]:
        size = np.repeat(x[..., ::2] + x[..., 1::2], 2, axis=-1)
    else:
        size = np.concatenate([x[..., :half] + x[..., half:]] * 2, axis=-1)
    return gamma(3, p) * size + 2 * p.tiny


def upsample_bilinear(args, options, y, p):
    """Per axis the two weights are off by u, then two products and a sum: 8 u of the largest

    A product below the normal numbers is off by tiny / 2, two of them an axis.
    """
    largest = abs(args[0]).max(axis=(2, 3), keepdims=True)
    return gamma(8, p) * largest + 2 * p.tiny + np.zeros_like(y)


BOUNDS = {
    "add": add, "sub": add, "mul": mul, "div": div, "exp": exp, "sqrt": sqrt, "clamp": clamp,
    "silu": silu, "quick_gelu": quick_gelu, "gelu": gelu, "gelu_tanh": gelu_tanh, "geglu": geglu,
    "softmax": softmax, "linear": linear, "matmul": matmul, "conv2d": conv2d,
    "attention": attention, "group_norm": group_norm, "layer_norm": layer_norm,
    "rms_norm": rms_norm, "timestep_embedding": timestep_embedding, "rope": rope,
    "upsample_bilinear": upsample_bilinear,
    "embedding": zero, "gather": zero, "upsample_nearest": zero, "to_tokens": zero,
    "to_image": zero, "concat": zero, "slice": zero, "pad": zero, "transpose": zero,
}  # fmt: skip
