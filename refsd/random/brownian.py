"""A Brownian path as a function of a seed: its increments, in whatever order they are asked for.

    W(a, b) = W(b) - W(a) ~ N(0, b - a)

Over [low, high] it is sqrt(high - low) noise; an interval [s, e] of the dyadic tree below is halved
at m by a Brownian bridge, with noise of its own seed:

    W(s, m) = (m - s) / (e - s) W(s, e) + sqrt((m - s) (e - m) / (e - s)) noise

Seeds are NumPy's SeedSequence of the path's seed and the interval's place in the tree; times are
rounded to six decimals. This is torchsde's BrownianInterval (0.2.6, tol=1e-6, pool_size=24,
halfway_tree=True) to the bit, which diffusers' and k-diffusion's DPM++ SDE draw from. Li et al.
2020, "Scalable Gradients for Stochastic Differential Equations", arXiv:2001.01328, section 4.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from refsd.half import in_float32
from refsd.random.torch_cpu import TorchGenerator

DECIMALS = 6
KEPT = 64  # noises: both ways down the tree to where a step ends are those of where the next begins


@lru_cache(maxsize=KEPT)
def noise_of(seed: int, place: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> Any:
    """The noise of a place in the tree of a path's seed."""
    sequence = np.random.SeedSequence(seed, spawn_key=place, pool_size=24)
    noise = TorchGenerator(int(sequence.generate_state(1)[0])).randn(shape, dtype=dtype)
    noise.flags.writeable = False
    return noise


@in_float32
def scaled(w: Any, factor: float) -> Any:
    """factor w; of a half as torch does it: the factor is no half, which 10^6 is not below."""
    return w * factor


class BrownianPath:
    """The path of a seed over [low, high]: arrays of a shape and a dtype."""

    def __init__(self, low: float, high: float, shape: tuple[int, ...], dtype: str, seed: int):
        self.low, self.high = round(float(low), DECIMALS), round(float(high), DECIMALS)
        self.length = float(high) - float(low)
        self.shape, self.dtype, self.seed = shape, str(dtype), seed

    def increment(self, a: float, b: float) -> Any:
        """W(b) - W(a), a < b; what is outside of [low, high] does not count."""
        a, b = (round(min(max(float(t), self.low), self.high), DECIMALS) for t in (a, b))
        if a == b:
            return np.zeros(self.shape, self.dtype)
        whole = scaled(self._noise(), math.sqrt(self.length))
        pieces = self._pieces(self.low, self.high, whole, 0, 0, a, b)
        total = next(pieces)
        for piece in pieces:
            total = total + piece
        return total

    def _noise(self, *place):
        return noise_of(self.seed, place, self.shape, self.dtype)

    def _pieces(self, start, end, w, key, depth, a, b) -> Iterator[Any]:
        """The increments of the largest intervals of the tree that make up [a, b], in order."""
        if (start, end) == (a, b):
            yield w
            return
        middle = round(0.5 * (end + start), DECIMALS)
        before, after, per_length = middle - start, end - middle, 1 / (end - start)
        spread = math.sqrt(before * after * per_length)
        left = (scaled(scaled(w, before), per_length)
                + scaled(self._noise(key, depth), spread))
        if a < middle:
            yield from self._pieces(start, middle, left, 2 * key, depth + 1, a, min(b, middle))
        if b > middle:
            yield from self._pieces(middle, end, w - left, 2 * key + 1, depth + 1,
                                    max(a, middle), b)
