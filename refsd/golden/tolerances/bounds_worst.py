"""How far the formula's own roundings can take a result: the worst case of every op.

`WORST[op](args, options, truth, precision)` is the largest error, element by element, that the
formula can have in arithmetic with relative rounding error u, whatever the order of its sums. args
are the float64 inputs (exact in the precision), truth the float64 result. docs/tolerances.md
derives each of them.
"""

import functools
import math

import numpy as np
from scipy.special import erf

from refsd.golden.tolerances.bounds_attention import attention, softmax_depth
from refsd.golden.tolerances.bounds_conv import conv2d
from refsd.golden.tolerances.precision import EXP, OTHERS, gamma
from refsd.kinds import Movement
from refsd.registry import ops


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
    if isinstance(b, np.ndarray):
        return 0.0
    return 0.0 if (math.frexp(b)[0] / p.u).is_integer() else abs(b)


def exp(args, options, y, p):
    return gamma(EXP, p) * y + 2 * p.tiny


def sqrt(args, options, y, p):
    """IEEE 754 rounds square roots correctly."""
    return gamma(1, p) * y


def clamp(args, options, y, p):
    return p.u * max(_inexact(options["low"], p), _inexact(options["high"], p))


def of_map(args, options, y, p, roundings, stored=None):
    """x s(x), |s| at most 1: roundings relative to the result, of which s's may fall below the
    normal numbers, and the product.

    stored: the precision that an s of its own is rounded to, if it is.
    """
    return (gamma(roundings, p) * abs(y) + (2 * abs(args[0]) + 2) * p.tiny
            + _stored(1, abs(y), abs(args[0]), stored))


def quick_gelu(args, options, y, p, stored=None):
    """silu's, and the argument 1.702 x is rounded twice: d ln sigmoid(a) / da = 1 - sigmoid(a)

    stored: the precision that 1.702, argument and sigmoid are rounded to, if they are.
    """
    a = 1.702 * args[0]
    slope = abs(a) / (1 + np.exp(np.clip(a, -700, 700)))
    return (gamma(EXP + 5 + 2 * slope, p) * abs(y) + (2 * abs(args[0]) + 2) * p.tiny
            + _stored(1 + 2 * slope, abs(y), abs(args[0]), stored))


def _stored(roundings, y, x, stored):
    """What rounding factors of y = x s to a precision adds, s of at most 1 included."""
    return 0.0 if stored is None else gamma(roundings, stored) * y + x * stored.tiny


def gelu(args, options, y, p, polynomial=False):
    return _gelu(args[0], p, polynomial)


def _gelu(x, p, polynomial):
    """0.5 x (1 + erf t): t is rounded twice, erf' = 2 / sqrt(pi) e^(-t^2).

    Left of 0 the sum cancels: there the error is relative to x, not to the result. Many libraries,
    torch among them, take float32's erf to be 1 - polynomial e^(-t^2): that is off by 1.5e-7 at
    most, absolutely (Abramowitz and Stegun 1964, 7.1.26), and by 8 roundings of terms up to 1.
    """
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
    return (abs(hidden) * _gelu(gate, p, polynomial) + gamma(1, p) * abs(y) + p.tiny
            + _stored(1, abs(y), abs(hidden), stored))


def softmax(args, options, y, p):
    """x - max is rounded, which e^ turns into a relative error; then K - 1 additions, a quotient"""
    x, axis = args[0], options["axis"]
    depth = softmax_depth(x, axis)
    average = (y * depth).sum(axis=axis, keepdims=True)
    roundings = depth + average + 2 * EXP + x.shape[axis]
    return gamma(roundings, p) * y + 4 * p.tiny


def matmul(args, options, y, p):
    a, b = args
    return gamma(a.shape[-1], p) * (abs(a) @ abs(b)) + a.shape[-1] * p.tiny


def linear(args, options, y, p):
    x, weight, bias = (*args, None)[:3]
    size = abs(x) @ abs(weight).T + (0 if bias is None else abs(bias))
    return gamma(weight.shape[1] + 1, p) * size + weight.shape[1] * p.tiny


def layer_norm(args, options, y, p, recentred=True):
    x, weight, bias = args
    return _normalized(x, weight, bias, options["eps"], y, p, recentred)


def group_norm(args, options, y, p, recentred=True):
    x, weight, bias = args
    groups = options["groups"]
    N, C = x.shape[:2]
    rows = (N, groups, math.prod(x.shape[1:]) // groups)
    full = [np.broadcast_to(t.reshape(-1, *[1] * (x.ndim - 2)), x.shape).reshape(rows)
            for t in (weight, bias)]
    return _normalized(x.reshape(rows), *full, options["eps"], y.reshape(rows), p,
                       recentred).reshape(x.shape)


def _normalized(x, weight, bias, eps, y, p, recentred):
    """weight d / s + bias with d = x - mean twice, s = sqrt(mean d^2 + eps)

    Not recentred: d = x - mean once, or x times a scale plus a shift, which round x and mean.
    """
    K = x.shape[-1]
    d = x - x.mean(axis=-1, keepdims=True)
    off = gamma(K + 1, p) * abs(x).mean(axis=-1, keepdims=True)  # of the first mean
    d_max = abs(d) + off
    if recentred:
        of_d = gamma(3, p) * d_max + gamma(K + 2, p) * d_max.mean(axis=-1, keepdims=True)
    else:
        of_d = off + gamma(3, p) * (abs(x) + abs(x - d) + off)

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


def _port_timestep_embedding(args, options, y, p):
    """Frequencies e^t with t rounded 3 times (t up to ln 10^4), the angle: 1, sin or cos."""
    half = options["dim"] // 2
    t = np.arange(half) * math.log(10000) / abs(half - options["freq_shift"])
    angles = abs(np.asarray(args[0], "float64"))[:, None] * np.exp(-t)
    error = np.concatenate([gamma(3 * t + EXP + 1, p) * angles] * 2, axis=1)
    error = np.pad(error, ((0, 0), (0, options["dim"] % 2)))
    return np.minimum(error, 2) + timestep_embedding(args, options, y, p)


def _port_bilinear(args, options, y, p):
    """Places in the source are rounded 3 times: place i is off by 3 u (i + 1), as its weights are.

    What they mix is no further apart than the largest difference of two neighbours.
    """
    x = args[0]
    extra = np.zeros_like(y)
    for axis, size in ((2, options["height"]), (3, options["width"])):
        apart = abs(np.diff(x, axis=axis)).max(axis=(2, 3), keepdims=True, initial=0)
        places = (np.arange(size) + 1) * (x.shape[axis] / size) + 1
        extra = extra + gamma(3, p) * apart * places.reshape((-1, 1) if axis == 2 else (1, -1))
    return upsample_bilinear(args, options, y, p) + extra


def _port_sqrt(args, options, y, p):
    """The next number instead of the nearest: not all libraries round their vectors' roots."""
    return gamma(2, p) * y


def _of_kind(op):
    """What the declarations of maps and of movement are enough for."""
    if isinstance(op.kind, Movement):
        return zero
    return functools.partial(of_map, roundings=op.kind.roundings)


WORST = {name: _of_kind(op) for name, op in ops().items()
         if isinstance(op.kind, Movement) or getattr(op.kind, "roundings", None)} | {
    "add": add, "sub": add, "mul": mul, "div": div, "exp": exp, "sqrt": sqrt, "clamp": clamp,
    "quick_gelu": quick_gelu, "gelu": gelu, "gelu_tanh": gelu_tanh, "geglu": geglu,
    "softmax": softmax, "linear": linear, "matmul": matmul, "conv2d": conv2d,
    "attention": attention, "group_norm": group_norm, "layer_norm": layer_norm,
    "rms_norm": rms_norm, "timestep_embedding": timestep_embedding, "rope": rope,
    "upsample_bilinear": upsample_bilinear,
}  # fmt: skip
# A port may do otherwise than the reference where its accuracy is no part of the definition.
WORST_OF_PORTS = WORST | {
    "layer_norm": functools.partial(layer_norm, recentred=False),
    "group_norm": functools.partial(group_norm, recentred=False),
    "timestep_embedding": _port_timestep_embedding,
    "sqrt": _port_sqrt,
    "upsample_bilinear": _port_bilinear,
    "gelu": functools.partial(gelu, polynomial=True),
    "geglu": functools.partial(geglu, polynomial=True),
}
