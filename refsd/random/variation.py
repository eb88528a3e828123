"""Variations of a seed: its noise with another seed's mixed in along an arc, as A1111 mixes them.

    slerp(s; a, b) = sin((1 - s) w) / sin w  a  +  sin(s w) / sin w  b,   w the angle between a, b

Source: A1111's modules/rng.py (slerp, ImageRNG.first), where a and b are the columns of a latent:
the angle is taken along its height. Any axis would do; this one decides which picture it is.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.arguments import as_number, shown
from refsd.errors import UsageError
from refsd.half import to_float32
from refsd.random.arguments import as_int, to_dtype

PARALLEL = 0.9995  # a mean cosine above this: no arc to speak of


def varied_noise(shape: tuple[int, ...], generator: Any, *, variation_seed: int = 0,
                 strength: float = 0.0, resize_from: Sequence[int] | None = None,
                 dtype: Any = "float32") -> np.ndarray:
    """The noise that a drawing begins with, `strength` of the way to that of another seed.

    -> (B, C, h, w), for the `latents` of a pipeline; the generators go on to its `generator`.
    generator: a fresh generator of refsd.random, or a list of B. Picture i is mixed with the seed
    variation_seed + i. resize_from: height and width of other latents, whose noise is put into the
    middle of these, or cut from the middle, so that another size keeps the composition. Raises
    UsageError.

    >>> from refsd.random import TorchGenerator
    >>> varied_noise((1, 4, 8, 8), TorchGenerator(1), variation_seed=2, strength=0.1).shape
    (1, 4, 8, 8)
    """
    share = as_number(strength)
    if share is None or not 0 <= share <= 1:
        raise UsageError(f"strength is {shown(strength)}; give a number from 0 to 1")
    generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if len(shape) != 4 or len(generators) != shape[0]:
        raise UsageError(f"varied_noise: got the shape {tuple(shape)} and {len(generators)} "
                         "generators; give (B, C, h, w) and one for each of the B pictures")
    inner = _inner(tuple(shape[1:]), resize_from)
    noises = []
    for index, one in enumerate(generators):
        first, other = copy.deepcopy(one), copy.deepcopy(one)
        whole = one.randn(tuple(shape[1:]), dtype)  # drawn of the generator in any case
        noise = whole if inner == whole.shape else first.randn(inner, dtype)
        if share > 0:
            far = other.manual_seed(variation_seed + index).randn(inner, dtype)
            noise = to_dtype(slerp(share, to_float32(noise), to_float32(far)), str(whole.dtype))
        noises.append(noise if inner == whole.shape else put_in_the_middle(noise, whole))
    return np.stack(noises)


def slerp(share: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`share` of the way from low to high along the arc of each column.   (C, h, w) twice -> same

    Angles are taken in float64. Where the two are nearly the same the arc is a straight line, which
    A1111 goes the other way round.
    """
    a, b = low.astype("float64"), high.astype("float64")
    norms = np.sqrt(np.square(a).sum(axis=1)) * np.sqrt(np.square(b).sum(axis=1))
    cosine = (a * b).sum(axis=1) / norms
    if cosine.mean() > PARALLEL:
        return (a * share + b * (1 - share)).astype(low.dtype)
    angle = np.arccos(np.clip(cosine, -1, 1))
    near, far = (np.sin(part * angle) / np.sin(angle) for part in (1 - share, share))
    return (near[:, None] * a + far[:, None] * b).astype(low.dtype)


def put_in_the_middle(noise: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`whole` with the middle of `noise` in its middle.   (C, h, w), (C, H, W) -> (C, H, W)"""
    there, here = zip(*(_spans(n, m) for n, m in zip(whole.shape[1:], noise.shape[1:])))
    mixed = whole.copy()
    mixed[:, *there] = noise[:, *here]
    return mixed


def _spans(outer, inner):
    """The parts of two sides that lie on each other: a margin is halved, rounded as A1111 does."""
    margin = (outer - inner) // 2
    size = inner if margin >= 0 else inner + 2 * margin
    there, here = max(margin, 0), max(-margin, 0)
    return slice(there, there + size), slice(here, here + size)


def _inner(shape, resize_from):
    """The shape of the noise to begin with."""
    if resize_from is None:
        return shape
    sides = list(resize_from) if isinstance(resize_from, (Sequence, np.ndarray)) else []
    sides = [as_int(side) for side in sides]
    if len(sides) != 2 or any(side is None or side < 1 for side in sides):
        raise UsageError(f"resize_from is {shown(resize_from)}; give the height and the width of "
                         "the latents, two integers of 1 or more")
    return (shape[0], *sides)
