"""Wrong versions of ops: what a port that makes a known mistake would have given.

`variants` computes them in float64 on the op's inputs. Each is (reason, sentence, array).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refsd.golden.comparing.fits import Triple
from refsd.golden.comparing.variants_attention import attention
from refsd.golden.comparing.variants_stages import (
    guide,
    scheduler_step,
    to_bytes,
    to_picture,
    unscale,
)
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import replay
from refsd.ops import activation, conv, embedding, norm, resize

EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu")
LARGE = 1 << 31  # multiplications; a larger op's wrong versions would take minutes


def variants(entry: Entry, inputs: Mapping[str, Any], truth: np.ndarray, got: np.ndarray,
             upstream: Mapping[str, tuple[Entry, Mapping[str, Any]]]) -> Iterator[Triple]:
    """The known wrong versions of an entry's op on these float64 inputs, likely ones first.

    Which ones may depend on what the candidate has got. upstream: as for `diagnose`.
    """
    find = VARIANTS.get(entry.op)
    if find is not None:
        yield from find(inputs, entry.options, truth, got)
    for name, (source, given) in upstream.items():
        if source.op in ACTIVATIONS and given["x"].shape == inputs[name].shape:
            yield (f"missing_{source.op}", f"{source.op} was left out before it",
                   replay(entry, {**inputs, name: given["x"]}))


def conv2d(inputs, options, truth, got):
    x, weight, bias = inputs["x"], inputs["weight"], inputs.get("bias")
    yield from _of_bias(truth, None if bias is None else bias[:, None, None])
    if truth.size * weight[0].size > LARGE:
        return

    def with_(*, x=x, weight=weight, bias=bias, **changed):
        return conv.conv2d(x, weight, bias, **{**options, **changed})

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
        x, weight, bias, **{**options, **changed}), options["eps"], truth, weight.reshape(column),
        bias.reshape(column), count)
    for other in (g for g in range(1, channels + 1) if channels % g == 0 and g != groups):
        yield ("wrong_groups", f"it was normalised in {other} groups, not in {groups}",
               norm.group_norm(x, weight, bias, groups=other, eps=options["eps"]))
    mixed = x.reshape(len(x), channels // groups, groups, -1).swapaxes(1, 2).reshape(x.shape)
    normal = norm.group_norm(mixed, np.ones(channels), np.zeros(channels), **options)
    normal = normal.reshape(len(x), groups, channels // groups, -1).swapaxes(1, 2).reshape(x.shape)
    yield ("wrong_groups", "the groups take every n-th channel instead of neighbours",
           normal * weight.reshape(column) + bias.reshape(column))


def layer_norm(inputs, options, truth, got):
    x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
    yield from _of_norm(lambda weight=weight, bias=bias, **changed: norm.layer_norm(
        x, weight, bias, **{**options, **changed}), options["eps"], truth, weight, bias,
        x.shape[-1])


def _of_norm(define, eps, truth, weight, bias, count):
    for other in EPSILONS:
        if other != eps:
            yield "wrong_eps", f"eps is {other:g}, not {eps:g}", define(eps=other)
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


def _activation(name):
    def find(inputs, options, truth, got):
        x = inputs["x"]
        yield f"missing_{name}", f"{name} was left out", x
        yield "sigmoid", "it is the sigmoid alone, without the factor x", _sigmoid(x)
        for other, reason, what in (
                ("gelu_tanh", "gelu_tanh", "tanh's approximation of GELU"),
                ("gelu", "gelu_erf", "GELU by erf"), ("silu", "silu", "silu"),
                ("quick_gelu", "quick_gelu", "GELU by sigmoid (quick_gelu)")):
            if other != name:
                yield reason, f"it is {what}, not {name}", getattr(activation, other)(x)
        yield "relu", "it is max(x, 0)", np.maximum(x, 0)

    return find


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def geglu(inputs, options, truth, got):
    hidden, gate = np.split(inputs["x"], 2, axis=-1)
    yield "geglu_swapped", "the gate is the first half, not the second", gate * activation.gelu(
        hidden)
    for other, reason in (("gelu_tanh", "gelu_tanh"), ("quick_gelu", "quick_gelu"),
                          ("silu", "silu")):
        function = getattr(activation, other)
        yield reason, f"the gate goes through {other}, not through GELU by erf", hidden * function(
            gate)
        yield ("geglu_swapped", f"the gate is the first half and goes through {other}",
               gate * function(hidden))
    yield "missing_gelu", "the gate does not go through GELU", hidden * gate
    x = inputs["x"]
    yield ("geglu_swapped", "the halves are interleaved: even features and odd ones",
           x[..., ::2] * activation.gelu(x[..., 1::2]))


def softmax(inputs, options, truth, got):
    x = inputs["x"]
    for axis in range(x.ndim):
        if axis != options["axis"] % x.ndim:
            yield "softmax_axis", f"it runs along axis {axis}", activation.softmax(x, axis=axis)


def add(inputs, options, truth, got):
    for name in ("b", "a"):
        other = inputs["a" if name == "b" else "b"]
        yield ("no_residual", f"{name} was not added: it is the other summand alone",
               np.broadcast_to(other, truth.shape))
    yield "sign", "b was subtracted", inputs["a"] - inputs["b"]


def _of_two(name, function):
    def find(inputs, options, truth, got):
        yield ("swapped_inputs", f"a and b have changed places in {name}",
               function(inputs["b"], inputs["a"]))

    return find


def concat(inputs, options, truth, got):
    arrays = inputs["arrays"]
    yield ("swapped_inputs", "the arrays are joined in the opposite order",
           np.concatenate(arrays[::-1], axis=options["axis"]))


def embed(inputs, options, truth, got):
    ids, weight = inputs["ids"], inputs["weight"]
    for places in (1, -1):
        yield ("off_by_one", f"every id is {places:+d}: rows are counted from "
               f"{'0' if places > 0 else '1'} here", weight[(ids + places) % len(weight)])
        yield ("off_by_one", f"the ids are moved by {places:+d} along the text",
               weight[np.roll(ids, places, axis=-1)])


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


def upsample_nearest(inputs, options, truth, got):
    x, sizes = inputs["x"], (options["height"], options["width"])
    rules = {
        "ceil(i s)": lambda i, n, m: np.ceil(i * n / m),
        "round(i s)": lambda i, n, m: np.floor(i * n / m + 0.5),
        "floor((i + 1/2) s)": lambda i, n, m: np.floor((i + 0.5) * n / m),
        "floor(i s - 1/2)": lambda i, n, m: np.floor(i * n / m - 0.5),
        "round(i (n - 1) / (m - 1))": lambda i, n, m: np.floor(
            i * (n - 1) / max(m - 1, 1) + 0.5),
    }
    for text, rule in rules.items():
        rows, columns = (np.clip(rule(np.arange(m), n, m), 0, n - 1).astype(int)
                         for n, m in zip(x.shape[2:], sizes))
        yield "half_pixel", f"it takes the pixel at {text}", x[:, :, rows[:, None], columns]
    for corners in (False, True):
        yield ("half_pixel", f"it interpolates (align_corners {corners})",
               resize.upsample_bilinear(x, height=sizes[0], width=sizes[1], align_corners=corners))


def upsample_bilinear(inputs, options, truth, got):
    yield ("half_pixel", "align_corners is the other way round", resize.upsample_bilinear(
        inputs["x"], **{**options, "align_corners": not options["align_corners"]}))
    yield from upsample_nearest(inputs, options, truth, got)


def to_tokens(inputs, options, truth, got):
    yield ("transposed", "the pixels are taken column by column", np.swapaxes(
        inputs["x"], 2, 3).reshape(*inputs["x"].shape[:2], -1).swapaxes(1, 2))


VARIANTS = {
    "conv2d": conv2d, "linear": linear, "group_norm": group_norm, "layer_norm": layer_norm,
    "rms_norm": rms_norm, **{name: _activation(name) for name in ACTIVATIONS}, "geglu": geglu,
    "softmax": softmax, "attention": attention, "add": add, "sub": _of_two("sub", np.subtract),
    "div": _of_two("div", np.divide), "matmul": _of_two("matmul", np.matmul), "concat": concat,
    "embedding": embed, "timestep_embedding": timestep_embedding, "to_tokens": to_tokens,
    "upsample_nearest": upsample_nearest, "upsample_bilinear": upsample_bilinear, "guide": guide,
    "scheduler_step": scheduler_step, "unscale_latents": unscale, "to_picture": to_picture,
    "to_bytes": to_bytes,
}  # fmt: skip
