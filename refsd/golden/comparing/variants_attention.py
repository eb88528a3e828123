"""Wrong versions of attention."""

import math
from collections.abc import Iterator

import numpy as np

from refsd.golden.comparing.fits import Triple
from refsd.ops.activation import softmax

LARGE = 1 << 26  # scores; more would take gigabytes


def attention(inputs, options, truth, got) -> Iterator[Triple]:
    """Attention with one thing wrong at a time."""
    q, k, v, mask = inputs["q"], inputs["k"], inputs["v"], inputs.get("mask")
    mask = options.get("mask") if mask is None else mask
    heads, causal = options["heads"], options.get("causal", False)
    (N, L, C), S = q.shape, k.shape[1]
    d = C // heads
    root = math.sqrt(d)
    if N * heads * L * S > LARGE:
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
