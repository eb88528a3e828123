"""Bounds of embeddings of times and positions."""

import math

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import EXP, OTHERS, gamma


def timestep_embedding(args, options, y, p):
    """The float32 angle is part of the definition; only sin and cos round."""
    return gamma(OTHERS, p) * abs(y) + p.tiny


def timestep_embedding_of_ports(args, options, y, p):
    """Frequencies e^t with t rounded 3 times (t up to ln 10^4), the angle: 1, sin or cos."""
    half = options["dim"] // 2
    t = np.arange(half) * math.log(10000) / abs(half - options["freq_shift"])
    angles = abs(np.asarray(args[0], "float64"))[:, None] * np.exp(-t)
    error = np.concatenate([gamma(3 * t + EXP + 1, p) * angles] * 2, axis=1)
    error = np.pad(error, ((0, 0), (0, options["dim"] % 2)))
    return np.minimum(error, 2) + timestep_embedding(args, options, y, p)


def of_timestep_embedding(args, options, y, perturbations, factor):
    """Times are no activations: they stay float32 in every format."""
    return np.zeros_like(y)


def rope(args, options, y, p):
    """cos and sin are rounded to the precision, then two products and a sum"""
    return gamma(3, p) * _sums_of_pairs(abs(args[0]), options) + 2 * p.tiny


def of_rope(args, options, y, perturbations, factor):
    """cos and sin are 1 at most"""
    return _sums_of_pairs(perturbations[0], options)


def _sums_of_pairs(x, options):
    """a + b at both positions of a pair"""
    half = x.shape[-1] // 2
    if options["interleaved"]:
        return np.repeat(x[..., ::2] + x[..., 1::2], 2, axis=-1)
    return np.concatenate([x[..., :half] + x[..., half:]] * 2, axis=-1)


MODELS = {
    "timestep_embedding": ErrorModel(timestep_embedding, of_timestep_embedding,
                                     ports=timestep_embedding_of_ports),
    "rope": ErrorModel(rope, of_rope),
}  # fmt: skip
