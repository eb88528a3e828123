"""T5's encoder, version 1.1: a transformer whose tokens see each other, and how far away they are.

Positions are no vectors but biases of the scores, one a head and a bucket of distances, which the
first block's tensor holds for all. Norms only scale, and scores are not divided by sqrt(d).

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", section 2.1; Shazeer 2020, "GLU Variants Improve Transformer"; names as in
transformers' T5EncoderModel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsd import functional as F


@dataclass(frozen=True)
class T5Config:
    """A T5 encoder with gated perceptrons (transformers' T5Config)."""

    heads: int
    buckets: int
    max_distance: int
    eps: float

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "T5Config":
        return cls(
            heads=config["num_heads"],
            buckets=config["relative_attention_num_buckets"],
            max_distance=config["relative_attention_max_distance"],
            eps=config["layer_norm_epsilon"],
        )


def t5_encoder(input_ids, *, shared, encoder, config):
    """The text as vectors, padding and all.   ids (N, L) -> (N, L, D)"""
    hidden = F.embedding(input_ids, **shared)
    table = encoder["block"][0]["layer"][0]["SelfAttention"]["relative_attention_bias"]
    bias = position_bias(input_ids.shape[1], **table, config=config)

    for block in encoder["block"]:
        hidden = encoder_block(hidden, bias, *block["layer"], config=config)
    return F.rms_norm(hidden, **encoder["final_layer_norm"], eps=config.eps)


def encoder_block(x, bias, attention, perceptron, *, config):
    """Pre-norm attention and gated perceptron, each a residual.   (N, L, D) -> (N, L, D)"""
    h = F.rms_norm(x, **attention["layer_norm"], eps=config.eps)
    x = F.add(x, self_attention(h, bias, **attention["SelfAttention"], heads=config.heads))

    h = F.rms_norm(x, **perceptron["layer_norm"], eps=config.eps)
    return F.add(x, feed_forward(h, **perceptron["DenseReluDense"]))


def self_attention(x, bias, *, q, k, v, o, heads, relative_attention_bias=None):
    """softmax(q k^T + bias) v.   (N, L, D), (heads, L, L) -> (N, L, D)

    The op divides by sqrt(d), so q is multiplied by it first: of d = 64 both are exact, and of a d
    that is no power of 4 two more roundings of q. The table of biases has been read already.
    """
    q, k, v = (F.linear(x, **part) for part in (q, k, v))
    q = F.mul(q, (q.shape[-1] // heads) ** 0.5)
    return F.linear(F.attention(q, k, v, heads=heads, mask=bias), **o)


def feed_forward(x, *, wi_0, wi_1, wo):
    """Wo (gelu(W0 x) * W1 x).   (N, L, D) -> (N, L, D)"""
    return F.linear(F.mul(F.gelu_tanh(F.linear(x, **wi_0)), F.linear(x, **wi_1)), **wo)


def position_bias(length, *, weight, config):
    """What each head adds to the score of each pair of tokens.   (B, heads) -> (heads, L, L)"""
    ids = buckets(length, count=config.buckets, max_distance=config.max_distance)
    return F.transpose(F.embedding(ids, weight), axes=(2, 0, 1))


def buckets(length, *, count, max_distance):
    """The bucket of the distance from each query to each key.   -> (L, L) integers below count

    One half is for keys that come later. In each, half of the buckets are a distance each, the
    others grow as its logarithm, in float32 as transformers computes it, up to max_distance.
    """
    place, half = np.arange(length), count // 2
    near, far = half // 2, place - place[:, None]
    away = np.abs(far)
    ratio = np.maximum(away, near).astype(np.float32) / near
    log = np.log(np.float64(ratio)).astype(np.float32)  # the nearest float32, whatever the CPU
    whole = float(np.log(max_distance / near))
    wide = near + (log / whole * (half - near)).astype(np.int64)
    return half * (far > 0) + np.where(away < near, away, np.minimum(wide, half - 1))
