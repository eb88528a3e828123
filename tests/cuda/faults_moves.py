"""Faults in kernels that take rows, embed times and rotate pairs."""

import numpy as np
from cuda_agreement import agree
from faults import Fault
from op_table import normal


def rows():
    """Of sixteen bytes and of two."""
    for width in (8, 3):
        agree("embedding", [np.array([3, 0, 6]), normal((7, width), 1)], {}, "bfloat16")
        agree("gather", [normal((3, 5, width), 1), np.array([4, 0, 2])], {}, "bfloat16")


def times():
    for dim, flip in ((7, False), (8, True)):
        agree("timestep_embedding", [np.array([0, 37, 999])], {
            "dim": dim, "flip_sin_to_cos": flip, "freq_shift": 0, "dtype": "float32"})


def rotations():
    for interleaved in (True, False):
        agree("rope", [normal((2, 3, 8), 1), np.arange(3) * 7],
              {"base": 500.0, "interleaved": interleaved})


FAULTS = [
    Fault("all parts are the first", "embedding", "r * part_step + row", "row", rows),
    Fault("the row's number for what is in it", "embedding", "row = uint32(index[r])",
          "row = uint32(r)", rows),
    Fault("the next row", "embedding", "uint32(index[r])", "uint32(index[r]) + uint32(1)", rows),
    Fault("a bound too late", "embedding", "if i < count:\n            r =",
          "if True:\n            r =", rows),
    Fault("sin and cos at each other's place", "embedding", "if flip_sin_to_cos else (0, half)",
          "if not flip_sin_to_cos else (0, half)", times),
    Fault("no zero at the end of an odd width", "embedding", "if width > 2 * half and k == 0:",
          "if width > 2 * half + 1:", times),
    Fault("turned the other way", "embedding", "a * c - b * s", "a * c + b * s", rotations),
    Fault("one angle for all positions", "embedding", "uint32(row % length) * half", "0 * half",
          rotations),
    Fault("the second part of pi / 2 is missing", "trigonometry", "fma(turns, middle, fma(",
          "fma(turns, kind(0), fma(", times),
    Fault("a quarter turn with the other sign", "trigonometry", "return cosine, -sine",
          "return cosine, sine", times),
    Fault("two terms of the series left out", "trigonometry", '"float32": (4, 5)',
          '"float32": (2, 3)', times),
]
