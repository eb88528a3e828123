"""Is a result right, before anything is timed? A sample of it against the reference in float64.

At the full size the reference would take minutes, so it computes some of the outputs: whole rows
of a linear layer, whole tiles of a convolution (where Winograd mixes neighbours), queries of an
attention with all keys, whole groups of a norm. The corners are always among them, the rest is
drawn. Each must lie within the bound that tests/bounds.py derives for it (for the Winograd of the
CPU kernel: tests/agreement_bounds.py).
"""

from typing import Any, NamedTuple

import numpy as np
from agreement_bounds import algorithm as chosen_algorithm
from agreement_bounds import worst
from bounds import PRECISIONS, assert_within, rms

from refsd import registry
from refsd.ops.conv import sides

COUNT = 12  # samples of one op
TILE = {"winograd2": 2, "winograd4": 4}
# How far a peer may be off, relative to the size of the result: float32 stays far below it, half
# types are above (products of float16s: 2^-11 sqrt(2 / 12) = 2e-4). A gate for "the same work in
# the same precision"; what is held to derived bounds is refsd.
PEER = 2.0**-13
# A network in bfloat16, in units of its rounding, 2^-9: PyTorch's UNet is 7 off, OpenVINO's 17.
UNIT = 2.0**-9
HALF = 20 * UNIT


class Sample(NamedTuple):
    """Some of the outputs as a call of its own: its arguments, and where it lies in the result."""

    args: tuple
    options: dict[str, Any]
    take: Any  # result -> the same outputs


def check(name, arrays, options, result):
    """The sample's share of its bound; raises AssertionError outside of it."""
    algorithm = chosen(name, arrays, options, result.shape)
    sample = draw(name, arrays, options, result.shape, algorithm)
    args = tuple(_wide(a) for a in sample.args)
    truth = registry.ops()[name].definition(*args, **sample.options)
    named = sample.options if algorithm is None else sample.options | {"algorithm": algorithm}
    bound = worst(name, args, named, truth, PRECISIONS["float32"])
    found = sample.take(result)
    share = assert_within(found, truth, bound, f"{name}{f' by {algorithm}' if algorithm else ''}")
    return {"algorithm": algorithm, "share_of_bound": share, "outputs": truth.size,
            "error": rms(found - truth) / rms(truth)}


def compare(name, arrays, options, result, algorithm):
    """A peer's error on the same sample, relative to the result; raises AssertionError above PEER.
    """
    sample = draw(name, arrays, options, result.shape, algorithm)
    truth = registry.ops()[name].definition(*(_wide(a) for a in sample.args), **sample.options)
    return near(sample.take(result), truth)


def near(result, truth, allowed=PEER):
    """rms(result - truth) / rms(truth); raises AssertionError if it is not at most `allowed`."""
    assert result.shape == truth.shape, f"shape {result.shape}, wanted {truth.shape}"
    error = rms(np.asarray(result, "float64") - truth) / rms(truth)
    assert error <= allowed, f"differs by {error:.2g} of the result's size, allowed {allowed:.2g}"
    return {"error": error}


def chosen(name, arrays, options, shape):
    """The algorithm that the Numba kernel takes for a convolution; None for other ops."""
    if name != "conv2d":
        return None
    return chosen_algorithm(tuple(arrays.values()), options, shape)


def draw(name, arrays, options, shape, algorithm):
    """COUNT outputs or groups of outputs of a call."""
    random = np.random.default_rng(0)
    if name == "conv2d":
        return _tiles(arrays, options, shape, TILE.get(algorithm, 1), random)
    if name == "attention":
        return _queries(arrays, options, shape, random)
    if name == "group_norm":
        return _groups(arrays, options, shape, random)
    return _rows(arrays, options, shape, random)


def _rows(arrays, options, shape, random):
    """Ops that work on each row (last axis) alone, or on each element."""
    x, *others = arrays.values()
    at = _some(int(np.prod(shape[:-1])), random)
    rows = x.reshape(-1, x.shape[-1])[at] if x.flags.c_contiguous else _gather(x, at)
    return Sample((rows, *others), options, lambda y: _gather(y, at))


def _gather(x, at):
    """Rows of an array of any layout, without copying all of it."""
    return np.stack([x[np.unravel_index(int(i), x.shape[:-1])] for i in at])


def _tiles(arrays, options, shape, m, random):
    """Tiles of m x m outputs, with all the pixels that they see, as pictures without padding."""
    x, weight, bias = (arrays[k] for k in ("x", "weight", "bias"))
    (N, _, H, W), (_, _, Ho, Wo) = x.shape, shape
    (sh, sw), (dh, dw) = (np.broadcast_to(options[k], 2) for k in ("stride", "dilation"))
    (top, _), (left, _) = sides(options["padding"])
    high = sh * (m - 1) + dh * (weight.shape[2] - 1) + 1
    wide = sw * (m - 1) + dw * (weight.shape[3] - 1) + 1
    down, across = Ho // m, Wo // m
    corners = [np.unravel_index(int(i), (N, down, across))
               for i in _some(N * down * across, random)]
    patches = np.zeros((len(corners), x.shape[1], high, wide), x.dtype)
    for patch, (n, i, j) in zip(patches, corners):
        row, column = i * m * sh - top, j * m * sw - left
        rows = slice(max(row, 0), min(row + high, H))
        columns = slice(max(column, 0), min(column + wide, W))
        patch[:, rows.start - row:rows.stop - row, columns.start - column:columns.stop - column] = (
            x[n, :, rows, columns])

    def take(y):
        return np.stack([y[n, :, i * m:i * m + m, j * m:j * m + m] for n, i, j in corners])

    return Sample((patches, weight, bias), options | {"padding": 0, "algorithm": "im2col"}, take)


def _queries(arrays, options, shape, random):
    """Some queries of the last picture, with all of its keys."""
    q, k, v = (arrays[name] for name in ("q", "k", "v"))
    if options["causal"]:
        return Sample((q, k, v), options, lambda y: y)
    at = _some(shape[1], random)
    last = slice(shape[0] - 1, shape[0])
    return Sample((q[last][:, at], k[last], v[last]), options, lambda y: y[last][:, at])


def _groups(arrays, options, shape, random):
    """Two whole groups of channels, of the first and the last picture."""
    x, weight, bias = arrays.values()
    size = shape[1] // options["groups"]
    last = slice(shape[1] - size, shape[1])
    if shape[0] == 1:
        first = slice(0, size)
        x = np.concatenate([x[:, first], x[:, last]], axis=1)
        weight, bias = (np.concatenate([t[first], t[last]]) for t in (weight, bias))
        return Sample((x, weight, bias), options | {"groups": 2},
                      lambda y: np.concatenate([y[:, first], y[:, last]], axis=1))
    return Sample((x[:, last], weight[last], bias[last]), options | {"groups": 1},
                  lambda y: y[:, last])


def _some(count, random):
    """0, the last, and others between, in order."""
    drawn = random.choice(count, min(count, COUNT), replace=False)
    return np.unique(np.concatenate([[0, count - 1], drawn]))


def _wide(array):
    return None if array is None else array.astype("float64")
