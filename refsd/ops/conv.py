"""Convolution (the machine-learning one: correlation, the kernel is not flipped).

One definition and three algorithms that compute it: `im2col` is the formula as a matrix product,
`fft` and `winograd2`/`winograd4` (conv_tiled.py) trade multiplications for additions tile by tile.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refsd.contracts import need
from refsd.kinds import call
from refsd.ops.conv_tiled import fft, winograd2, winograd4
from refsd.options import Choice as OneOf
from refsd.options import Integer, Pair, Sides
from refsd.registry import exact_wanted, op

# The unrolled windows of one slice of rows. At 512 x 512 x 256 they would be 2.4 GB at once.
SLICE_BYTES = 16 * 2**20
# A sum's error grows with its longest run of additions; BLAS libraries make runs of 384 and more.
RUN = 128
ALGORITHMS = ("im2col", "fft", "winograd2", "winograd4")


class Choice(NamedTuple):
    """Which algorithm computes a convolution, and why."""

    algorithm: str
    why: str


def _sizes(x, weight, bias, stride, padding, dilation, groups, algorithm):
    return result_sizes("conv2d", x.shape[2:], weight, stride, padding, dilation, algorithm)


def result_sizes(op, size, weight, stride, padding, dilation, algorithm):
    """H' and W' of the result of an op that convolves a picture of (H, W)."""
    (H, W), (kh, kw) = size, weight.shape[2:]
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    (top, bottom), (left, right) = sides(padding)
    Ho = (H + top + bottom - dh * (kh - 1) - 1) // sh + 1
    Wo = (W + left + right - dw * (kw - 1) - 1) // sw + 1
    need(Ho >= 1 and Wo >= 1, op, f"the kernel {kh} x {kw} (dilation {dilation}) does not "
         f"fit into {H} x {W} pixels with padding {padding}", check="fits")
    conv2d_algorithm(weight, stride=stride, dilation=dilation, algorithm=algorithm, op=op)
    return {"Ho": Ho, "Wo": Wo}


FLOPS = "2 * size * (C // groups) * kH * kW"
OPTIONS = {"stride": Pair(1), "padding": Sides(), "dilation": Pair(1), "groups": Integer(1),
           "algorithm": OneOf("auto", *ALGORITHMS)}
RULES = {"min(N, C, O, kH, kW) >= 1": "x {x} or weight {weight} is empty",
         "C % groups == 0": "{C} input channels do not split into {groups} groups",
         "O % groups == 0": "{O} output channels do not split into {groups} groups"}


@op("x (N C H W), weight (O C//groups kH kW), bias (O) -> (N O Ho Wo)",
    flops=FLOPS, infer=_sizes, **OPTIONS, rules=RULES,
    examples=[call((1, 4, 6, 5), (8, 4, 3, 3), (8,), padding=1),
              call((2, 4, 7, 6), (6, 4, 3, 3), (6,), stride=2, padding=((0, 1), (0, 1))),
              call((1, 5, 4, 3), (3, 5, 1, 1), (3,)),
              call((1, 6, 5, 8), (4, 3, 3, 3), groups=2, dilation=2, padding=(2, 1))])
def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, algorithm="auto"):
    """y[n,o,i,j] = b[o] + sum_{c,u,v} w[o,c,u,v] x[n, c, i s + u d - top, j s + v d - left]

    x (N, C, H, W), weight (O, C / groups, kH, kW), bias (O,) -> (N, O, H', W'), where
    H' = floor((H + top + bottom - d (kH - 1) - 1) / s) + 1. Outside x there are zeros. stride s
    and dilation d: a number or (vertical, horizontal); padding: a number, (vertical, horizontal),
    or ((top, bottom), (left, right)). Group g of the outputs sees group g of the inputs only.

    >>> conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), padding=1)  # pixels in reach
    array([[[[4., 6., 4.],
             [6., 9., 6.],
             [4., 6., 4.]]]])
    """
    choice = conv2d_algorithm(weight, stride=stride, dilation=dilation, algorithm=algorithm,
                              exact=exact_wanted())
    x = np.pad(x, ((0, 0), (0, 0), *sides(padding)))
    compute = {"im2col": im2col, "fft": fft, "winograd2": winograd2, "winograd4": winograd4}
    y = compute[choice.algorithm](x, weight, pair(stride), pair(dilation),
                                  groups)
    return y if bias is None else y + bias[:, None, None]


def im2col(x, weight, stride, dilation, groups):
    """Unroll every window into a column: then convolution is one matrix product.   No padding."""
    (N, C, _, _), (O, I, kh, kw) = x.shape, weight.shape
    reach = (dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1)
    windows = sliding_window_view(x, reach, axis=(2, 3))
    windows = windows[:, :, ::stride[0], ::stride[1], ::dilation[0], ::dilation[1]]
    windows = windows.transpose(1, 4, 5, 0, 2, 3)  # C kH kW N H' W'
    Ho, Wo = windows.shape[4:]

    matrix = weight.reshape(groups, O // groups, I * kh * kw)
    y = np.empty((N, O, Ho, Wo), x.dtype)
    rows = slice_rows(C * kh * kw, N * Wo, x.itemsize)
    for i in range(0, Ho, rows):
        columns = windows[:, :, :, :, i:i + rows].reshape(groups, I * kh * kw, -1)
        y[:, :, i:i + rows] = in_runs(matrix, columns).reshape(O, N, -1, Wo).swapaxes(0, 1)
    return y


def slice_rows(taps, width, itemsize):
    """The rows of results that im2col makes at once: `taps` numbers for each pixel of a row."""
    return max(1, SLICE_BYTES // (taps * width * itemsize))


def in_runs(a, b):
    """a b, each sum in runs of RUN products that are then added up.   (G, M, K), (G, K, P)"""
    y = a[..., :RUN] @ b[:, :RUN]
    for k in range(RUN, a.shape[-1], RUN):
        y += a[..., k:k + RUN] @ b[:, k:k + RUN]
    return y


def conv2d_algorithm(weight, *, stride=1, dilation=1, algorithm="auto", exact=False,
                     op="conv2d") -> Choice:
    """The algorithm for a convolution: a function of the kernel's shape and the options alone.

    Raises UsageError if the algorithm asked for by name cannot compute it.
    """
    kh, kw = weight.shape[2:]
    fits_winograd = (kh, kw) == (3, 3) and pair(stride) == (1, 1) == pair(dilation)
    if algorithm in ("winograd2", "winograd4"):
        need(fits_winograd, op, f"{algorithm} computes 3 x 3 kernels with stride 1 and "
             f"dilation 1, got {kh} x {kw}, stride {stride}, dilation {dilation}")
    if algorithm in ALGORITHMS:
        return Choice(algorithm, "it was asked for")
    need(algorithm == "auto", op, f"algorithm is {algorithm!r}, wanted auto, im2col, fft, "
         "winograd2 or winograd4")
    if exact:
        return Choice("im2col", "exact: sums of products and nothing else")
    if kh * kw >= 49:
        return Choice("fft", f"a {kh} x {kw} kernel has 49 taps or more: the transform's cost does "
                      "not grow with them")
    return Choice("im2col", f"a {kh} x {kw} kernel is small: the definition as one matrix product")


def sides(padding):
    """padding as ((top, bottom), (left, right))"""
    vertical, horizontal = pair(padding)
    return pair(vertical), pair(horizontal)


def pair(value):
    """An option as (vertical, horizontal)"""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
