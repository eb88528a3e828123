"""Bounds of bilinear resizing."""

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import gamma
from refsd.registry import ops


def upsample_bilinear(args, options, y, p):
    """Per axis the two weights are off by u, then two products and a sum: 8 u of the largest

    A product below the normal numbers is off by tiny / 2, two of them an axis.
    """
    largest = abs(args[0]).max(axis=(2, 3), keepdims=True)
    return gamma(8, p) * largest + 2 * p.tiny + np.zeros_like(y)


def bilinear_of_ports(args, options, y, p):
    """Positions in the source are rounded 3 times: i is off by 3 u (i + 1), as its weights are.

    What they mix is no further apart than the largest difference of two neighbours.
    """
    x = args[0]
    extra = np.zeros_like(y)
    for axis, size in ((2, options["height"]), (3, options["width"])):
        apart = abs(np.diff(x, axis=axis)).max(axis=(2, 3), keepdims=True, initial=0)
        positions = (np.arange(size) + 1) * (x.shape[axis] / size) + 1
        extra = extra + gamma(3, p) * apart * positions.reshape((-1, 1) if axis == 2 else (1, -1))
    return upsample_bilinear(args, options, y, p) + extra


def of_bilinear(args, options, y, perturbations, factor):
    """weights are positive"""
    return ops()["upsample_bilinear"].definition(perturbations[0], **options)


MODELS = {"upsample_bilinear": ErrorModel(upsample_bilinear, of_bilinear, ports=bilinear_of_ports)}
