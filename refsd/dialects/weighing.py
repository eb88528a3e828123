"""What a weight does to the vector of its token; chunks are encoded (N, L, D), weights (N, L)."""

from collections.abc import Sequence

import numpy as np


def scaled(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """z w: A1111's emphasis "No norm".   (N, L, D), (N, L) -> (N, L, D)"""
    return z if (weights == 1).all() else z * weights[..., None].astype(z.dtype)


def restored(z: np.ndarray, weights: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """z w mean(z) / mean(z w): A1111's emphasis "Original".   (N, L, D), (N, L), N -> (N, L, D)

    The means are over all of z, in which chunk i counts counts[i] times: A1111 encodes together
    what one prompt's editing makes, a text as often as it comes up.
    """
    weighed = scaled(z, weights)
    if weighed is z:
        return z
    before, after = (np.average(x.mean(axis=(1, 2), dtype=np.float64), weights=counts)
                     for x in (z, weighed))
    return weighed * float(before / after)


def lerp(z: np.ndarray, weights: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """e + w (z - e), e the empty prompt's: ComfyUI's.   (N, L, D), (N, L), (L, D) -> (N, L, D)"""
    w = weights[..., None].astype(z.dtype)
    return np.where(w == 1, z, (z - empty) * w + empty)
