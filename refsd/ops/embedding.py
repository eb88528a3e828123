"""Positions, times and tokens as vectors."""

import math

import numpy as np

from refsd.contracts import (
    FLOATS,
    INTEGERS,
    Spec,
    dims,
    flag,
    floats,
    integers,
    is_number,
    need,
    output,
    positive,
)
from refsd.registry import op


def embedding_contract(ids, weight):
    dtype = floats("embedding", weight=weight)
    integers("embedding", "ids", ids)
    _, width = dims("embedding", "weight", weight, "vocabulary K")
    shape = (*ids.shape, width)
    return output(shape, dtype, flops=0, reads=(ids, Spec(shape, dtype)))


@op(embedding_contract)
def embedding(ids, weight):
    """weight[ids].   ids (...), integers below the vocabulary; weight (V, K) -> (..., K)

    Raises IndexError for an id outside 0 .. V - 1.
    """
    require_rows("embedding", ids, len(weight))
    return weight[ids]


def gather_contract(x, index):
    dtype = floats("gather", x=x)
    N, L, D = dims("gather", "x", x, "N L D")
    integers("gather", "index", index)
    need(tuple(index.shape) == (N,), "gather",
         f"index has shape {tuple(index.shape)}, wanted ({N},): one row for each sample of x")
    return output((N, D), dtype, flops=0, reads=(index, Spec((N, D), dtype)))


@op(gather_contract)
def gather(x, index):
    """x[n, index[n]].   x (N, L, D), index (N,) -> (N, D)

    Raises IndexError for an index outside 0 .. L - 1.
    """
    require_rows("gather", index, x.shape[1])
    return x[np.arange(len(x)), index]


def require_rows(name, index, rows):
    """Raise IndexError unless all indices are among the rows 0 .. rows - 1."""
    if index.size and not (index.min() >= 0 and index.max() < rows):
        raise IndexError(f"{name}: indices run from {index.min()} to {index.max()}, "
                         f"there are rows 0 to {rows - 1}")


def timestep_embedding_contract(timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    name = "timestep_embedding"
    (N,) = dims(name, "timesteps", timesteps, "N")
    need(str(timesteps.dtype) in INTEGERS or "float" in str(timesteps.dtype), name,
         f"timesteps has dtype {timesteps.dtype}, wanted integers or floats")
    positive(name, dim=dim)
    flag(name, flip_sin_to_cos=flip_sin_to_cos)
    need(is_number(freq_shift) and math.isfinite(freq_shift), name,
         f"freq_shift is {freq_shift!r}, wanted a finite Python number")
    need(dim >= 2 and dim // 2 != freq_shift, name,
         f"dim {dim} with freq_shift {freq_shift} leaves no frequencies")
    need(str(dtype) in FLOATS, name, f"dtype is {dtype!r}, wanted {' or '.join(FLOATS)}")
    return output((N, dim), str(dtype), flops=3 * N * dim, reads=(timesteps,))


@op(timestep_embedding_contract)
def timestep_embedding(timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    """[sin(t w) | cos(t w)], w_i = 10000^(-i / (dim/2 - freq_shift)).   (N,) -> (N, dim)

    `flip_sin_to_cos` puts the cosines first, as Stable Diffusion does; an odd dim ends in a zero.
    Every checkpoint was trained on frequencies and angles rounded to float32, so that rounding
    (up to 3e-5 at t = 999) is part of the definition, whatever the dtype of the result.
    Source: Ho et al. 2020 after Vaswani et al. 2017.
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


def rope_contract(x, positions, *, base, interleaved):
    dtype = floats("rope", x=x)
    integers("rope", "positions", positions)
    (L,) = dims("rope", "positions", positions, "L")
    need(len(x.shape) >= 2 and x.shape[-2] == L and x.shape[-1] % 2 == 0, "rope",
         f"x {tuple(x.shape)} must end in (L, D) with L = {L} positions and an even D")
    flag("rope", interleaved=interleaved)
    need(is_number(base) and 0 < base < math.inf, "rope",
         f"base is {base!r}, wanted a finite Python number > 0")
    return output(x.shape, dtype, flops=3 * math.prod(x.shape), reads=(x, positions))


@op(rope_contract)
def rope(x, positions, *, base, interleaved):
    """Rotate each pair (a, b) of features by position * base^(-2i/D).   (..., L, D) -> the same

    (a, b) -> (a cos - b sin, a sin + b cos). `interleaved` pairs features 2i and 2i + 1 (Su et al.
    2021); otherwise i and i + D/2 (GPT-NeoX, Llama as published on the hub).
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
