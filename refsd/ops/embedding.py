"""Positions, times and tokens as vectors."""

import math

import numpy as np

from refsd.contracts import FLOATS, Spec
from refsd.kinds import Movement, call
from refsd.options import Flag, FloatType, Integer, Number
from refsd.registry import op


@op("ids:int<V (...), weight (V K) -> (... K)", Movement(), reads="ids result",
    examples=[call((2, 3), (7, 4))])
def embedding(ids, weight):
    """weight[ids].   ids (...), integers below the vocabulary; weight (V, K) -> (..., K)

    Raises IndexError for an id outside 0 .. V - 1.

    >>> embedding(np.array([2, 0]), np.array([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]]))
    array([[20., 21.],
           [ 0.,  1.]])
    """
    require_rows("embedding", ids, len(weight))
    return weight[ids]


@op("x (N L D), index:int<L (N) -> (N D)", Movement(), reads="index result",
    examples=[call((2, 5, 4), (2,))])
def gather(x, index):
    """x[n, index[n]].   x (N, L, D), index (N,) -> (N, D)

    Raises IndexError for an index outside 0 .. L - 1.

    >>> gather(np.array([[[1.0], [2.0], [3.0]]]), np.array([2]))
    array([[3.]])
    """
    require_rows("gather", index, x.shape[1])
    return x[np.arange(len(x)), index]


def require_rows(name, index, rows):
    """Raise IndexError unless all indices are among the rows 0 .. rows - 1."""
    if index.size and not (index.min() >= 0 and index.max() < rows):
        raise IndexError(f"{name}: indices run from {index.min()} to {index.max()}, "
                         f"there are rows 0 to {rows - 1}")


@op("timesteps:real<1000 (N) -> (N dim)", flops="3 * size", dim=Integer(2), flip_sin_to_cos=Flag(),
    freq_shift=Number(), dtype=FloatType(*FLOATS),
    rules={"dim // 2 != freq_shift":
               "dim {dim} with freq_shift {freq_shift} leaves no frequencies"},
    examples=[call((3,), dim=8, flip_sin_to_cos=True, freq_shift=0, dtype="float32"),
              call(Spec((2,), "float32"), dim=7, flip_sin_to_cos=False, freq_shift=1,
                   dtype="float32")])
def timestep_embedding(timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    """[sin(t w) | cos(t w)], w_i = 10000^(-i / (dim/2 - freq_shift)).   (N,) -> (N, dim)

    `flip_sin_to_cos` puts the cosines first, as Stable Diffusion does; an odd dim ends in a zero.
    Every checkpoint was trained on frequencies and angles rounded to float32, so that rounding
    (up to 3e-5 at t = 999) is part of the definition, whatever the dtype of the result.
    Source: Ho et al. 2020 after Vaswani et al. 2017.

    >>> timestep_embedding(np.array([0]), dim=4, flip_sin_to_cos=True, freq_shift=0,
    ...                    dtype="float32")  # cos 0, sin 0
    array([[1., 1., 0., 0.]], dtype=float32)
    """
    half = dim // 2
    exponents = np.arange(half, dtype="float32") * np.float32(-math.log(10000))
    exponents /= np.float32(half - freq_shift)
    frequencies = np.exp(exponents.astype("float64")).astype("float32")
    angles = (timesteps.astype("float32")[:, None] * frequencies).astype(dtype)
    parts = [np.sin(angles), np.cos(angles)]
    if flip_sin_to_cos:
        parts.reverse()
    if dim % 2:
        parts.append(np.zeros((len(timesteps), 1), dtype))
    return np.concatenate(parts, axis=1)


@op("x (... L D), positions:int (L) -> (... L D)", flops="3 * size", base=Number(above=0),
    interleaved=Flag(), rules={"D % 2 == 0": "x {x} has an odd number of features"},
    examples=[call((2, 3, 8), (3,), base=10000.0, interleaved=True),
              call((5, 6), (5,), base=500.0, interleaved=False)])
def rope(x, positions, *, base, interleaved):
    """Rotate each pair (a, b) of features by position * base^(-2i/D).   (..., L, D) -> the same

    (a, b) -> (a cos - b sin, a sin + b cos). `interleaved` pairs features 2i and 2i + 1 (Su et al.
    2021); otherwise i and i + D/2 (GPT-NeoX, Llama as published on the hub).

    >>> rope(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), base=10000,
    ...      interleaved=True).round(4)  # by no angle, and by 1: cos 1, sin 1
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """
    half = x.shape[-1] // 2
    angles = positions[:, None] * float(base) ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first = (..., slice(0, None, 2)) if interleaved else (..., slice(0, half))
    second = (..., slice(1, None, 2)) if interleaved else (..., slice(half, None))
    y = np.empty_like(x)
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[first] * sin + x[second] * cos
    return y
