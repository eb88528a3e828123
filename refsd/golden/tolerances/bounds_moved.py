"""What inputs that were rounded to a format make of a result: the worst case, and at random.

`moved(op, args, options, truth, moves, factor)` gives both; moves holds for each argument how far
rounding took it at most (0 where it did not). Second order is included in the worst case. At
random each input's rounding has the variance move^2 / 3, independent of the others.
"""

import numpy as np

from refsd.golden.tolerances import bounds_attention, bounds_conv
from refsd.golden.tolerances.bounds_likely import in_rows
from refsd.kinds import Movement
from refsd.registry import ops

MOVEMENT = [name for name, op in ops().items() if isinstance(op.kind, Movement)]


def moved(op, args, options, y, moves, factor):
    """(worst, variance), arrays like the truth, or None where no argument moved."""
    if not any(np.any(m) for move in moves for m in (move if isinstance(move, list) else [move])):
        return None
    if op in MOVEMENT:
        worst = ops()[op].definition(*_in_place(args, moves, op), **options)
    elif op in SENSITIVE:
        return SENSITIVE[op](args, options, y, moves, factor)
    elif op in ELEMENTWISE:
        worst = ELEMENTWISE[op](args, options, y, moves)
    else:
        worst = _of_map(ops()[op], args[0], options, y, moves[0])
    return worst, worst * worst / 3


def _in_place(args, moves, op):
    """The moves where their arguments were; indices stay."""
    return [arg if tensor.kind == "int" else move
            for tensor, arg, move in zip(ops()[op].contract.tensors, args, moves)]


def _of_map(op, x, options, y, move):
    """The larger change of the two ends; a turning point between them adds |f''| move^2 / 2."""
    ends = [abs(op.definition(np.clip(end, op.kind.low, op.kind.high), **options) - y)
            for end in (x + move, x - move)]
    return np.maximum(np.maximum(*ends), op.kind.curvature / 2 * move * move)


def _add(args, options, y, moves):
    return moves[0] + moves[1] + np.zeros_like(y)


def _mul(args, options, y, moves):
    a, b = args
    return abs(a) * moves[1] + abs(b) * moves[0] + moves[0] * moves[1]


def _div(args, options, y, moves):
    smallest = np.maximum(abs(args[1]) - moves[1], np.finfo("float64").tiny)
    return (moves[0] + abs(y) * moves[1]) / smallest


def _exp(args, options, y, moves):
    return y * np.expm1(np.minimum(moves[0], 700))


def _sqrt(args, options, y, moves):
    return np.maximum(np.sqrt(args[0] + moves[0]) - y, y - np.sqrt(np.maximum(args[0] - moves[0],
                                                                              0)))


def _clamp(args, options, y, moves):
    return moves[0]


def _geglu(args, options, y, moves):
    gelu = ops()["gelu"].definition
    (h, g), (dh, dg) = np.split(args[0], 2, axis=-1), np.split(moves[0], 2, axis=-1)
    gate = gelu(g)
    of_gate = _of_map(ops()["gelu"], g, {}, gate, dg)
    return abs(h) * of_gate + (abs(gate) + of_gate) * dh


def _rope(args, options, y, moves):
    """cos and sin are 1 at most"""
    move, half = moves[0], moves[0].shape[-1] // 2
    if options["interleaved"]:
        return np.repeat(move[..., ::2] + move[..., 1::2], 2, axis=-1)
    return np.concatenate([move[..., :half] + move[..., half:]] * 2, axis=-1)


def _bilinear(args, options, y, moves):
    """weights are positive"""
    return ops()["upsample_bilinear"].definition(moves[0], **options)


def _still(args, options, y, moves):
    return np.zeros_like(y)


ELEMENTWISE = {
    "add": _add, "sub": _add, "mul": _mul, "div": _div, "exp": _exp, "sqrt": _sqrt,
    "clamp": _clamp, "geglu": _geglu, "rope": _rope, "upsample_bilinear": _bilinear,
    "timestep_embedding": _still,
}  # fmt: skip


def _product(product, a, b, da, db):
    """Of any bilinear product: (|a| + da) (|b| + db) - |a| |b|, and the squares without the last"""
    a, b = abs(a), abs(b)
    worst = product(a, db) + product(da, b + db)
    a2, b2, da2, db2 = a * a, b * b, da * da, db * db
    return worst, (product(a2 + da2, db2) + product(da2, b2)) / 3


def _matmul(args, options, y, moves, factor):
    return _product(np.matmul, *args, *moves)


def _linear(args, options, y, moves, factor):
    worst, variance = _product(lambda a, b: a @ b.T, args[0], args[1], moves[0], moves[1])
    return _and_bias(worst, variance, moves, ())


def _conv2d(args, options, y, moves, factor):
    def product(a, b):
        return bounds_conv.direct(a, b, options) if np.any(a) and np.any(b) else np.zeros_like(y)

    worst, variance = _product(product, args[0], args[1], moves[0], moves[1])
    return _and_bias(worst, variance, moves, (1, 1))


def _and_bias(worst, variance, moves, ones):
    if len(moves) < 3 or np.ndim(moves[2]) == 0:
        return worst, variance
    move = moves[2].reshape(-1, *ones)
    return worst + move, variance + move * move / 3


def _attention(args, options, y, moves, factor):
    moves = [m + np.zeros_like(a) for m, a in zip(moves[:3], args[:3])]
    return (bounds_attention.attention_moved(args, options, y, moves),
            bounds_attention.attention_moved_variance(args, options, y, moves, factor))


def _softmax(args, options, y, moves, factor):
    """ln y_i moves by its own move and the average of all"""
    move, axis = moves[0], options["axis"]
    together = np.minimum(move + move.max(axis=axis, keepdims=True), 300)
    r = move * move / 3 + (y * y * move * move).sum(axis=axis, keepdims=True) / 3
    return y * np.expm1(together), (y * np.expm1(np.minimum(factor * np.sqrt(r), 300)) / factor)**2


def _layer_norm(args, options, y, moves, factor):
    moves = [m + np.zeros_like(a) for m, a in zip(moves, args)]
    return _normalized(*args, options["eps"], moves, factor)


def _group_norm(args, options, y, moves, factor):
    groups, shape = options["groups"], args[0].shape
    x, weight, bias, _ = in_rows(*args, groups)
    full = [m + np.zeros_like(a) for m, a in zip(moves, args)]
    moves = in_rows(*full, groups)[:3]
    worst, variance = _normalized(x, weight, bias, options["eps"], moves, factor)
    return worst.reshape(shape), variance.reshape(shape)


def _normalized(x, weight, bias, eps, moves, factor):
    """d (x - m) / s: each x's own move, the mean's, and that of s, which is the mean of d dx / s"""
    dx, dw, db = moves
    K = x.shape[-1]
    d = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((d * d).mean(axis=-1, keepdims=True) + eps)
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


def _rms_norm(args, options, y, moves, factor):
    (x, weight), (dx, dw) = args, moves
    s = np.sqrt((x * x).mean(axis=-1, keepdims=True) + options["eps"])
    of_s = ((abs(x) + dx) * dx).mean(axis=-1, keepdims=True) / (s * s)
    worst = (dx / s + abs(x) / s * of_s) / np.maximum(1 - of_s, 1e-3)
    dx2 = dx * dx
    of_s = (x * x * dx2).mean(axis=-1, keepdims=True) / (x.shape[-1] * s**4)
    variance = (dx2 / (s * s) + x * x / (s * s) * of_s) / np.maximum(
        1 - factor * np.sqrt(of_s / 3), 1e-3)**2
    return ((abs(weight) + dw) * worst + dw * abs(x) / s,
            ((weight**2 + dw * dw) * variance + dw * dw * x * x / (s * s)) / 3)


SENSITIVE = {
    "matmul": _matmul, "linear": _linear, "conv2d": _conv2d, "attention": _attention,
    "softmax": _softmax, "layer_norm": _layer_norm, "group_norm": _group_norm,
    "rms_norm": _rms_norm,
}  # fmt: skip
