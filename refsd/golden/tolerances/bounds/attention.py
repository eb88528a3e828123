"""Bounds of softmax, and of attention: errors of the scores move it, and meet the second sum.

Attention's are made query by query in slices, as the op itself is: scores are never whole in
memory.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma, running_sum
from refsd.kinds import EXP

# Elements of the scores of one slice (a dozen such arrays live at once), and products for the
# covariance of keys and values, beyond which its Cauchy-Schwarz bound is taken.
SLICE, COVARIANCE = 1 << 20, 1 << 31


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


class _Slice(NamedTuple):
    """Some queries of one image in all heads: q (H, l, d), k (H, S, d), v (H, S, e)."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scores: np.ndarray  # (H, l, S), masked
    weights: np.ndarray  # their softmax
    errors: tuple  # of q, k and v

    @property
    def width(self):
        return self.q.shape[-1]


def _by_slices(args, options, compute, errors=(None, None, None), parts=1):
    """(parts, N, L, D) of the `parts` arrays (H, l, e) that `compute` makes of each slice."""
    heads, mask, width = options["heads"], options.get("mask"), args[2].shape[2]
    N, L, S = *args[0].shape[:2], args[1].shape[1]
    split = [None if t is None else _split(t, heads) for t in (*args[:3], *errors)]
    if mask is not None:
        mask = np.broadcast_to(mask, (N, heads, L, S))
    results = np.empty((parts, N, L, heads, width // heads))
    rows = max(1, SLICE // max(1, heads * S))
    for n, start in itertools.product(range(N), range(0, L, rows)):
        part = slice(start, start + rows)
        q, k, v, dq, dk, dv = (None if t is None else t[n] for t in split)
        q, dq = q[:, part], None if dq is None else dq[:, part]
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores + mask[n, :, part]
        if options.get("causal"):
            scores = np.where(np.arange(S) > np.arange(L)[part, None], -math.inf, scores)
        e = np.exp(-softmax_depth(scores, -1)) * ~np.isneginf(scores)
        weights = e / np.maximum(e.sum(axis=-1, keepdims=True), 1)
        made = compute(_Slice(q, k, v, scores, weights, (dq, dk, dv)))
        results[:, n, part] = np.swapaxes(made, -3, -2)
    return results.reshape(parts, N, L, width)


def _split(t, heads):
    """(N, L, heads d) -> (N, heads, L, d), of empty arrays too"""
    N, L, width = t.shape
    return t.reshape(N, L, heads, width // heads).swapaxes(1, 2)


def attention(args, options, y, p, stored=None):
    """The worst case: an error e of the scores changes each weight by e^(2 e) at most.

    Then the softmax's own roundings, then those of the sum over the values. stored: the precision
    that scaled queries and keys, scores and weights are rounded to on the way, if any.
    """
    masked = options.get("mask") is not None

    def compute(s):
        size = abs(s.q) @ abs(s.k).swapaxes(-1, -2) / math.sqrt(s.width)
        error = gamma(s.width + 3, p) * size
        if stored is not None:
            finite = np.where(np.isinf(s.scores), 0, abs(s.scores))
            error = error + gamma(2, stored) * size + gamma(1, stored) * finite
        if masked:
            error = error + gamma(1, p) * np.where(np.isinf(s.scores), 0, abs(s.scores))
        moved, size = _moved_weights(s, error)
        depth = softmax_depth(s.scores, -1)
        average = (s.weights * depth).sum(axis=-1, keepdims=True)
        S = s.k.shape[1]
        own = gamma(depth + average + 2 * EXP + S, p) * s.weights + 4 * p.tiny
        if stored is not None:
            own = own + gamma(1, stored) * s.weights + stored.tiny
        moved = moved + own * size
        return moved @ abs(s.v) + gamma(S + 1, p) * ((s.weights + moved) @ abs(s.v))

    return _by_slices(args, options, compute).reshape(y.shape) + args[1].shape[1] * p.tiny


def _moved_weights(s, error):
    """By how much the weights change when scores err so, and by what factor at most."""
    shift = 2 * np.where(np.isneginf(s.scores), 0, error).max(axis=-1, keepdims=True)
    shift = np.minimum(shift, 300)
    return s.weights * np.expm1(shift), 1 + np.expm1(shift)


def attention_variance(args, options, y, p, factor, stored=None):
    """Random roundings: sum_j p_j^2 (v_j - y)^2 r_j + those of both sums over the keys.

    r_j, the variance of ln p_j: the score's sum of d products and two more roundings, the shift by
    the largest, e^ and the mask. `factor` is lambda: ln p_j moves by lambda sqrt(r_j), so p_j by
    the exponential of it.

    All of r_j moves weights that then are made to add up to 1, hence v_j - y. Weights that are
    stored after that no longer do: each is off by up to u p_j of its own, and y by the sum of
    p_j v_j d_j with |d_j| <= u, whose variance is u^2 / 3 sum_j p_j^2 v_j^2, y included.
    """
    def compute(s):
        K = s.k.swapaxes(-1, -2)
        squares = (s.q * s.q) @ (K * K) / s.width
        plain = s.q @ K / math.sqrt(s.width)
        finite = np.where(np.isinf(s.scores), 0, s.scores)
        depth = softmax_depth(s.scores, -1)
        r = running_sum(s.width, squares, plain, p) + p.u**2 / 3 * (
            2 * plain * plain + finite * finite + depth * depth + (2 * EXP)**2)
        if stored is not None:
            r = r + stored.u**2 / 3 * (2 * squares + finite * finite + 1)
        values = s.v
        found = _of_log_weights(s, r, factor)
        S = values.shape[1]
        out = s.weights @ values
        squares = (s.weights**2) @ (values * values)
        if stored is not None:
            found = found + stored.u**2 / 3 * squares
        # The sum of the weights, relative: its partial sums grow to 1 evenly.
        return found + running_sum(S, squares, out, p) + out * out * p.u**2 / 3 * (S / 3 + 2)

    return _by_slices(args, options, compute).reshape(y.shape)


def _of_log_weights(s, r, factor):
    """The variance of sum_j p_j v_j, p_j's logarithm having the variance r_j, independently.

    y moves by p_j (v_j - y) d ln p_j: the squares of it, multiplied out.
    """
    r = (grown(r, factor) / factor)**2
    out = s.weights @ s.v
    t = s.weights**2 * r
    found = t @ (s.v * s.v) - 2 * out * (t @ s.v) + out * out * t.sum(axis=-1, keepdims=True)
    return np.maximum(found, 0)


def of_attention(args, options, y, perturbations, factor):
    """Errors of the inputs: the worst case, and at random.

    Keys and values enter key by key. A query enters all scores at once: y moves by the covariance
    of keys and values under the weights; where that is too much work, by its bound (Cauchy,
    Schwarz): cov(v, k)^2 <= var(v) var(k).
    """
    def compute(s):
        dq, dk, dv = s.errors
        sizes = (abs(s.q) + dq) @ (abs(s.k) + dk).swapaxes(-1, -2)
        error = (sizes - abs(s.q) @ abs(s.k).swapaxes(-1, -2)) / math.sqrt(s.width)
        moved, _ = _moved_weights(s, np.maximum(error, 0))
        worst = moved @ (abs(s.v) + dv) + s.weights @ dv

        found = (s.weights**2) @ (dv * dv)
        found = found + _of_log_weights(
            s, (s.q * s.q) @ (dk * dk).swapaxes(-1, -2) / s.width / 3, factor) * 3
        heads, rows, S = s.weights.shape
        out, mean = s.weights @ s.v, s.weights @ s.k
        if heads * rows * S * s.width * s.v.shape[-1] <= COVARIANCE:
            both = (s.k[..., :, None] * s.v[..., None, :]).reshape(heads, S, -1)
            cov = (s.weights @ both).reshape(heads, rows, s.width, -1)
            cov = cov - mean[..., :, None] * out[..., None, :]
            return worst, (found + np.einsum("hld,hlde->hle", dq * dq, cov * cov) / s.width) / 3
        of_k = np.maximum(s.weights @ (s.k * s.k) - mean * mean, 0)
        of_v = np.maximum(s.weights @ (s.v * s.v) - out * out, 0)
        of_q = (dq * dq * of_k).sum(axis=-1, keepdims=True)
        return worst, (found + of_v * of_q / s.width) / 3

    errors = [error + np.zeros_like(arg) for error, arg in zip(perturbations[:3], args[:3])]
    return tuple(_by_slices(args, options, compute, errors, parts=2))


def _terms(args, options):
    """Of the scores and of the sums over the keys."""
    return args[0].shape[-1] // options["heads"], args[1].shape[1]


MODELS = {
    "softmax": ErrorModel(softmax, of_softmax, softmax_variance,
                          lambda args, options: (args[0].shape[options["axis"]],), convex=True),
    "attention": ErrorModel(attention, of_attention, attention_variance, _terms,
                            composed=True, convex=True),
}  # fmt: skip
