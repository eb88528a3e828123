"""Wrong versions of layers that have weights, and of attention (see comparing.variants)."""

import math

import numpy as np

from refsd.golden.tolerances.formats import round_to
from refsd.ops import conv, embedding, norm
from refsd.ops.activation import softmax

EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
# Multiplications, and scores; larger ops' wrong versions would take minutes, and gigabytes.
LARGE, LARGE_SCORES = 1 << 31, 1 << 26
INT8 = "its weights were rounded to int8, a scale for each output channel"


def conv2d(inputs, options, truth, got):
    x, weight, bias = inputs["x"], inputs["weight"], inputs.get("bias")
    yield from _of_bias(truth, None if bias is None else bias[:, None, None])
    if truth.size * weight[0].size > LARGE:
        return

    def with_(*, x=x, weight=weight, bias=bias, **changed):
        return conv.conv2d(x, weight, bias, **{**options, **changed})

    yield "int8_weights", INT8, with_(weight=round_to(weight, "int8"))
    yield ("flipped_kernel", "the kernel is flipped: a convolution where a correlation is meant",
           with_(weight=weight[:, :, ::-1, ::-1]))
    if weight.shape[2] == weight.shape[3] > 1:
        yield ("transposed_weight", "height and width of the kernel are swapped",
               with_(weight=weight.swapaxes(2, 3)))
    if weight.shape[0] == weight.shape[1]:
        yield ("transposed_weight", "input and output channels of the weight are swapped",
               with_(weight=weight.swapaxes(0, 1)))
    (top, bottom), (left, right) = conv.sides(options.get("padding", 0))
    for v in range(top + bottom + 1):
        for h in range(left + right + 1):
            other = ((v, top + bottom - v), (h, left + right - h))
            if other != ((top, bottom), (left, right)):
                seen = _reached(x, weight, options, truth, other)
                yield ("wrong_padding", f"the padding is {seen} (top, bottom and left, right)",
                       with_(padding=other))
    if top + bottom + left + right:
        widths = ((0, 0), (0, 0), (top, bottom), (left, right))
        for mode, needs in (("edge", 0), ("reflect", 1), ("wrap", 0)):
            if min(x.shape[2:]) > needs * max(top, bottom, left, right):
                yield ("wrong_padding", f"outside the picture stand no zeros ({mode})",
                       with_(x=np.pad(x, widths, mode=mode), padding=0))


def _reached(x, weight, options, truth, padding):
    """The padding without what no window touches: with strides the last row may be one of these."""
    return tuple((before, min(after, max(0, (m - 1) * step + (k - 1) * apart + 1 - before - n)))
                 for (before, after), n, m, k, step, apart in zip(
                     padding, x.shape[2:], truth.shape[2:], weight.shape[2:],
                     conv.pair(options.get("stride", 1)),
                     conv.pair(options.get("dilation", 1))))


def linear(inputs, options, truth, got):
    x, weight, bias = inputs["x"], inputs["weight"], inputs.get("bias")
    yield from _of_bias(truth, bias)
    y = x @ round_to(weight, "int8").T
    yield "int8_weights", INT8, y if bias is None else y + bias
    if weight.shape[0] == weight.shape[1]:
        y = x @ weight
        yield ("transposed_weight", "the weight is transposed: (in, out) where (out, in) is meant",
               y if bias is None else y + bias)


def _of_bias(truth, bias):
    if bias is not None:
        yield "missing_bias", "the bias was not added", truth - bias
        yield "missing_bias", "the bias was added twice", truth + bias


def group_norm(inputs, options, truth, got):
    x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
    channels, groups = x.shape[1], options["groups"]
    column = (-1,) + (1,) * (x.ndim - 2)
    count = math.prod(x.shape[1:]) // groups
    yield from _of_norm(lambda weight=weight, bias=bias, **changed: norm.group_norm(
        x, weight, bias, **{**options, **changed}), x, options["eps"], truth,
        weight.reshape(column), bias.reshape(column), count)
    for other in (g for g in range(1, channels + 1) if channels % g == 0 and g != groups):
        yield ("wrong_groups", f"it was normalised in {other} groups, not in {groups}",
               norm.group_norm(x, weight, bias, groups=other, eps=options["eps"]))
    mixed = x.reshape(len(x), channels // groups, groups, -1).swapaxes(1, 2).reshape(x.shape)
    normal = norm.group_norm(mixed, np.ones(channels), np.zeros(channels), **options)
    normal = normal.reshape(len(x), groups, channels // groups, -1).swapaxes(1, 2).reshape(x.shape)
    yield ("wrong_groups", "the groups take every n-th channel instead of neighbours",
           normal * weight.reshape(column) + bias.reshape(column))


def layer_norm(inputs, options, truth, got):
    x, weight, bias = inputs["x"], inputs.get("weight"), inputs.get("bias")
    weight = np.ones(x.shape[-1]) if weight is None else weight
    bias = np.zeros(x.shape[-1]) if bias is None else bias
    yield from _of_norm(lambda weight=weight, bias=bias, **changed: norm.layer_norm(
        x, weight, bias, **{**options, **changed}), x, options["eps"], truth, weight, bias,
        x.shape[-1])


def _of_norm(define, x, eps, truth, weight, bias, count):
    for other in EPSILONS:
        if other != eps:
            yield "wrong_eps", f"eps is {other:g}, not {eps:g}", define(eps=other)
    yield "missing_norm", "the norm was left out: it is the op's input", x
    yield "missing_bias", "the bias was not added", truth - bias
    with np.errstate(divide="ignore", invalid="ignore"):
        unweighted = np.where(weight == 0, 0, (truth - bias) / weight)
    yield "missing_weight", "it was not multiplied by the weight", unweighted + bias
    if count > 1:  # eps shifts a little; the variance times n / (n - 1) is what differs
        larger = define(eps=eps * (count - 1) / count)
        yield ("biased_variance", f"the variance is divided by n - 1 = {count - 1}, not by n",
               (larger - bias) * math.sqrt((count - 1) / count) + bias)
    yield from _outside(define, eps, weight, bias)


def _outside(define, eps, weight, bias):
    """eps added to the root instead of under it: r = sqrt(var) from the normal form without eps"""
    tiny = np.finfo("float64").tiny ** 0.5
    plain, usual = define(eps=tiny) - bias, define(eps=eps) - bias
    ratio = np.divide(usual, plain, out=np.ones_like(plain), where=plain != 0)  # s / sqrt(s2 + e)
    deviation = np.sqrt(eps * ratio**2 / np.maximum(1 - ratio**2, 1e-300))
    yield ("wrong_eps", f"eps {eps:g} is added to the standard deviation, not to the variance",
           plain * deviation / (deviation + eps) + bias)


def rms_norm(inputs, options, truth, got):
    for other in EPSILONS:
        yield ("wrong_eps", f"eps is {other:g}, not {options['eps']:g}",
               norm.rms_norm(inputs["x"], inputs["weight"], eps=other))
    yield ("missing_mean", "the mean was subtracted, as layer_norm does",
           norm.layer_norm(inputs["x"], inputs["weight"], np.zeros_like(inputs["weight"]),
                           eps=options["eps"]))


def attention(inputs, options, truth, got):
    """Attention with one thing wrong at a time."""
    q, k, v, mask = inputs["q"], inputs["k"], inputs["v"], inputs.get("mask")
    mask = options.get("mask") if mask is None else mask
    heads, causal = options["heads"], options.get("causal", False)
    (N, L, C), S = q.shape, k.shape[1]
    d = C // heads
    root = math.sqrt(d)
    if N * heads * L * S > LARGE_SCORES:
        return

    def split(x, interleaved=False):
        if interleaved:
            return x.reshape(*x.shape[:2], -1, heads).transpose(0, 3, 1, 2)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def merge(y, interleaved=False):
        return y.transpose((0, 2, 3, 1) if interleaved else (0, 2, 1, 3)).reshape(N, L, -1)

    def wrong(*, q=q, k=k, v=v, scale=1 / root, causal=causal, mask=mask, axis=-1,
              mixed=False, joined=None):
        scores = split(q, mixed) @ split(k, mixed).swapaxes(-1, -2) * scale
        if mask is not None:
            scores = scores + mask
        if causal:
            scores = np.where(np.arange(S) > np.arange(L)[:, None], -math.inf, scores)
        return merge(softmax(scores, axis=axis) @ split(v, mixed),
                     mixed if joined is None else joined)

    for scale, text in ((1, "not divided by sqrt(d)"), (1 / d, "divided by d, not by sqrt(d)"),
                        (1 / math.sqrt(C), "divided by the root of all features, not of one "
                                           "head's"), (root, "multiplied by sqrt(d)")):
        if scale != 1 / root:
            yield "attention_scale", f"the scores are {text} (d = {d})", wrong(scale=scale)
    if causal:
        yield "missing_mask", "the causal mask is missing", wrong(causal=False)
    elif L == S:
        yield "extra_mask", "a causal mask was applied", wrong(causal=True)
    if mask is not None:
        yield "missing_mask", "the mask is missing", wrong(mask=None)
    yield "softmax_axis", "the softmax runs over the queries, not over the keys", wrong(axis=-2)
    yield "softmax_axis", "the softmax runs over the heads, not over the keys", wrong(axis=1)
    if heads > 1:
        yield ("head_order", "the heads are interleaved: feature i belongs to head i mod heads",
               wrong(mixed=True))
        yield ("head_order", "the heads are split as interleaved and joined one after the other",
               wrong(mixed=True, joined=False))
        yield ("head_order", "the heads are joined as interleaved",
               merge(split(truth), interleaved=True))
        yield ("head_order", "the heads are joined without bringing them behind the tokens",
               split(truth).reshape(truth.shape))
    if q.shape == k.shape:
        yield "swapped_inputs", "queries and keys have changed places", wrong(q=k, k=q)
    if k.shape == v.shape:
        yield "swapped_inputs", "keys and values have changed places", wrong(k=v, v=k)
    yield from _other_keys(wrong, k, v, mask is None and not causal)


def _other_keys(wrong, k, v, all_seen):
    """Keys and values of the other sample, or more of them than there are."""
    if len(k) == 2:
        yield ("swapped_guidance", "the two samples' keys and values have changed places: each "
               "sample attends to the other's", wrong(k=k[::-1], v=v[::-1]))
    S = k.shape[1]
    for tile in (8, 16, 32, 64, 128) if all_seen else ():
        if more := -S % tile:
            widths = ((0, 0), (0, more), (0, 0))
            yield ("extra_keys", f"{more} keys of zeros after the {S} (filled up to {S + more}) "
                   "take part in the softmax: mask them",
                   wrong(k=np.pad(k, widths), v=np.pad(v, widths)))


def embed(inputs, options, truth, got):
    ids, weight = inputs["ids"], inputs["weight"]
    for by in (1, -1):
        yield ("off_by_one", f"every id is {by:+d}: rows are counted from "
               f"{'0' if by > 0 else '1'} here", weight[(ids + by) % len(weight)])
        yield ("off_by_one", f"the ids are moved by {by:+d} along the text",
               weight[np.roll(ids, by, axis=-1)])


def timestep_embedding(inputs, options, truth, got):
    t = np.asarray(inputs["timesteps"])
    options = {**options, "dtype": "float64"}

    def with_(t=t, **changed):
        return embedding.timestep_embedding(t, **{**options, **changed})

    yield ("sincos_order", "sines and cosines have changed places",
           with_(flip_sin_to_cos=not options["flip_sin_to_cos"]))
    for shift in (0, 1):
        if shift != options["freq_shift"] and options["dim"] // 2 != shift:
            yield ("freq_shift", f"freq_shift is {shift}, not {options['freq_shift']}",
                   with_(freq_shift=shift))
    all_times = np.arange(1001.0)
    table = with_(all_times)
    nearest = [int(np.argmin(((table - row) ** 2).sum(axis=1))) for row in np.nan_to_num(got)]
    if any(nearest != t):
        yield ("wrong_timestep", f"it is that of the timesteps {nearest[:4]}, not of "
               f"{[float(x) for x in t[:4]]}", table[nearest], len(nearest))


LAYERS = {"conv2d": conv2d, "linear": linear, "group_norm": group_norm, "layer_norm": layer_norm,
          "rms_norm": rms_norm, "attention": attention, "embedding": embed,
          "timestep_embedding": timestep_embedding}
