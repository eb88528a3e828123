"""Faults in what reads elements from places that it computes: enlarged images, rows of tables."""

import numpy as np
from cuda_agreement import agree
from faults import Fault
from op_table import normal


def nearest():
    """Rows and columns by different factors, two images, units of 16 and of 4 bytes."""
    for channels in (8, 3):
        agree("upsample_nearest", [normal((2, channels, 3, 4), 1)], {"height": 7, "width": 13})


def bilinear():
    agree("upsample_bilinear", [normal((2, 3, 3, 4), 1)],
          {"height": 7, "width": 9, "align_corners": False})


def rows():
    """Sixteen bytes at once, and four."""
    for width in (8, 3):
        agree("embedding", [np.array([[4, 0, 2], [1, 4, 3]]), normal((5, width), 1)], {})


FAULTS = [
    Fault("columns by the factor of rows", "resize", "float32(W) / float32(width)",
          "float32(H) / float32(height)", nearest),
    Fault("the first image only", "resize", "uint32(image * H + row) * W", "row * W", nearest),
    Fault("a channel of its own place", "resize", "uint32(i - pixel * length)", "uint32(0)",
          nearest),
    Fault("weights swapped", "resize", "first * (one - v) + second * v",
          "first * v + second * (one - v)", bilinear),
    Fault("the lower row is the upper", "resize", "uint32(bottom[row])", "uint32(top[row])",
          bilinear),
    Fault("the next row", "embedding", "uint32(index[r])", "uint32(index[r]) + uint32(1)", rows),
    Fault("a bound too late", "embedding", "if i < count:\n            r =",
          "if True:\n            r =", rows),
]
