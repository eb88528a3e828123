"""Faults in enlarged images, whose elements are read from places that are computed."""

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
]
